"""L0 pruning: the Lagrangian by hand, its own rates, and a run from training to a pruned checkpoint."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from random_gates import prune_at_random
from recognizers import recognizer, scores
from sotto import compress
from sotto.checkpoint import Recognizer, load
from sotto.data import DataConfig, open_data
from sotto.errors import SottoError
from sotto.methods import FineTuning, L0Pruning, LayerwiseDistillation, LowRank, Quantization, StepContext, methods
from sotto.methods.fine_tuning import fine_tune
from sotto.methods.gate_costs import gate_costs
from sotto.methods.gated_modules import gated_modules
from sotto.methods.gates import Gates
from sotto.methods.hard_concrete import HardConcrete
from sotto.methods.l0_pruning import L0Objective, kept_costs, kept_worths
from sotto.methods.layerwise_distillation import LayerwiseDistillationObjective
from sotto.metrics.cost import count_parameters, flops_by_module
from sotto.quantized_layers import QuantizedLinear
from sotto.recipe import parse_recipe
from sotto.run import carry_out as run_recipe
from sotto.training import Training
from tones import PITCHES, write_folder


def training(steps: int, **changes: Any) -> Training:
    values = {"batch_size": 2, "evaluate_every": steps, "log_every": 1, "workers": 0, "keep": "last"}
    return Training(steps=steps, **(values | changes))


def objective(config: L0Pruning) -> L0Objective:
    found = recognizer("parakeet")
    gated = list(gated_modules(found.model, ("encoder",), config.gates))
    gates = Gates(gated, HardConcrete(), config.open_share, True)
    return L0Objective(gates, gate_costs(found, gated, "parameters"), config)


def test_the_lagrangian_by_hand() -> None:
    built = objective(L0Pruning(training(100), target=0.6, target_warmup=0.5))
    batch = {"labels": torch.tensor([[1, 2, -100]])}
    with torch.no_grad():
        built.multipliers.copy_(torch.tensor([3.0, 7.0]))
    first = built.share().item()
    assert 0.8 < first < 1
    for step, target in [(0, first), (25, (first + 0.6) / 2), (50, 0.6), (100, 0.6)]:
        built.steps.fill_(step)
        assert built.target() == pytest.approx(target)
        excess = built.share().item() - target
        found = built(nn.Identity(), batch, SimpleNamespace(), torch.tensor(8)).item()
        assert found == pytest.approx(2 / 8 * (3 * excess + 7 * excess**2), rel=1e-5)
    built.steps.fill_(100)
    built(nn.Identity(), batch, SimpleNamespace(), torch.tensor(2)).backward()
    excess = built.share().item() - 0.6
    assert built.multipliers.grad is not None
    torch.testing.assert_close(built.multipliers.grad, torch.tensor([excess, excess**2]))


def test_multipliers_ascend_and_gates_have_a_rate_of_their_own() -> None:
    built = objective(L0Pruning(training(10), gate_rate=0.05))
    gates, multipliers = built.parameter_groups()
    assert (gates.learning_rate, gates.maximize) == (0.05, False)
    assert (multipliers.learning_rate, multipliers.maximize) == (0.05, True)
    assert len(gates.parameters) + 1 == len(list(built.parameters()))
    with torch.no_grad():
        built.gates.of_units[0].fill_(50.0)
    built.after_step(nn.Identity(), 7, 0.1)
    assert built.gates.of_units[0].max().item() == pytest.approx(np.log(100))
    assert built.state_dict()["steps"] == 7


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    write_folder(folder / "train", list(PITCHES), [0.5, 0.6, 0.7, 0.8])
    write_folder(folder / "validation", list(PITCHES)[:2], [0.55, 0.65])
    return folder


@pytest.mark.parametrize("architecture", ["whisper", "parakeet"])
def test_a_model_is_pruned_to_its_target_and_recovers(architecture: str, clips: Path, tmp_path: Path) -> None:
    found = recognizer(architecture)
    dense = found.save(tmp_path / "dense")
    distillation = LayerwiseDistillation()
    step = L0Pruning(training(30), (distillation,), target=0.7, gate_rate=0.3, target_warmup=0.3)
    taught = (LayerwiseDistillation(str(dense), layers=50.0, logits=50.0),)
    healing = FineTuning(training(10), taught, transcripts_from=str(dense))
    data = {"train": DataConfig(str(clips / "train")), "validation": DataConfig(str(clips / "validation"))}
    if architecture == "whisper":  # an untrained one writes nothing that could be learnt
        healing = FineTuning(training(10), taught)
    pruned = compress(found, step, language="en", **data)
    left = count_parameters(pruned.model).total / count_parameters(found.model).total
    assert 0.6 <= left <= 0.7
    norms = [module for module in pruned.model.modules() if isinstance(module, nn.BatchNorm1d)]
    assert {norm.num_batches_tracked.item() for norm in norms} == ({2} if architecture == "parakeet" else set())
    loaded = load(pruned.save(tmp_path / "pruned"))
    assert loaded.structure == pruned.structure
    healed = compress(loaded, healing, language="en", **data)
    assert healed.structure == pruned.structure
    assert apart(healed, pruned) > 1e-3
    if architecture == "parakeet":  # the other one has its own, random, texts to learn beside its teacher
        assert apart(healed, found) < 0.9 * apart(pruned, found)


def apart(one: Recognizer, other: Recognizer) -> float:
    return (scores(one) - scores(other)).norm().item()


@pytest.mark.parametrize("constraint", ["flops", "latency"])
def test_other_costs_are_bound_too_and_the_notes_say_what_is_left(
    constraint: Any, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time is made up, in proportion to the parameters: that of a machine varies."""
    found = recognizer("parakeet")
    dense = found.copy()
    config = L0Pruning(training(3), target=0.7, constraint=constraint, gate_rate=0.3)
    if constraint == "latency":
        gated = list(gated_modules(found.model, ("encoder",), config.gates))
        costs = replace(gate_costs(found, gated, "parameters"), length=10.0)
        monkeypatch.setattr("sotto.methods.l0_pruning.gate_costs", lambda *_: costs)
        monkeypatch.setattr(
            "sotto.methods.gate_decisions.whole_seconds", lambda heard, _: count_parameters(heard.model).total
        )
    _, expected, *others = methods.handler(config)(found, config, context_for(clips, tmp_path))
    if constraint == "flops":
        left, before = (flops_by_module(each.model, each.family.frames(10.0), 0)[""] for each in (found, dense))
    else:
        left, before = (count_parameters(each.model).total for each in (found, dense))
        assert others[0].startswith(f"the whole pruned model was measured to take {left / before:.1%} of the latency")
    assert 0.6 <= left / before <= 0.7
    assert expected.startswith(f"{left / before:.1%} of the {constraint} of 10 s are")


def test_the_teacher_of_gates_is_the_model_before_any_pruning(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = recognizer("parakeet")
    dense, forward, losses = found.copy(), LayerwiseDistillationObjective.forward, []

    def heard(objective: LayerwiseDistillationObjective, *given: Any) -> torch.Tensor:
        taught = objective.teacher.model
        assert not any(module._forward_pre_hooks or module._forward_hooks for module in taught.modules())
        for name, weight in dense.model.state_dict().items():
            assert torch.equal(taught.state_dict()[name], weight), name
        losses.append(forward(objective, *given))
        return losses[-1]

    monkeypatch.setattr(LayerwiseDistillationObjective, "forward", heard)
    config = L0Pruning(training(2, learning_rate=0.1), (LayerwiseDistillation(),), target=0.7)
    methods.handler(config)(found, config, context_for(clips, tmp_path))
    assert len(losses) == 2
    assert all(loss.item() > 0 for loss in losses)  # from the first step on, where only gates tell them apart


@pytest.mark.parametrize("start", ["open", "taylor"])
def test_gates_are_learnt_from_clips_that_have_no_transcripts(start: Any, clips: Path, tmp_path: Path) -> None:
    """Taylor importance, the loss and the recovery learn what the dense model writes."""
    dense = recognizer("parakeet")
    teacher = str(dense.save(tmp_path / "dense"))
    untranscribed = tmp_path / "untranscribed"
    untranscribed.mkdir()
    for clip in (clips / "train").glob("*.wav"):
        shutil.copy(clip, untranscribed)
    data = {"train": DataConfig(str(untranscribed)), "validation": DataConfig(str(clips / "validation"))}
    step = L0Pruning(training(20), (LayerwiseDistillation(),), target=0.7, gate_rate=0.3, start=start)
    with pytest.raises(SottoError, match="transcripts"):
        compress(dense, step, language="en", **data)
    healing = FineTuning(training(2), (LayerwiseDistillation(teacher),), transcripts_from=teacher)
    pruned = compress(dense, replace(step, transcripts_from=teacher), language="en", **data)
    healed = compress(pruned, healing, language="en", **data)
    left = count_parameters(healed.model).total / count_parameters(dense.model).total
    assert 0.6 <= left <= 0.7
    assert (scores(healed) - scores(pruned)).abs().max() > 1e-6


def test_a_recipe_prunes_and_recovers_and_goes_on_after_the_gates(clips: Path, tmp_path: Path) -> None:
    dense = recognizer("parakeet")
    dense.save(tmp_path / "dense")
    common = {"batch_size": 2, "workers": 0, "keep": "last"}
    gates = {
        "target": 0.7,
        "gate_rate": 0.3,
        "objectives": [{"layerwise_distillation": {}}],
        "training": common | {"steps": 20, "evaluate_every": 20},
    }
    recovery = {
        "objectives": [{"layerwise_distillation": {"teacher": "dense"}}],
        "training": common | {"steps": 2, "evaluate_every": 2},
    }
    values: dict[str, Any] = {
        "base": "dense",
        "language": "en",
        "data": {role: {"path": str(clips / role)} for role in ("train", "validation")},
        "steps": [{"l0_pruning": gates}, {"fine_tuning": recovery}],
    }
    recipe = parse_recipe(values, "recipe.yaml")
    run = tmp_path / "run"
    numbers = run_recipe(recipe, tmp_path, run, print)
    whole, pruned, recovered = (model.parameters.total for model in numbers.models)
    assert 0.6 * whole <= pruned <= 0.7 * whole
    assert recovered == pruned
    before, after = (load(run / "steps" / step / "model") for step in ("1-l0_pruning", "2-fine_tuning"))
    assert after.structure == before.structure
    assert any(layer.absent or layer.heads or layer.ffn_widths for layer in after.structure.stacks["encoder"].layers)
    assert (scores(after) - scores(before)).abs().max() > 1e-6

    shutil.rmtree(run / "steps" / "2-fine_tuning")  # as if it had been stopped after the gates
    shutil.rmtree(run / "model")
    said: list[str] = []
    again = run_recipe(recipe, tmp_path, run, said.append)
    assert "l0_pruning: finished already" in said
    assert [model.parameters for model in again.models] == [model.parameters for model in numbers.models]
    torch.testing.assert_close(scores(load(run / "model")), scores(after), rtol=1e-4, atol=1e-4)


def test_a_teacher_is_looked_for_before_any_work_and_told_from_another_of_its_name(clips: Path, tmp_path: Path) -> None:
    recognizer("parakeet").save(tmp_path / "dense")
    settings = {"batch_size": 2, "workers": 0, "steps": 1, "evaluate_every": 1}
    values: dict[str, Any] = {
        "base": "dense",
        "language": "en",
        "data": {role: {"path": str(clips / role)} for role in ("train", "validation")},
        "steps": [
            {"fine_tuning": {"objectives": [{"layerwise_distillation": {"teacher": "sage"}}], "training": settings}}
        ],
    }
    recipe = parse_recipe(values, "recipe.yaml")
    with pytest.raises(SottoError, match=r"sage: no such folder"):
        run_recipe(recipe, tmp_path, tmp_path / "run", print)
    assert not (tmp_path / "run").exists()
    recognizer("parakeet").save(tmp_path / "sage")
    run_recipe(recipe, tmp_path, tmp_path / "run", print)
    other = recognizer("parakeet")
    with torch.no_grad():
        next(other.model.parameters()).add_(1.0)
    other.save(tmp_path / "sage")
    with pytest.raises(SottoError, match="holds a run of another base or teacher"):
        run_recipe(recipe, tmp_path, tmp_path / "run", print)


def test_training_moves_gates_and_multipliers_as_far_as_their_rate_says(clips: Path, tmp_path: Path) -> None:
    found = recognizer("parakeet")
    config = L0Pruning(
        training(1, schedule="constant", learning_rate=1e-6), target=0.5, target_warmup=0.0, gate_rate=0.1
    )
    gated = list(gated_modules(found.model, ("encoder",), config.gates))
    gates = Gates(gated, HardConcrete(), 0.9, True)
    built = L0Objective(gates, gate_costs(found, gated, "parameters"), config)
    before = gates.of_units[0].clone()
    fine_tune(found, config, context_for(clips, tmp_path), tmp_path / "work", [built])
    torch.testing.assert_close(built.multipliers.detach(), torch.tensor([0.1, 0.1]), rtol=1e-3, atol=0)  # upwards
    assert (gates.of_units[0] - before).abs().max().item() == pytest.approx(0.1, rel=0.05)


def test_the_rates_of_gates_and_multipliers_do_not_fall_with_the_models(clips: Path, tmp_path: Path) -> None:
    """A gradient of one sign moves Adam by the rate in every step, and the excess stays positive for so few."""
    found = recognizer("parakeet")
    config = L0Pruning(
        training(6, schedule="cosine", learning_rate=1e-6), target=0.1, target_warmup=0.0, gate_rate=0.01
    )
    gated = list(gated_modules(found.model, ("encoder",), config.gates))
    built = L0Objective(Gates(gated, HardConcrete(), 0.9, True), gate_costs(found, gated, "parameters"), config)
    fine_tune(found, config, context_for(clips, tmp_path), tmp_path / "work", [built])
    torch.testing.assert_close(built.multipliers.detach(), torch.tensor([0.06, 0.06]), rtol=0.02, atol=0)


@pytest.mark.parametrize("pull", [0.0, 5.0, 20.0])
def test_gates_end_on_their_target(pull: float) -> None:
    """As the optimiser moves them, against a loss that grows with all that is closed."""
    built = objective(L0Pruning(training(600), target=0.6, gate_rate=0.1))
    groups = [
        {"params": group.parameters, "lr": group.learning_rate, "maximize": group.maximize}
        for group in built.parameter_groups()
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)
    assert built.share().item() > 0.9
    for step in range(1, 601):
        optimizer.zero_grad()
        lagrangian = built(nn.Identity(), {"labels": torch.ones(1, 4)}, SimpleNamespace(), torch.tensor(4))
        (lagrangian - pull * built.share()).backward()
        optimizer.step()
        built.after_step(nn.Identity(), step, 0.0)
    assert built.share().item() == pytest.approx(0.6, abs=0.02)


def context_for(clips: Path, folder: Path) -> StepContext:
    train, validation = (
        open_data(DataConfig(str(clips / role)), sampling_rate=16_000) for role in ("train", "validation")
    )
    return StepContext(folder, train=(train,), validation=validation, language="en")


def test_an_interrupted_run_goes_on_with_its_gates_and_multipliers(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    after_step = L0Objective.after_step

    def noting(built: L0Objective, model: nn.Module, step: int, learning_rate: float) -> None:
        seen.append(step)
        after_step(built, model, step, learning_rate)

    monkeypatch.setattr(L0Objective, "after_step", noting)

    def ended(folder: Path, steps: tuple[int, ...]) -> L0Objective:
        seen.clear()
        for end in steps:  # from nothing each time, but for what is in the folder
            found = recognizer("parakeet")
            whole = training(30, schedule="constant", learning_rate=1e-5, evaluate_every=10)
            config = L0Pruning(whole, target=0.6, target_warmup=0.2, gate_rate=0.15)
            gated = list(gated_modules(found.model, ("encoder",), config.gates))
            built = L0Objective(Gates(gated, HardConcrete(), 0.9, True), gate_costs(found, gated, "parameters"), config)
            torch.manual_seed(0)
            short = replace(config, training=replace(whole, steps=end))
            fine_tune(found, short, context_for(clips, folder), folder / "work", [built])
        return built

    whole, broken = ended(tmp_path / "whole", (30,)), ended(tmp_path / "broken", (20, 30))
    assert seen == list(range(1, 31))  # and none of them twice
    assert int(broken.steps) == 30
    assert whole.share().item() < 0.9
    torch.testing.assert_close(broken.multipliers, whole.multipliers, rtol=0.02, atol=0)
    for again, once in zip(broken.gates.parameters(), whole.gates.parameters(), strict=True):
        torch.testing.assert_close(again, once, rtol=0, atol=0.1)


@pytest.mark.parametrize("architecture", ["parakeet", "wav2vec2_conformer"])
def test_what_gates_leave_can_be_factored_and_quantized(architecture: str, clips: Path, tmp_path: Path) -> None:
    left = recognizer(architecture)
    prune_at_random(left, 0.6)
    cut = left.structure.stacks["encoder"].layers
    assert any(layer.absent for layer in cut)
    assert any(layer.channels for layer in cut)
    assert any(layer.heads for layer in cut)
    config = LowRank(attention=0.99, mlp=0.99, rank_multiple=2)
    factored = compress(left, config, calibration=str(clips / "validation"))
    assert count_parameters(factored.model).total < count_parameters(left.model).total
    quantized = compress(factored, Quantization())
    assert any(isinstance(module, QuantizedLinear) for module in quantized.model.modules())
    for smaller, before, within in ((factored, left, 0.5), (quantized, factored, 0.1)):
        assert 1e-4 < (scores(smaller) - scores(before)).norm() / scores(before).norm() < within
        layers = smaller.structure.stacks["encoder"].layers
        assert [layer.absent for layer in layers] == [layer.absent for layer in left.structure.stacks["encoder"].layers]
    loaded = load(quantized.save(tmp_path / "model"))
    assert loaded.structure == quantized.structure
    torch.testing.assert_close(scores(loaded), scores(quantized), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("architecture", "gates", "least"),
    [("parakeet", ("channels",), 79), ("wav2vec2_conformer_rotary", ("heads",), 100)],
)
def test_a_target_that_these_gates_cannot_reach_is_refused(
    architecture: str, gates: Any, least: int, clips: Path
) -> None:
    step = L0Pruning(training(2), target=0.5, gates=gates)
    data = {"train": DataConfig(str(clips / "train")), "validation": DataConfig(str(clips / "validation"))}
    with pytest.raises(SottoError, match=rf"what has no gates is {least}% of the model's parameters"):
        compress(recognizer(architecture), step, language="en", **data)


def test_costs_are_found_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sotto.methods.module_times.ENOUGH", 0.0)
    found = recognizer("parakeet")
    gated = list(gated_modules(found.model, ("encoder",), ("modules", "neurons")))
    config = L0Pruning(Training(steps=1, keep="last"), constraint="latency", threads=2)
    first = kept_costs(found, gated, config, tmp_path / "work" / "costs.json")
    monkeypatch.setattr("sotto.methods.l0_pruning.gate_costs", None)
    assert kept_costs(found, gated, config, tmp_path / "work" / "costs.json") == first


def test_gates_that_start_by_taylor_are_about_their_target_at_once(clips: Path, tmp_path: Path) -> None:
    found = recognizer("parakeet")
    config = L0Pruning(training(3), target=0.6, gate_rate=1e-6, start="taylor", clips=2)
    context = context_for(clips, tmp_path)
    gated = list(gated_modules(found.model, ("encoder",), config.gates))
    costs = gate_costs(found, gated, "parameters")
    worths = kept_worths(found, gated, costs, config, context)
    again = kept_worths(recognizer("wav2vec2_conformer"), gated, costs, config, context)  # kept, not found anew
    for own, other in zip(worths, again, strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=0)

    notes = methods.handler(config)(found, config, context)

    assert "the gates learnt to leave 60" in notes[2]
    assert 0.55 <= count_parameters(found.model).total / count_parameters(recognizer("parakeet").model).total <= 0.6


def test_a_target_below_what_has_no_gates_is_refused(clips: Path) -> None:
    step = L0Pruning(training(2), target=0.02)
    data = {"train": DataConfig(str(clips / "train")), "validation": DataConfig(str(clips / "validation"))}
    with pytest.raises(
        SottoError, match=r"what has no gates is \d+% of the model's parameters; a target of 0.02 cannot"
    ):
        compress(recognizer("parakeet"), step, language="en", **data)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"target": 1.0}, "target must be between 0 and 1, found 1.0"),
        ({"open_share": 0.0}, "open_share must be between 0 and 1, found 0.0"),
        ({"gate_rate": 0.0}, "gate_rate must be positive, found 0.0"),
        ({"seconds": 5.0}, "parameters are the same for audio of any length; leave out seconds"),
        ({"constraint": "flops", "seconds": 0.0}, "seconds must be positive, found 0"),
        ({"constraint": "flops", "threads": 2}, "flops are the same on any number of threads; leave out threads"),
        ({"constraint": "latency", "threads": 0}, "threads must be at least 1, found 0"),
        ({"target_warmup": 1.5}, "target_warmup must be between 0 and 1, found 1.5"),
        ({"gates": ()}, "gates and stacks must name at least one each"),
        ({"clips": 8}, "gates that start open hear no clips before training; leave out clips"),
        (
            {"start": "taylor", "open_share": 0.5},
            "open_share is for gates of neurons and channels, with start: open",
        ),
        (
            {"gates": ("heads",), "open_share": 0.5},
            "open_share is for gates of neurons and channels, with start: open",
        ),
        ({"start": "taylor", "clips": 0}, "clips must be at least 1, found 0"),
        ({"start": "taylor", "gates": ("modules",)}, "gates must name heads, neurons or channels"),
    ],
)
def test_settings_are_checked(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SottoError, match=message):
        L0Pruning(training(2), **values)
    with pytest.raises(SottoError, match="set keep: last"):
        L0Pruning(training(2, keep="best"))


def test_a_recipe_names_it_as_other_methods() -> None:
    text = """
    l0_pruning:
      target: 0.5
      constraint: latency
      gates: [modules, neurons]
      training: {steps: 10, keep: last}
      objectives: [layerwise_distillation: {layers: 1.0}]
    """
    parsed = methods.parse(yaml.safe_load(text), "steps[0]")
    assert (parsed.constraint, parsed.gates) == ("latency", ("modules", "neurons"))
    assert parsed.objectives == (LayerwiseDistillation(layers=1.0),)
    (plain,) = methods.to_plain([parsed])
    assert methods.parse(plain, "again") == parsed
