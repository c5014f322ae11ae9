"""Guided distillation: what counts, who learns, which layers are chosen, and teachers that cannot be."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recognizers import recognizer
from sotto.checkpoint import Recognizer, load
from sotto.data import DataConfig, open_data
from sotto.errors import SottoError
from sotto.examples import IGNORED, Batch, Example
from sotto.methods import DistilWhisper, FineTuning, GuidedDistillation, QuantizationAware, StepContext
from sotto.methods.fine_tuning import fine_tune
from sotto.methods.guided_distillation import GuidedDistillationObjective
from sotto.methods.guided_matching import matched
from sotto.methods.layer_states import States, keeping_states
from sotto.methods.quantization_error import errors_of_layers
from sotto.objectives import Setting, objectives
from sotto.objectives import built as built_objectives
from sotto.recipe import parse_recipe
from sotto.run import carry_out
from sotto.structure import from_json
from sotto.surgery import drop_module, narrow_ffn, places
from sotto.training import Training
from stopped_runs import checkpoint_times, stopped_in_training
from tones import PITCHES, square_wave, tiny_whisper, write_folder

ENCODER = QuantizationAware(stacks=("encoder",))
AUDIO = [square_wave(300, 0.9), square_wave(700, 0.5)]


def whisper(**changes: Any) -> Recognizer:
    found = Recognizer(*tiny_whisper(start="scaled", **changes))
    found.model.eval()
    return found


def pair() -> tuple[Recognizer, Recognizer]:
    """A student of two layers and a wider teacher of four."""
    teacher = whisper(d_model=48, encoder_layers=2, decoder_layers=4, attention_heads=4, seed=1)
    return whisper(decoder_layers=2), teacher


def built(student: Recognizer, teacher: Recognizer, **values: Any) -> GuidedDistillationObjective:
    config = GuidedDistillation("teacher", **values)
    objective = objectives.handler(config)(config, Setting(student.family, lambda _: teacher))
    assert isinstance(objective, GuidedDistillationObjective)
    return objective


def batch_for(found: Recognizer) -> Batch:
    texts = list(PITCHES)
    return found.family.collator("en")(
        [
            Example(samples, text, "en", None)
            for samples, text in zip(AUDIO, (texts[0], " ".join(texts[:2])), strict=True)
        ]
    )


def losses(*values: float) -> dict[tuple[str, int], torch.Tensor]:
    """Of the decoder's layers."""
    return {("decoder", layer): torch.tensor(value) for layer, value in enumerate(values)}


def term(found: Recognizer, objective: GuidedDistillationObjective) -> torch.Tensor:
    with objective.attached(found.model):
        return term_within(found, objective)


def term_within(
    found: Recognizer,
    objective: GuidedDistillationObjective,
    batch: Batch | None = None,
    tokens: torch.Tensor | None = None,
) -> torch.Tensor:
    batch = batch_for(found) if batch is None else batch
    outputs, _ = found.family.loss(batch, 0.0)
    tokens = (batch["labels"] != IGNORED).sum() if tokens is None else tokens
    loss: torch.Tensor = objective(found.model, batch, outputs, tokens)
    return loss


@pytest.mark.parametrize("architecture", ["whisper", "parakeet", "wav2vec2_conformer"])
@pytest.mark.parametrize("loss_on", ["hidden", "weight"])
def test_a_model_has_nothing_to_learn_from_itself(architecture: str, loss_on: Any) -> None:
    found = recognizer(architecture)
    stacks = tuple(stack.name for stack in found.architecture.stacks)
    inside = ("ffn", "attention") if loss_on == "hidden" else ("ffn",)
    objective = built(found, found.copy(), loss_on=loss_on, select_by=loss_on, stacks=stacks, inside=inside)
    assert term(found, objective).item() == pytest.approx(0.0, abs=1e-6)
    assert not objective.comparisons.state_dict()  # the same widths: nothing to adapt
    for model in (found.model, objective.teacher.model):
        assert all(not module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("matching", "select_by"),
    [
        ("static", "hidden"),
        *itertools.product(("free", "monotone"), ("hidden", "weight", "quantization_error")),
    ],
)
@pytest.mark.parametrize("loss_on", ["hidden", "weight"])
def test_student_and_adapters_learn_and_the_teacher_does_not(matching: Any, select_by: Any, loss_on: Any) -> None:
    student, teacher = pair()
    objective = built(student, teacher, matching=matching, select_by=select_by, loss_on=loss_on, logits=0.0)
    loss = term(student, objective)
    loss.backward()
    assert loss.item() > 0
    assert all(parameter.grad is None for parameter in teacher.model.parameters())
    adapters = list(objective.parameters())
    assert adapters
    assert all(parameter.grad is not None for parameter in adapters)  # else processes that train together would wait
    assert any(parameter.grad.abs().sum() > 0 for parameter in adapters)
    assert set(map(id, adapters)).isdisjoint(map(id, student.model.parameters()))  # so that they are not saved with it
    first = student.model.model.decoder.layers[0].fc1.weight
    assert first.grad.abs().sum() > 0
    deeper = student.model.model.decoder.layers[0].encoder_attn.v_proj.weight
    assert (deeper.grad is not None and deeper.grad.abs().sum() > 0) == (loss_on == "hidden")


def test_the_mean_difference_of_matched_layers_by_hand() -> None:
    """Padding is left out, and the temperature, the weights and the number of tokens are where they belong."""
    student = whisper(decoder_layers=2)
    teacher = whisper(decoder_layers=3, seed=4)
    batch = batch_for(student)
    counted = batch["labels"] != IGNORED
    assert not counted.all()
    kept: list[dict[str, States]] = [{}, {}]
    scores = []
    with torch.no_grad():
        for found, states in zip((student, teacher), kept, strict=True):
            with keeping_states(found.model, [found.architecture.stack("decoder")], ("ffn",), states):
                scores.append(found.family.loss(batch, 0.0)[0].logits)
    own, wanted = ([layer["ffn"][counted] for layer in states["decoder"].values()] for states in kept)
    shares = [[(each / 2.0).softmax(-1) for each in states] for states in (own, wanted)]
    errors = torch.stack([torch.stack([4.0 * (a - b).square().sum() for b in shares[1]]) for a in shares[0]])
    layers = torch.stack([errors[layer, other] for layer, other in enumerate(matched(errors, "monotone"))]).mean()
    own_scores, wanted_scores = ((each[counted] / 2.0).log_softmax(-1) for each in scores)
    divergence = 4.0 * (wanted_scores.exp() * (wanted_scores - own_scores)).sum()
    objective = built(student, teacher, weight=3.0, logits=0.5, layers=7.0, temperature=2.0)
    expected = 3.0 * (0.5 * divergence + 7.0 * layers) / counted.sum()
    assert term(student, objective).item() == pytest.approx(expected.item(), rel=1e-4)
    logged = objective.parts(student.model)
    assert logged["guided_distillation_logits"] == pytest.approx((divergence / counted.sum()).item(), rel=1e-4)
    assert logged["guided_distillation_layers"] == pytest.approx((layers / counted.sum()).item(), rel=1e-4)


def test_the_silence_after_a_clip_does_not_count_and_stacks_weigh_alike() -> None:
    student, teacher = whisper(), whisper(seed=4)
    batch = batch_for(student)
    kept: list[dict[str, States]] = [{}, {}]
    with torch.no_grad():
        for found, states in zip((student, teacher), kept, strict=True):
            with keeping_states(found.model, found.architecture.stacks, ("ffn",), states):
                found.family.loss(batch, 0.0)
    counted = {"encoder": torch.arange(50) < torch.tensor([[45], [25]]), "decoder": batch["labels"] != IGNORED}
    expected = {}  # 0.9 and 0.5 seconds of a window of one, with a position every 0.02
    for stack, positions in counted.items():
        own, wanted = (states[stack][0]["ffn"][positions].softmax(-1) for states in kept)
        expected[stack] = (own - wanted).square().sum(-1).mean().item()
    settings: dict[str, Any] = {"logits": 0.0, "weight": 1.0}
    for name, loss in expected.items():
        assert term(student, built(student, teacher, stacks=(name,), **settings)).item() == pytest.approx(loss, 1e-4)
    both = term(student, built(student, teacher, stacks=("encoder", "decoder"), **settings))
    assert both.item() == pytest.approx(sum(expected.values()), 1e-4)


@pytest.mark.parametrize("loss_on", ["hidden", "weight"])
def test_a_batch_twice_as_large_has_the_same_loss(loss_on: Any) -> None:
    student, teacher = pair()
    objective = built(student, teacher, loss_on=loss_on, stacks=("encoder", "decoder"))
    batch = batch_for(student)
    with objective.attached(student.model):
        once = term_within(student, objective, batch).item()
        twice = {name: torch.cat([each, each]) for name, each in batch.items()}
        assert term_within(student, objective, twice).item() == pytest.approx(once, rel=1e-4)


@pytest.mark.parametrize("loss_on", ["hidden", "weight"])
def test_the_loss_of_a_batch_is_the_sum_over_its_halves(loss_on: Any) -> None:
    """As two processes take them, which count all of the tokens."""
    student, teacher = pair()
    objective = built(student, teacher, loss_on=loss_on, matching="static")
    batch = batch_for(student)
    tokens = (batch["labels"] != IGNORED).sum()
    counts = (batch["labels"] != IGNORED).sum(1).tolist()
    assert counts[0] != counts[1]
    halves = [{name: each[half : half + 1] for name, each in batch.items()} for half in range(2)]

    def found(part: Batch) -> tuple[float, dict[str, float]]:
        return term_within(student, objective, part, tokens).item(), objective.parts(student.model)

    with objective.attached(student.model):
        (whole, parts), *split = [found(each) for each in (batch, *halves)]
    assert sum(loss for loss, _ in split) == pytest.approx(whole, rel=1e-4)
    for name, value in parts.items():
        assert value > 0
        assert sum(each[name] for _, each in split) == pytest.approx(value, rel=1e-4)


def apart_by_hand(student: Recognizer, teacher: Recognizer, kind: str) -> torch.Tensor:
    """(student's layers, teacher's layers): how far layers of decoders of one width are apart."""
    decoders = [found.model.model.decoder for found in (student, teacher)]
    if kind == "quantization_error":
        stack, rounding = student.architecture.stack("decoder"), QuantizationAware()
        own, wanted = (errors_of_layers(found.model, stack, rounding) for found in (student, teacher))
        return (own[:, None] - wanted).abs()
    if kind == "weight":
        own, wanted = (torch.stack([layer.fc1.weight.softmax(-1) for layer in each.layers]) for each in decoders)
        return (own[:, None] - wanted).abs().sum(-1).mean(-1)
    batch = batch_for(student)
    kept: list[dict[str, States]] = [{}, {}]
    for found, states in zip((student, teacher), kept, strict=True):
        with keeping_states(found.model, [found.architecture.stack("decoder")], ("ffn",), states):
            found.family.loss(batch, 0.0)
    counted = batch["labels"] != IGNORED
    own, wanted = (
        torch.stack([layer["ffn"][counted].softmax(-1) for layer in states["decoder"].values()]) for states in kept
    )
    return (own[:, None] - wanted).square().sum(-1).mean(-1)


@pytest.mark.parametrize("select_by", ["hidden", "weight", "quantization_error"])
@pytest.mark.parametrize("loss_on", ["hidden", "weight"])
def test_layers_are_chosen_by_one_thing_and_taught_by_another(select_by: Any, loss_on: Any) -> None:
    """The nearest layer by `select_by`, the difference of `loss_on`, and gradients of that difference alone."""
    student, teacher = whisper(decoder_layers=2), whisper(decoder_layers=4, seed=4)
    own, wanted = (found.model.model.decoder.layers for found in (student, teacher))
    with torch.no_grad():
        wanted[3].fc1.weight.copy_(1.2 * own[0].fc1.weight)
        wanted[2].fc1.weight.copy_(1.2 * own[1].fc1.weight)
        own[0].fc2.weight[:, 0] = wanted[1].fc2.weight[:, 0] = 5.0  # all other weights become coarse
    chosen = {
        kind: apart_by_hand(student, teacher, kind).argmin(1).tolist()
        for kind in ("hidden", "weight", "quantization_error")
    }
    assert chosen["weight"] == [3, 2]
    assert chosen["quantization_error"][0] == 1
    assert len({tuple(places) for places in chosen.values()}) == 3  # so that one is not taken for another
    expected = apart_by_hand(student, teacher, loss_on)[[0, 1], chosen[select_by]].mean()
    learnt = [layer.fc1.weight for layer in own]
    gradients = torch.autograd.grad(expected, learnt)
    objective = built(student, teacher, select_by=select_by, loss_on=loss_on, matching="free", logits=0.0, weight=1.0)
    loss = term(student, objective)
    learnt_of = objective.parts(student.model)["guided_distillation_layers"]  # without what adapters learn from
    assert learnt_of == pytest.approx(expected.item(), rel=1e-4)
    for found, gradient in zip(torch.autograd.grad(loss, learnt), gradients, strict=True):
        torch.testing.assert_close(found, gradient, rtol=1e-3, atol=1e-6)


def test_states_of_later_tokens_do_not_reach_earlier_ones() -> None:
    """The released code takes them in a pass without the causal mask."""
    found = whisper()
    stack = found.architecture.stack("decoder")
    heard: list[torch.Tensor] = []
    for last in (7, 9):
        kept: dict[str, States] = {}
        inputs = {**found.family.inputs(AUDIO[:1]), "decoder_input_ids": torch.tensor([[1, 5, last]])}
        with torch.no_grad(), keeping_states(found.model, [stack], ("ffn", "attention"), kept):
            found.model(**inputs)
        assert sorted(kept["decoder"][0]) == ["encoder_attn", "ffn", "self_attn"]
        heard.append(kept["decoder"][0]["ffn"])
    torch.testing.assert_close(heard[0][:, :2], heard[1][:, :2])
    assert not torch.equal(heard[0][:, 2], heard[1][:, 2])


def test_only_the_layers_that_rounding_changes_most_are_distilled() -> None:
    student, teacher = pair()
    with torch.no_grad():
        student.model.model.decoder.layers[1].fc1.weight[0, 0] = 5.0  # with one large weight all others become coarse
    stack = student.architecture.stack("decoder")
    rounding = QuantizationAware(bits=4, scales="tensor")
    changed = errors_of_layers(student.model, stack, rounding)
    assert changed[1] > changed[0]
    objective = built(
        student, teacher, logits=0.0, distilled_layers=1, rounding=rounding, loss_on="weight", matching="static"
    )
    term(student, objective).backward()
    assert student.model.model.decoder.layers[1].fc1.weight.grad.abs().sum() > 0
    untouched = student.model.model.decoder.layers[0].fc1.weight.grad
    assert untouched is None or untouched.abs().sum() == 0
    alone = replace(rounding, stacks=("decoder",), layers={"decoder": (0,)})
    assert (errors_of_layers(student.model, stack, alone) > 0).tolist() == [True, False]
    assert errors_of_layers(student.model, student.architecture.stack("encoder"), alone).tolist() == [0.0]
    assert built(student, teacher, distilled_layers=1, rounding=alone).distilled(stack, [0, 1]) == [0]


def test_layers_are_rounded_over_time_those_of_the_least_loss_first() -> None:
    student, teacher = pair()
    rounding = QuantizationAware(stacks=("decoder",), bits=4)
    objective = built(student, teacher, rounding=rounding, rounded_over=4)
    assert objective.rounding is not None
    weights = [layer.fc1.weight.detach().clone() for layer in student.model.model.decoder.layers]

    def rounded() -> list[bool]:
        layers = student.model.model.decoder.layers
        return [not torch.equal(layer.fc1.weight, weight) for layer, weight in zip(layers, weights, strict=True)]

    with objective.attached(student.model):
        assert rounded() == [False, False]
        objective.rounding.note(losses(1.0, 1.1))
        objective.after_step(student.model, 1, 0.1)
        assert rounded() == [False, False]  # the first of two after half of the steps, by what it lost in all of them
        objective.rounding.note(losses(2.0, 0.5))
        objective.after_step(student.model, 2, 0.1)
        assert rounded() == [False, True]
        objective.rounding.note(losses(0.0, 50.0))
        objective.after_step(student.model, 3, 0.1)
        assert rounded() == [False, True]  # what is rounded stays so
        objective.after_step(student.model, 4, 0.1)
        assert rounded() == [True, True]
        logged = objective.logged(student.model)
        assert logged["rounded_layers"] == 1.0
        assert 0 < logged["guided_distillation_rounding_error"] < 0.3
    assert rounded() == [False, False]
    resumed = built(student, teacher, rounding=rounding, rounded_over=4)
    with resumed.attached(student.model):
        assert rounded() == [False, False]
        resumed.load_state_dict(objective.state_dict())  # as Trainer does, within the training
        assert rounded() == [True, True]


@pytest.mark.parametrize(
    ("order", "turns"), [("loss", [0, 3, 1, 2]), ("greatest_loss", [2, 1, 3, 0]), ("depth", [0, 1, 2, 3])]
)
def test_layers_are_rounded_in_the_order_asked_for(order: Any, turns: list[int]) -> None:
    student, teacher = whisper(decoder_layers=3), whisper(decoder_layers=3, seed=4)
    objective = built(student, teacher, rounded_over=4, rounding_order=order)
    rounding = objective.rounding
    assert rounding is not None
    with objective.attached(student.model):
        for step in range(1, 5):
            rounding.note(losses(2.0, 3.0, 1.0))  # the encoder's layer has none
            objective.after_step(student.model, step, 0.1)
            assert sorted(turns[:step]) == rounding.is_rounded.nonzero().flatten().tolist()


def test_a_training_that_ends_before_all_layers_are_rounded_says_so(caplog: pytest.LogCaptureFixture) -> None:
    student, teacher = pair()
    objective = built(student, teacher, rounding=QuantizationAware(stacks=("decoder",)), rounded_over=4)
    with objective.attached(student.model):
        objective.after_step(student.model, 2, 0.1)
    expected = "1 of 2 layers were rounded when training ended; let rounded_over be less than its steps"
    assert caplog.messages == [expected]
    with objective.attached(student.model):
        objective.after_step(student.model, 4, 0.1)
    assert caplog.messages == [expected]


def test_the_mean_of_a_layers_losses_does_not_depend_on_how_often_it_was_heard() -> None:
    student, teacher = pair()
    objective = built(student, teacher, rounding=QuantizationAware(stacks=("decoder",)), rounded_over=100)
    rounding = objective.rounding
    assert rounding is not None
    assert rounding.means().tolist() == [0.0, 0.0]
    rounding.note(losses(1.0))
    rounding.take_in()
    rounding.note(losses(1.0, 1.2))  # the second layer was left out of the first pass
    rounding.take_in()
    assert rounding.means().tolist() == pytest.approx([1.0, 1.2])
    with objective.attached(student.model):
        objective.after_step(student.model, 50, 0.1)
        assert rounding.is_rounded.tolist() == [True, False]
    rounding.note(losses(3.0))
    rounding.take_in()
    weights = [0.95**2, 0.95, 1.0]  # the latest loss weighs most
    expected = (weights[0] + weights[1] + 3.0 * weights[2]) / sum(weights)
    assert rounding.means().tolist() == pytest.approx([expected, 1.2])


@pytest.mark.parametrize(("part", "other"), [("encoder", "decoder"), ("decoder", "encoder")])
def test_a_part_can_be_left_as_it_is(part: Any, other: Any) -> None:
    student, teacher = pair()
    objective = built(student, teacher, frozen=(part,), stacks=(other,))
    encoder = {id(parameter) for parameter in student.model.model.encoder.parameters()}
    before = {name: parameter.requires_grad for name, parameter in student.model.named_parameters()}
    with objective.attached(student.model):
        for parameter in student.model.parameters():
            assert not parameter.requires_grad or (id(parameter) in encoder) == (part == "decoder")
        assert any(parameter.requires_grad for parameter in student.model.parameters())
    assert {name: parameter.requires_grad for name, parameter in student.model.named_parameters()} == before


def test_narrower_networks_have_adapters_of_their_own() -> None:
    student, teacher = pair()
    stack = student.architecture.stack("decoder")
    narrow_ffn(student.model, stack, 1, stack.feed_forwards[0], range(40))
    objective = built(student, teacher, logits=0.0)
    names = [name for name, _ in objective.comparisons.named_modules() if name.count("_") > 2]
    assert sorted(names) == [
        "decoder_hidden.adapters.linears.ffn_192_128",
        "decoder_hidden.adapters.linears.ffn_192_40",
    ]
    term(student, objective).backward()
    assert all(parameter.grad is not None for parameter in objective.parameters())


def test_a_recipe_distils_with_rounding_and_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    write_folder(tmp_path / "clips", list(PITCHES), [0.5, 0.6, 0.7, 0.8])
    write_folder(tmp_path / "validation", ["one", "two"], [0.9, 0.95])
    student, teacher = pair()
    student.save(tmp_path / "student")
    teacher.save(tmp_path / "teacher")
    training = {"batch_size": 2, "workers": 0, "learning_rate": 1e-3, "steps": 4, "evaluate_every": 2, "keep": "last"}
    training |= {"schedule": "constant"}
    guided = {
        "teacher": "teacher",
        "rounding": {"bits": 4, "stacks": ["decoder"]},
        "rounded_over": 3,
        "frozen": ["encoder"],
        "distilled_layers": 1,
    }
    recipe = {
        "base": "student",
        "data": {"train": {"path": "clips"}, "validation": {"path": "validation"}},
        "language": "en",
        "steps": [
            {"fine_tuning": {"training": training, "objectives": [{"guided_distillation": guided}]}},
            {"quantization": {"bits": 4}},
        ],
    }
    parsed = parse_recipe(recipe, "recipe.yaml")
    numbers = carry_out(parsed, tmp_path, tmp_path / "run", print)
    assert numbers.models[2].layers[0].bits == 4
    trained = load(tmp_path / "run" / "steps" / "1-fine_tuning" / "model").model
    base = load(tmp_path / "student").model
    assert torch.equal(trained.model.encoder.layers[0].fc1.weight, base.model.encoder.layers[0].fc1.weight)
    assert not torch.equal(trained.model.decoder.layers[0].fc1.weight, base.model.decoder.layers[0].fc1.weight)
    stopped_in_training(tmp_path / "run", tmp_path / "parts", 4)
    before = checkpoint_times(tmp_path / "parts")
    carry_out(parsed, tmp_path, tmp_path / "parts", print)  # from the checkpoint after two steps, half of it rounded
    assert set() < before < checkpoint_times(tmp_path / "parts")  # it did not begin anew
    resumed = load(tmp_path / "parts" / "steps" / "1-fine_tuning" / "model").model
    for name, weight in trained.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], weight, msg=name)


def test_the_optimiser_moves_the_adapters(tmp_path: Path) -> None:
    train, validation = (
        open_data(DataConfig(str(write_folder(tmp_path / role, list(PITCHES)[:2], lengths))), sampling_rate=16_000)
        for role, lengths in (("train", [0.5, 0.6]), ("validation", [0.9, 0.95]))
    )
    student, teacher = pair()
    objective = built(student, teacher)
    before = [parameter.detach().clone() for parameter in objective.parameters()]
    config = FineTuning(Training(steps=2, batch_size=2, evaluate_every=2, workers=0, learning_rate=1e-3))
    context = StepContext(tmp_path, train=(train,), validation=validation, language="en")
    fine_tune(student, config, context, tmp_path / "work", [objective])
    assert len(before) > 1
    assert not any(torch.equal(old, new) for old, new in zip(before, objective.parameters(), strict=True))


def test_adapters_depend_on_the_seed_alone() -> None:
    student, teacher = pair()
    setting = Setting(student.family, lambda _: teacher)

    def drawn(seed: int) -> torch.Tensor:
        torch.rand(3)  # whatever went before
        (objective,) = built_objectives([GuidedDistillation("teacher")], setting, seed)
        return next(objective.parameters()).detach()

    torch.testing.assert_close(drawn(1), drawn(1), rtol=0, atol=0)
    assert not torch.equal(drawn(1), drawn(2))


def test_a_recipe_teaches_a_student_that_was_cut_out_of_its_teacher(tmp_path: Path) -> None:
    write_folder(tmp_path / "clips", list(PITCHES), [0.5, 0.6, 0.7, 0.8])
    write_folder(tmp_path / "validation", ["one", "two"], [0.9, 0.95])
    _, teacher = pair()
    teacher.save(tmp_path / "teacher")
    training = {"batch_size": 2, "workers": 0, "learning_rate": 1e-3, "steps": 2, "evaluate_every": 2, "keep": "last"}
    recipe = {
        "base": "teacher",
        "data": {"train": {"path": "clips"}, "validation": {"path": "validation"}},
        "language": "en",
        "steps": [
            {"layer_dropping": {"decoder": 2}},
            {"structured_magnitude": {"neurons": 0.5}},
            {"fine_tuning": {"training": training, "objectives": [{"guided_distillation": {"teacher": "teacher"}}]}},
        ],
    }
    carry_out(parse_recipe(recipe, "recipe.yaml"), tmp_path, tmp_path / "run", print)
    cut, taught = (
        load(tmp_path / "run" / "steps" / step / "model") for step in ("2-structured_magnitude", "3-fine_tuning")
    )
    assert [layer.base_layer for layer in taught.structure.stacks["decoder"].layers] == [0, 3]
    assert taught.structure == cut.structure
    name = "model.decoder.layers.0.fc1.weight"
    assert not torch.equal(taught.model.state_dict()[name], cut.model.state_dict()[name])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weight": 0.0}, "weight must be positive, found 0.0"),
        ({"logits": 0.0, "layers": 0.0}, "logits and layers must not be negative, and one of them positive"),
        ({"inside": ()}, "inside and stacks must each name something"),
        ({"frozen": ("encoder", "decoder")}, "encoder and decoder together leave nothing to train"),
        ({"distilled_layers": 0}, "distilled_layers must be at least 1, found 0"),
        ({"frozen": ("decoder",)}, "stacks: the layers of what is frozen learn nothing; name the other stack"),
        (
            {"frozen": ("encoder",), "stacks": ("encoder", "decoder")},
            "stacks: the layers of what is frozen learn nothing",
        ),
        ({"layers": 0.0, "rounded_over": 5}, "rounded_over goes with what layers learn; give layers a weight"),
        ({"frozen": ("encoder",), "rounded_over": 5}, "rounding: what is frozen cannot learn to be rounded"),
        ({"distilled_layers": 1, "rounding": ENCODER}, "layers are chosen by what it changes; name what stacks names"),
        ({"select_by": "quantization_error", "rounding": ENCODER}, "layers are chosen by what it changes; name what"),
        *(
            (
                {"layers": 0.0, name: value},
                f"^{name}: nothing is learnt of layers; give layers a weight, or leave it out",
            )
            for name, value in {
                "matching": "static",
                "select_by": "weight",
                "loss_on": "weight",
                "stacks": ("encoder",),
                "inside": ("attention",),
            }.items()
        ),
        ({"matching": "static", "select_by": "weight"}, "^select_by: static matching looks at nothing; take another"),
        ({"select_by": "weight", "loss_on": "weight", "inside": ("attention",)}, "^inside: no states are compared"),
        ({"matching": "static", "loss_on": "weight", "inside": ("attention",)}, "^inside: no states are compared"),
        ({"rounding_order": "depth"}, "^rounding_order: nothing is rounded in training; give rounded_over, or leave"),
        ({"rounding": QuantizationAware(bits=4)}, "^rounding: nothing goes by it; give rounded_over, distilled_layers"),
        (
            {"distilled_layers": 1, "rounding": QuantizationAware(embedding_bits=8)},
            "^rounding: the table of tokens is rounded in training only; give rounded_over",
        ),
    ],
)
def test_settings_are_checked(values: Any, message: str) -> None:
    with pytest.raises(SottoError, match=message):
        GuidedDistillation("teacher", **values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"distilled_layers": 3}, "distilled_layers: the decoder has 2 layers; name at most as many"),
        (
            {"distilled_layers": 1, "rounding": QuantizationAware(layers={"decoder": (0, 2)})},
            "rounding: layers: the decoder has no layer 2; they are counted from 0",
        ),
        (
            {"select_by": "quantization_error", "rounding": QuantizationAware(layers={"encoder": (1,)})},
            "rounding: layers: the encoder has no layer 1; they are counted from 0",
        ),
    ],
)
def test_layers_that_the_student_has_not_are_refused(values: Any, message: str) -> None:
    with pytest.raises(SottoError, match=f"^guided_distillation: {message}$"):
        built(*pair(), **values)


def test_layers_are_rounded_within_the_training() -> None:
    term = GuidedDistillation("teacher", rounded_over=5)
    message = "guided_distillation goes on for 5 steps, and training for 5; let it end before training"
    with pytest.raises(SottoError, match=f"^{message}$"):
        FineTuning(Training(steps=5), (term,))
    message = "guided_distillation changes the model until step 5; set keep: last, or earlier weights may be kept"
    with pytest.raises(SottoError, match=f"^{message}$"):
        FineTuning(Training(steps=6), (term,))
    assert FineTuning(Training(steps=6, keep="last"), (term,)).objectives == (term,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feature_size": 128}, "hears 128 mel bins, the student 80"),
        ({"sampling_rate": 8000}, "hears 8000 Hz, the student 16000"),
        ({"hop_length": 320}, "hears 320 samples to a step, the student 160"),
    ],
)
def test_a_teacher_of_other_features_is_refused(changes: dict[str, int], message: str) -> None:
    teacher = whisper(seed=3)
    for name, value in changes.items():
        setattr(teacher.processor.feature_extractor, name, value)
    with pytest.raises(SottoError, match=f"^guided_distillation: the teacher 'teacher' {message}$"):
        built(whisper(), teacher)


def test_a_teacher_of_other_frames_is_refused() -> None:
    teacher = recognizer("parakeet")
    teacher.model.config.encoder_config.subsampling_factor = 4
    with pytest.raises(SottoError, match="the teacher 'teacher' hears 640 samples to a frame, the student 1280$"):
        built(recognizer("parakeet"), teacher, stacks=("encoder",))


def test_teachers_that_cannot_be() -> None:
    with pytest.raises(SottoError, match="the teacher 'teacher' is of another family than the student"):
        built(whisper(), recognizer("parakeet"))
    with pytest.raises(SottoError, match="the teacher 'teacher' has another vocabulary than the student"):
        built(whisper(), whisper(languages=("hi",)))
    parakeet = recognizer("parakeet")
    with pytest.raises(SottoError, match="stacks: the model has no decoder; name encoder"):
        built(parakeet, parakeet)
    with pytest.raises(SottoError, match="frozen: a model without a decoder is trained as a whole; leave it out"):
        built(parakeet, parakeet, layers=0.0, frozen=("encoder",))
    rounding = QuantizationAware(stacks=("decoder",))
    with pytest.raises(SottoError, match="^guided_distillation: rounding: there are no linears in the layers of dec"):
        built(parakeet, parakeet, stacks=("encoder",), rounding=rounding, rounded_over=1)
    config = DistilWhisper("teacher")
    with pytest.raises(SottoError, match="^distil_whisper: the teacher 'teacher' has another vocabulary"):
        objectives.handler(config)(config, Setting(whisper().family, lambda _: whisper(languages=("hi",))))
    with pytest.raises(SottoError, match="distil_whisper is for Whisper; for a CTC model take layerwise_distillation"):
        objectives.handler(config)(config, Setting(parakeet.family, lambda _: parakeet))


@pytest.mark.parametrize(("weights", "factor"), [("paper", 0.8), ("code", 1 / 0.8)])
def test_distil_whisper_is_a_divergence_beside_the_cross_entropy(weights: Any, factor: float) -> None:
    student, teacher = pair()
    config = DistilWhisper("teacher", weights)
    objective = objectives.handler(config)(config, Setting(student.family, lambda _: teacher))
    assert isinstance(objective, GuidedDistillationObjective)
    assert list(objective.parameters()) == []
    assert objective.config.frozen == ("encoder",)
    batch = batch_for(student)
    counted = batch["labels"] != IGNORED
    with torch.no_grad():
        own, wanted = (each.family.loss(batch, 0.0)[0].logits[counted] / 2.0 for each in (student, teacher))
    own, wanted = own.log_softmax(-1), wanted.log_softmax(-1)
    expected = factor * 4.0 * (wanted.exp() * (wanted - own)).sum() / counted.sum()
    assert term(student, objective).item() == pytest.approx(expected.item(), rel=1e-4)
    assert objective.name == "distil_whisper"
    assert list(objective.parts(student.model)) == ["distil_whisper_logits"]
    assert objective.logged(student.model) == {}


def test_the_table_of_tokens_is_rounded_from_the_start_and_named_layers_alone_in_their_turn() -> None:
    student, teacher = pair()
    rounding = QuantizationAware(stacks=("decoder",), layers={"decoder": (1,)}, bits=4, embedding_bits=4)
    objective = built(student, teacher, rounding=rounding, rounded_over=1)
    assert objective.rounding is not None
    decoder = student.model.model.decoder
    before = [weight.detach().clone() for weight in (decoder.embed_tokens.weight, decoder.layers[1].fc1.weight)]
    with objective.attached(student.model):
        assert not torch.equal(decoder.embed_tokens.weight, before[0])
        assert torch.equal(decoder.layers[1].fc1.weight, before[1])
        term_within(student, objective)
        objective.after_step(student.model, 1, 0.1)
        assert objective.rounding.running.item() > 0
        assert not torch.equal(decoder.layers[1].fc1.weight, before[1])


@pytest.mark.parametrize("matching", ["static", "free", "monotone"])
@pytest.mark.parametrize("kind", ["hidden", "weight"])
def test_layers_without_a_network_take_no_part(kind: Any, matching: Any) -> None:
    student, teacher = pair()
    for found, layer in ((student, 0), (teacher, 3)):
        stack = found.architecture.stack("decoder")
        drop_module(found.model, stack, layer, stack.feed_forwards[0])
    select_by = "hidden" if matching == "static" else kind
    objective = built(
        student, teacher, select_by=select_by, loss_on=kind, matching=matching, logits=0.0, distilled_layers=2
    )
    loss = term(student, objective)
    loss.backward()
    assert loss.item() > 0  # of the second layer, from one of the teacher's first three
    assert student.model.model.decoder.layers[1].fc1.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(("select_by", "loss_on"), [("weight", "hidden"), ("hidden", "weight")])
def test_what_chooses_and_what_is_learnt_must_both_be_there_in_the_teachers_layer(select_by: Any, loss_on: Any) -> None:
    student, teacher = pair()
    stack = teacher.architecture.stack("decoder")
    drop_module(teacher.model, stack, 3, stack.feed_forwards[0])  # whose attention is there to compare all the same
    objective = built(
        student, teacher, select_by=select_by, loss_on=loss_on, inside=("attention",), matching="monotone", logits=0.0
    )
    assert term(student, objective).item() > 0


def test_layers_that_are_left_out_while_training_take_no_part() -> None:
    """Wav2Vec2-Conformer leaves layers out at random in training."""
    found = recognizer("wav2vec2_conformer")
    teacher = recognizer("wav2vec2_conformer")
    objective = built(found, teacher, stacks=("encoder",), logits=0.0)
    found.model.config.layerdrop = 0.5
    found.model.train()
    ran: set[int] = set()
    for index, layer in enumerate(found.model.wav2vec2_conformer.encoder.layers):
        layer.register_forward_hook(lambda *_, index=index: ran.add(index))
    seen = set()
    with objective.attached(found.model):
        for seed in range(16):
            ran.clear()
            np.random.seed(seed)
            torch.manual_seed(seed)
            assert (term_within(found, objective).item() > 0) == bool(ran)
            assert set(objective.heard.get("encoder", {})) == ran
            seen.add(tuple(sorted(ran)))
    assert seen == {(), (0,), (1,), (0, 1)}


@pytest.mark.parametrize("select_by", ["hidden", "weight", "quantization_error"])
def test_what_a_step_costs_does_not_grow_with_the_layers(select_by: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The structure record is read once a look at a model at most, and not for every layer."""
    student, teacher = pair()
    for found in (student, teacher):
        stack = found.architecture.stack("decoder")
        narrow_ffn(found.model, stack, 1, stack.feed_forwards[0], range(40))  # so that there is a record
    objective = built(student, teacher, select_by=select_by, loss_on="weight")
    reads = []
    with objective.attached(student.model):
        monkeypatch.setattr(places, "from_json", lambda record: reads.append(record) or from_json(record))
        term_within(student, objective)
    assert len(reads) <= 3  # the weights of both, and the errors of the student


def test_the_teacher_hears_as_much_as_the_student_does_in_its_training() -> None:
    student, teacher = whisper(window_seconds=2.0), whisper(window_seconds=2.0, seed=3)
    objective = built(student, teacher)
    with student.family.window(1.0), objective.attached(student.model):
        assert teacher.family.window_seconds == 1.0
        assert term_within(student, objective).item() > 0
    assert teacher.family.window_seconds == 2.0
