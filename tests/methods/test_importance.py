"""Importance of units: by hand, by the change of the loss, and what is taken out for a budget."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from recognizers import ARCHITECTURES, recognizer, scores
from sotto import compress
from sotto.checkpoint import Recognizer
from sotto.data import DataConfig, open_data
from sotto.errors import SottoError
from sotto.methods import ImportancePruning, StepContext, methods
from sotto.methods.gate_costs import GateCosts, ModuleCost, gate_costs
from sotto.methods.gate_decisions import share_of
from sotto.methods.gated_modules import GatedModule, gated_modules
from sotto.methods.importance import (
    largest,
    largest_of_each,
    most_important,
)
from sotto.methods.unit_importance import first_clips, mean_changes, mean_sizes, weights_of_units
from sotto.metrics.cost import count_parameters
from tones import PITCHES, write_folder

UNITS = ("heads", "neurons", "channels")
STACKS = ("encoder", "decoder")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("importance") / "clips"
    write_folder(folder, list(PITCHES), [0.5, 0.6, 0.7, 0.8])
    return folder


def modules_of(found: Recognizer) -> list[GatedModule]:
    return list(gated_modules(found.model, STACKS, UNITS))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_weights_of_a_unit_are_those_that_go_with_it(architecture: str) -> None:
    """Taking units out takes just their weights out, biases and norms aside."""
    found = recognizer(architecture)
    for each in modules_of(found)[:4]:
        if not each.has_units:
            continue
        weights = torch.cat(list(weights_of_units(found.model, each)), 1)
        assert weights.shape[0] == each.units
        paths = [path for path in each.parts if "norm" not in path]
        parts = [found.model.get_submodule(path) for path in paths]
        before = sum(
            p.numel() for part in parts for name, p in part.named_parameters() if p.ndim > 1 and "bias" not in name
        )
        kept = [0, each.units - 1]
        sizes = mean_sizes(found.model, each)
        torch.testing.assert_close(sizes, weights.abs().mean(1))
        each.keep(found.model, kept)
        parts = [found.model.get_submodule(path) for path in paths]
        after = sum(
            p.numel() for part in parts for name, p in part.named_parameters() if p.ndim > 1 and "bias" not in name
        )
        assert before - after == weights[0].numel() * (each.units - 2)
        again = replace(each, units=2)
        torch.testing.assert_close(mean_sizes(found.model, again), sizes[kept])


def test_the_change_of_the_loss_is_what_scaling_a_unit_does(clips: Path) -> None:
    found = recognizer("parakeet")
    gated = modules_of(found)
    context = StepContext(Path(), train=(open_data(DataConfig(str(clips)), sampling_rate=16_000),), language="en")
    batch = first_clips(found, context.train, 3, "none", context.seed)
    assert len(batch) == 3
    changes = mean_changes(found, gated, batch, "en")
    collated = found.family.collator("en")(batch)

    def loss(scaled: Recognizer) -> float:
        with torch.no_grad():
            return found.family.__class__(scaled.model, found.processor).loss(collated, 0.0)[1].item() / tokens

    tokens = int((collated["labels"] >= 0).sum())
    for index in (0, 1, 2):
        each, step = gated[index], 0.05
        largest = int(changes[index].argmax())
        sides = []
        for sign in (1, -1):
            scaled = found.copy()
            outward: Any = scaled.model.get_submodule(each.outward)
            own = slice(largest * each.channels, (largest + 1) * each.channels)
            with torch.no_grad():
                outward.weight[:, own] *= 1 + sign * step
            sides.append(loss(scaled))
        assert abs(sides[0] - sides[1]) / (2 * step) == pytest.approx(changes[index][largest].item(), rel=0.05)
    assert scores(found).isfinite().all()
    assert not any(parameter.grad is not None for parameter in found.model.parameters())


def test_the_least_for_its_price_goes_first_by_hand() -> None:
    found = recognizer("whisper")
    (first, second, *_) = modules_of(found)
    costs = GateCosts((ModuleCost((0, 2), (0.0, 8.0)), ModuleCost((0, 2), (0.0, 2.0))), rest=0.0, whole=10.0)
    pair = [
        GatedModule(each.stack, each.layer, each.module, each.outward, 2, each.channels, True)
        for each in (first, second)
    ]
    changes = [torch.tensor([8.0, 4.0]), torch.tensor([1.5, 0.5])]  # for its price: 2, 1; 1.5, 0.5
    for target, kept in [(1.0, [[0, 1], [0, 1]]), (0.95, [[0, 1], [0]]), (0.6, [[0], [0]]), (0.45, [[0], []])]:
        decisions = most_important(pair, changes, costs, target)
        assert [decision.kept for decision in decisions] == kept, target


@pytest.mark.parametrize(
    ("share", "kept"), [(1.0, [1, 1, 1, 1]), (0.5, [0, 1, 0, 1]), (0.3, [0, 0, 0, 1]), (0.0, [0, 0, 0, 1])]
)
def test_the_largest_by_hand(share: float, kept: list[int]) -> None:
    assert largest(torch.tensor([1.0, 3.0, 2.0, 4.0]), share).tolist() == kept


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("target", [0.75, 0.6])
def test_every_module_keeps_the_same_share_however_large_its_weights_are(architecture: str, target: float) -> None:
    found = recognizer(architecture)
    gated = modules_of(found)
    costs = gate_costs(found, gated, "parameters")
    sizes = [mean_sizes(found.model, each) * (10.0**index) for index, each in enumerate(gated)]
    decisions = largest_of_each(gated, sizes, costs, target)
    assert share_of(decisions, costs) <= target
    shares = [
        len(decision.kept) / each.units for each, decision in zip(gated, decisions, strict=True) if each.has_units
    ]
    coarsest = max(1 / each.units for each in gated if each.has_units)
    assert 0 < min(shares) < 1
    assert max(shares) <= min(shares) + coarsest


@pytest.mark.parametrize("by", ["magnitude", "taylor"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_is_pruned_to_its_target(architecture: str, by: Any, clips: Path, tmp_path: Path) -> None:
    found = recognizer(architecture)
    config = ImportancePruning(0.7, by="taylor", clips=2) if by == "taylor" else ImportancePruning(0.7)
    pruned = compress(found, config, train=str(clips), language="en")
    left = count_parameters(pruned.model).total / count_parameters(found.model).total
    assert 0.55 <= left <= 0.7
    assert scores(pruned).isfinite().all()
    pruned.save(tmp_path / "model")


def test_of_time_what_is_expected_and_what_is_measured_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    found, dense = recognizer("parakeet"), count_parameters(recognizer("parakeet").model).total
    costs = replace(gate_costs(found, modules_of(found), "parameters"), length=10.0)
    monkeypatch.setattr("sotto.methods.importance.gate_costs", lambda *_: costs)
    monkeypatch.setattr(
        "sotto.methods.gate_decisions.whole_seconds", lambda heard, _: count_parameters(heard.model).total
    )
    config = ImportancePruning(0.7, "latency")
    expected, measured = methods.handler(config)(found, config, StepContext(Path()))
    left = f"{count_parameters(found.model).total / dense:.1%}"
    assert expected.startswith(f"{left} of the latency of 10 s are expected to be left")
    assert f"measured to take {left} of the latency before" in measured


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"target": 1.5}, "target must be between 0 and 1, found 1.5"),
        ({"target": 0.5, "seconds": 5.0}, "parameters are the same for audio of any length; leave out seconds"),
        ({"target": 0.5, "constraint": "flops", "seconds": 0.0}, "seconds must be positive, found 0"),
        (
            {"target": 0.5, "constraint": "flops", "threads": 2},
            "flops are the same on any number of threads; leave out threads",
        ),
        ({"target": 0.5, "constraint": "latency", "threads": 0}, "threads must be at least 1, found 0"),
        ({"target": 0.5, "clips": 8}, "importance by magnitude hears no clips; leave out clips and transcripts"),
        ({"target": 0.5, "by": "taylor", "clips": 0}, "clips must be at least 1, found 0"),
        ({"target": 0.5, "gates": ("modules",)}, "gates must name heads, neurons or channels"),
    ],
)
def test_settings_are_checked(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SottoError, match=message):
        ImportancePruning(**values)


def test_what_cannot_be_is_said(clips: Path) -> None:
    with pytest.raises(SottoError, match=r"what stays in any case is \d+% of the model's parameters"):
        compress(recognizer("parakeet"), ImportancePruning(0.01), language="en")
    with pytest.raises(SottoError, match=r"importance_pruning by taylor needs data.train and language"):
        compress(recognizer("parakeet"), ImportancePruning(0.5, by="taylor"), language="en")
