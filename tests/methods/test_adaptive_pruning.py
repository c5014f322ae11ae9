from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from recognizers import ARCHITECTURES, recognizer
from sotto.architectures import architecture_of
from sotto.checkpoint import Recognizer, load
from sotto.errors import SottoError
from sotto.methods import AdaptivePruning, StepContext, apply_adaptive_pruning
from sotto.methods.hold_zeros import plain_weights
from sotto.recipe import parse_recipe
from sotto.run import carry_out
from sotto.surgery import drop_module, layers_of, structure_of
from tones import PITCHES, square_wave, tiny_whisper, write_folder


def linears(model: Any, stacks: tuple[str, ...] = ("encoder", "decoder")) -> dict[str, torch.Tensor]:
    found = {}
    for stack in architecture_of(model.config).stacks:
        if stack.name in stacks:
            for layer in range(len(model.get_submodule(stack.layers))):
                for linear in stack.linears():
                    path = f"{stack.layers}.{layer}.{linear}"
                    found[path] = model.get_submodule(path).weight
    return found


def zero_share(model: Any, stacks: tuple[str, ...] = ("encoder", "decoder")) -> float:
    weights = linears(model, stacks).values()
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_given_thresholds_prune_without_any_data(architecture: str, tmp_path: Path) -> None:
    found = recognizer(architecture)
    config = AdaptivePruning(element=0.5, group=-1.0, feed_forward="neuron", remove=False)
    notes = apply_adaptive_pruning(found, config, StepContext(tmp_path))
    assert notes[0] == "zeroed: elements below 0.5 standard deviations, groups below the mean norm -1 deviations"
    assert 0.25 < zero_share(found.model) < 0.8
    loaded = load(found.save(tmp_path / "model"))
    assert zero_share(loaded.model) == pytest.approx(zero_share(found.model))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_model_after_removal_is_the_masked_model(architecture: str, tmp_path: Path) -> None:
    heads = "row" if architecture == "wav2vec2_conformer_rotary" else "head"
    settings: dict[str, Any] = {"element": 0.3, "group": 0.0, "attention": heads, "feed_forward": "neuron"}
    settings |= {"gather": False}
    masked, smaller = recognizer(architecture), recognizer(architecture)
    apply_adaptive_pruning(masked, AdaptivePruning(**settings, remove=False), StepContext(tmp_path))
    notes = apply_adaptive_pruning(smaller, AdaptivePruning(**settings), StepContext(tmp_path))
    widths = [layer.ffn_widths for layer in structure_of(smaller.model).stacks["encoder"].layers]
    assert all(widths)
    assert heads == "row" or any(layer.heads for layer in structure_of(smaller.model).stacks["encoder"].layers)
    assert not any(" 0 neurons taken out" in note for note in notes)
    inputs = masked.family.inputs([square_wave(300, 0.9)])
    if architecture == "whisper":
        inputs["decoder_input_ids"] = torch.tensor([[1, 5, 9, 11]])
    with torch.no_grad():
        torch.testing.assert_close(smaller.model(**inputs).logits, masked.model(**inputs).logits, rtol=1e-5, atol=1e-5)


def test_the_other_rule_zeroes_a_third_to_two_thirds_of_every_matrix(tmp_path: Path) -> None:
    found = recognizer("whisper")
    apply_adaptive_pruning(found, AdaptivePruning("cov_percentile", remove=False), StepContext(tmp_path))
    shares = [round((weight == 0).float().mean().item(), 2) for weight in linears(found.model).values()]
    assert set(shares) == {0.3, 0.5, 0.7}


def test_one_stack_can_be_left_alone(tmp_path: Path) -> None:
    found = recognizer("whisper")
    apply_adaptive_pruning(found, AdaptivePruning(element=0.5, group=-3.0, stacks=("encoder",)), StepContext(tmp_path))
    assert zero_share(found.model, ("encoder",)) > 0.2
    assert zero_share(found.model, ("decoder",)) == 0.0


def test_a_stack_without_modules_has_nothing_to_prune(tmp_path: Path) -> None:
    found = recognizer("whisper")
    for stack, layer in layers_of(found.model):
        if stack.name == "encoder":
            for module in stack.modules:
                drop_module(found.model, stack, layer, module)
    config = AdaptivePruning(element=0.5, group=-3.0, stacks=("encoder",))
    with pytest.raises(SottoError, match="adaptive_pruning: there are no linears left in the layers of encoder"):
        apply_adaptive_pruning(found, config, StepContext(tmp_path))


def bounded(wers: list[float], most: float) -> Any:
    """A validation WER that is 10 % until more than the share `most` of the weights is zero, and 30 % from there."""

    def validation_wer(recognizer: Recognizer) -> float:
        wers.append(0.1 if zero_share(recognizer.model) <= most else 0.3)
        return wers[-1]

    return validation_wer


@pytest.mark.parametrize("most", [0.2, 0.4])
def test_thresholds_are_the_largest_within_the_bound(most: float, tmp_path: Path) -> None:
    found = recognizer("whisper")
    wers: list[float] = []
    context = StepContext(tmp_path, validation_wer=bounded(wers, most))
    notes = apply_adaptive_pruning(found, AdaptivePruning(search_steps=8, remove=False), context)
    assert most - 0.05 < zero_share(found.model) <= most
    assert 0.3 in wers
    assert len(wers) <= 1 + 2 * 10
    assert notes[1].startswith("validation WER 10.00% before; tried (element/group): 2/none: 30.00%")


def test_a_bound_of_some_points_lets_the_search_go_on(tmp_path: Path) -> None:
    found = recognizer("whisper")
    context = StepContext(tmp_path, validation_wer=bounded([], 0.3))
    apply_adaptive_pruning(found, AdaptivePruning(wer_increase=45.0, remove=False), context)
    assert zero_share(found.model) > 0.9


def test_a_given_threshold_that_breaks_the_bound_is_an_error(tmp_path: Path) -> None:
    found = recognizer("whisper")
    context = StepContext(tmp_path, validation_wer=bounded([], 0.0))
    with pytest.raises(SottoError, match="group 0.5 alone raises validation WER above 10.00%"):
        apply_adaptive_pruning(found, AdaptivePruning(group=0.5), context)


def test_a_given_element_that_breaks_the_bound_is_an_error_too(tmp_path: Path) -> None:
    found = recognizer("whisper")
    before = {name: weight.clone() for name, weight in linears(found.model).items()}
    context = StepContext(tmp_path, validation_wer=bounded([], 0.1))
    with pytest.raises(SottoError, match="element 1.5 alone raises validation WER above 10.00%"):
        apply_adaptive_pruning(found, AdaptivePruning(element=1.5), context)
    for name, weight in linears(found.model).items():
        assert torch.equal(weight, before[name])  # the model is as it was


@pytest.mark.parametrize(
    ("increase", "accepted", "most"),
    [(None, 0.35, 0.9), (None, 0.05, 0.3), (0.0, 0.35, 0.3), (25.0, 0.35, 0.9), (25.0, 0.2, 0.3)],
)
def test_the_bound_is_what_recipe_and_step_accept(
    increase: float | None, accepted: float, most: float, tmp_path: Path
) -> None:
    """WER is 10 % up to 30 % of zeros, and 30 % above: accepted only where the bound is above that."""
    found = recognizer("whisper")
    context = StepContext(tmp_path, validation_wer=bounded([], 0.3), accepted_wer=accepted)
    apply_adaptive_pruning(found, AdaptivePruning(wer_increase=increase, remove=False, gather=False), context)
    assert (zero_share(found.model) > 0.85) == (most == 0.9)
    assert zero_share(found.model) > 0.2


def test_the_first_pass_leaves_half_of_the_bound_to_the_second(tmp_path: Path) -> None:
    """WER is 10 % plus a tenth of the share of zeros: the first pass may spend 2 of 4 points, both together 4."""
    found = recognizer("whisper")
    context = StepContext(tmp_path, validation_wer=lambda tried: 0.1 + 0.1 * zero_share(tried.model))
    config = AdaptivePruning(wer_increase=4.0, search_steps=10, remove=False, gather=False)
    notes = apply_adaptive_pruning(found, config, context)
    assert 0.35 < zero_share(found.model) <= 0.4
    element = float(notes[0].split("elements below ")[1].split()[0])
    first = recognizer("whisper")
    apply_adaptive_pruning(
        first, replace(config, wer_increase=None, search_steps=6, element=element, group=-9.0), context
    )
    assert 0.17 < zero_share(first.model) <= 0.2


def test_the_second_pass_takes_the_norms_that_the_first_has_left(tmp_path: Path) -> None:
    """A neuron of norm 1.66 has 0.5 left after the first pass; the others have 8 and 16, mean 12 and deviation 4."""
    found = recognizer("whisper")
    layer = found.model.model.encoder.layers[0]
    with torch.no_grad():
        for rows in (layer.fc1.weight, layer.fc2.weight.T):
            rows[:64], rows[64:], rows[3] = 1.0, 2.0, 0.2
        layer.fc1.weight[3, 0] = 0.5
        element = 0.3 / float(layer.fc1.weight.std())
    kinds: dict[str, Any] = {"attention": "head", "feed_forward": "neuron", "stacks": ("encoder",)}
    config = AdaptivePruning(element=element, group=-2.72, remove=False, gather=False, **kinds)
    apply_adaptive_pruning(found, config, StepContext(tmp_path))
    assert (layer.fc1.weight == 0).all(1).nonzero().flatten().tolist() == [3]  # 12 - 2.72 * 4 = 1.1


def test_zeros_that_are_left_are_held_in_a_recovery(tmp_path: Path) -> None:
    """Also where neurons went and linears hear a part of their inputs."""
    write_folder(tmp_path / "clips", list(PITCHES), [0.5, 0.6, 0.7, 0.8])
    write_folder(tmp_path / "validation", ["one", "two"], [0.9, 0.95])
    Recognizer(*tiny_whisper()).save(tmp_path / "base")
    training = {"steps": 2, "batch_size": 2, "evaluate_every": 2, "workers": 0, "keep": "last", "learning_rate": 1e-3}
    recipe = {
        "base": "base",
        "data": {"train": {"path": "clips"}, "validation": {"path": "validation"}},
        "language": "en",
        "steps": [
            {"adaptive_pruning": {"element": 0.5, "group": -0.5, "feed_forward": "neuron"}},
            {"fine_tuning": {"training": training, "objectives": ["hold_zeros"]}},
        ],
    }
    carry_out(parse_recipe(recipe, "recipe.yaml"), tmp_path, tmp_path / "run", print)
    pruned = load(tmp_path / "run" / "steps" / "1-adaptive_pruning" / "model").model
    recovered = load(tmp_path / "run" / "model").model
    before, after = (plain_weights(model) for model in (pruned, recovered))
    assert any(layer.ffn_widths for layer in structure_of(pruned).stacks["encoder"].layers)
    for path, weight in after.items():
        assert torch.equal(weight == 0, before[path] == 0)
    assert any(not torch.equal(weight, before[path]) for path, weight in after.items())


def test_heads_that_tell_the_times_of_words_are_renumbered_or_missed(tmp_path: Path) -> None:
    found = recognizer("whisper")
    found.model.generation_config.alignment_heads = [[0, 0], [0, 1], [1, 1]]
    attention = found.model.model.decoder.layers[0].encoder_attn
    with torch.no_grad():
        attention.out_proj.weight[:, :16] = 0.0  # the first head of 16 channels says nothing
    config = AdaptivePruning(element=0.0, group=-9.0, attention="head", gather=False)
    notes = apply_adaptive_pruning(found, config, StepContext(tmp_path))
    assert found.model.generation_config.alignment_heads == [[0, 0], [1, 1]]
    assert "1 heads and 0 neurons taken out, 1 of them heads that tell the times of words" in notes


def test_nothing_outside_of_the_layers_linears_is_pruned(tmp_path: Path) -> None:
    for architecture in ARCHITECTURES:
        found = recognizer(architecture)
        before = {name: weight.clone() for name, weight in found.model.state_dict().items()}
        config = AdaptivePruning(element=0.5, group=-1.0, remove=False, gather=False)
        apply_adaptive_pruning(found, config, StepContext(tmp_path))
        changed = {name for name, weight in found.model.state_dict().items() if not torch.equal(weight, before[name])}
        assert changed == {f"{path}.weight" for path in linears(found.model)}


def test_a_ctc_model_has_no_decoder_to_prune(tmp_path: Path) -> None:
    config = AdaptivePruning(element=0.5, group=-1.0, stacks=("decoder",))
    with pytest.raises(SottoError, match="stacks: the model has no decoder; it has: encoder"):
        apply_adaptive_pruning(recognizer("parakeet"), config, StepContext(tmp_path))


def test_a_search_needs_validation_clips(tmp_path: Path) -> None:
    with pytest.raises(SottoError, match="searches for thresholds by validation WER; give data.validation"):
        apply_adaptive_pruning(recognizer("whisper"), AdaptivePruning(), StepContext(tmp_path))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rule": "cov_percentile", "element": 0.5}, "has thresholds of its own, and no groups; leave out element"),
        ({"rule": "cov_percentile", "wer_increase": 1.0}, "has thresholds of its own, and no groups"),
        ({"rule": "cov_percentile", "feed_forward": "neuron"}, "has thresholds of its own, and no groups"),
        ({"element": 0.5, "group": -1.0, "wer_increase": 1.0}, "are of a search, and the thresholds are given"),
        ({"element": 0.5, "group": -1.0, "search_steps": 3}, "are of a search, and the thresholds are given"),
        ({"rule": "cov_percentile", "search_steps": 3}, "has thresholds of its own, and no groups"),
        ({"element": float("nan"), "group": -1.0}, "element must not be negative, found nan"),
        ({"element": -0.1}, "element must not be negative, found -0.1"),
        ({"wer_increase": -1.0}, "wer_increase must not be negative, found -1.0"),
        ({"search_steps": -1}, "search_steps must not be negative, found -1"),
        ({"stacks": ()}, "stacks must name encoder, decoder or both"),
    ],
)
def test_settings_are_checked(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SottoError, match=message):
        AdaptivePruning(**values)


def test_a_recipe_prunes_within_its_bound_and_reports_it(tmp_path: Path) -> None:
    write_folder(tmp_path / "clips", list(PITCHES), [0.5, 0.6, 0.7, 0.8])
    Recognizer(*tiny_whisper()).save(tmp_path / "base")
    recipe = {
        "base": "base",
        "data": {"validation": {"path": "clips"}},
        "language": "en",
        "steps": [{"adaptive_pruning": {"search_steps": 1, "feed_forward": "neuron"}}],
        "accept": {"wer_increase": 0.0},
    }
    numbers = carry_out(parse_recipe(recipe, "recipe.yaml"), tmp_path, tmp_path / "run", print)
    pruned = numbers.models[-1]
    assert pruned.parameters.nonzero < pruned.parameters.total <= numbers.models[0].parameters.total
    assert any(note.startswith("validation WER") for note in pruned.notes)
