"""Structured pruning by an importance of heads, neurons and channels that is not learnt: what learnt gates must beat.

Magnitude: the mean size of the weights that go with a unit, compared within its module (after Li et al., 2017, who
prune every layer by itself). Taylor: how much the loss would change, to first order, if what the unit says were scaled,
for what the unit costs (Michel et al., 2019, eq. 2; Molchanov et al., 2019). The size is that of the mean change over a
batch of 8 clips; Michel et al. take it for every example.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from sotto.architectures import Attention, Convolution
from sotto.augmentation import Augmentation
from sotto.checkpoint import Recognizer
from sotto.distribution import found_by_main
from sotto.errors import SottoError
from sotto.examples import Example, examples_of
from sotto.families import evaluating
from sotto.methods.gate_costs import Constraint, GateCosts, check_seconds, gate_costs
from sotto.methods.gate_decisions import Decision, around, carry_out, left_notes, share_of
from sotto.methods.gated_modules import GatedModule, Kind, gated_modules
from sotto.methods.gates import gated_by
from sotto.methods.groups import stacks_named
from sotto.methods.method import StepContext, methods
from sotto.progress import track
from sotto.surgery import get_linear, layer_path
from sotto.text import get_normalizer

BATCH = 8


@dataclass(frozen=True)
class ImportancePruning:
    """Takes out the units of least importance until `target` of the model's cost is left."""

    target: float
    constraint: Constraint = "parameters"
    seconds: float | None = None
    """length of the audio that FLOPs and time are of; without it a window of the family"""
    by: Literal["magnitude", "taylor"] = "magnitude"
    clips: int = 64
    """training clips, the first ones, over which the loss is taken"""
    transcripts: str = "none"
    """name of the normaliser that gives what the model writes of their transcripts"""
    gates: tuple[Kind, ...] = ("heads", "neurons", "channels")
    stacks: tuple[Literal["encoder", "decoder"], ...] = ("encoder", "decoder")

    def __post_init__(self) -> None:
        if not 0 < self.target < 1:
            raise SottoError(f"target must be between 0 and 1, found {self.target}")
        check_seconds(self.seconds, self.constraint)
        get_normalizer(self.transcripts)
        if self.by == "magnitude" and (self.clips, self.transcripts) != (64, "none"):
            raise SottoError("importance by magnitude hears no clips; leave out clips and transcripts")
        if self.clips < 1:
            raise SottoError(f"clips must be at least 1, found {self.clips}")
        if "modules" in self.gates or not self.gates:
            raise SottoError("gates must name heads, neurons or channels; a module goes with the last of its units")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("train",) if self.by == "taylor" else ()


@methods.register("importance_pruning", ImportancePruning)
def apply_importance_pruning(recognizer: Recognizer, config: ImportancePruning, context: StepContext) -> list[str]:
    """Prune `recognizer` in place. Raises SottoError where the target cannot be reached."""
    stacks = [stack.name for stack in stacks_named(recognizer, config.stacks)]
    gated = list(gated_modules(recognizer.model, stacks, config.gates))
    costs = found_by_main(lambda: gate_costs(recognizer, gated, config.constraint, config.seconds))  # times differ
    if config.by == "magnitude":
        sizes = [mean_sizes(recognizer.model, each) for each in gated]
        decisions = largest_of_each(gated, sizes, costs, config.target)
    else:
        changes = mean_changes(recognizer, gated, examples(recognizer, config, context), context)
        decisions = most_important(gated, changes, costs, config.target)
    left = share_of(decisions, costs)
    if left > config.target:
        raise SottoError(
            f"importance_pruning: what stays in any case is {left:.0%} of the model's {config.constraint}; "
            f"a target of {config.target:g} cannot be reached"
        )
    carry_out(recognizer.model, gated, decisions)
    return left_notes(recognizer, left, costs, config.constraint, config.target)


def largest_of_each(
    gated: Sequence[GatedModule], sizes: Sequence[torch.Tensor], costs: GateCosts, target: float
) -> list[Decision]:
    """The same share of every module's units is kept, and at least one; those without gates always are."""

    def decided(share: float) -> list[Decision]:
        return [
            Decision(1.0, largest(own, share if each.has_units else 1.0))
            for each, own in zip(gated, sizes, strict=True)
        ]

    within, _ = around(lambda share: share_of(decided(share), costs) <= target, 0.0, 1.0)
    return decided(within)


def largest(values: torch.Tensor, share: float) -> torch.Tensor:
    """1 for so large a share of the values, at least for one; 0 for the others."""
    kept = torch.zeros_like(values)
    kept[values.topk(max(1, round(share * len(values)))).indices] = 1
    return kept


def most_important(
    gated: Sequence[GatedModule], changes: Sequence[torch.Tensor], costs: GateCosts, target: float
) -> list[Decision]:
    """What is kept where all units above one change for their cost are; units without gates always are."""
    prices = [cost.costs[-1] / each.units for cost, each in zip(costs.modules, gated, strict=True)]
    values = [own.double() / price for own, price in zip(changes, prices, strict=True)]
    logs = [own.clamp(min=1e-300).log() for own in values]

    def decided(threshold: float) -> list[Decision]:
        return [
            Decision(1.0, (own > threshold).float() if each.has_units else torch.ones(each.units))
            for each, own in zip(gated, logs, strict=True)
        ]

    everything = torch.cat(logs)
    low, high = float(everything.min()) - 1, float(everything.max()) + 1
    below, _ = around(lambda kept: share_of(decided(-kept), costs) <= target, -high, -low)
    return decided(-below)


@torch.no_grad()
def mean_sizes(model: Any, gated: GatedModule) -> torch.Tensor:
    """(units,): the mean absolute value of the weights that go with each."""
    weights = torch.cat([part.abs() for part in weights_of_units(model, gated)], 1)
    return weights.mean(1)


def weights_of_units(model: Any, gated: GatedModule) -> Iterator[torch.Tensor]:
    """Weights (units, …) of all parts of a module, sorted by unit; no biases."""
    module, count = gated.module, gated.units
    if isinstance(module, Convolution):
        inward, depthwise = (
            model.get_submodule(layer_path(gated.stack, gated.layer, f"{module.name}.{part}")).weight
            for part in module.parts[:2]
        )
        yield inward.view(2, count, -1).transpose(0, 1).flatten(1)  # GLU's two halves
        yield depthwise.view(count, -1)
    else:
        for name in module.inward if isinstance(module, Attention) else (module.up,):
            yield get_linear(model, gated.stack, gated.layer, name).weight.view(count, -1)
    outward = model.get_submodule(gated.outward).weight
    yield outward.view(outward.shape[0], count, -1).transpose(0, 1).flatten(1)


def examples(recognizer: Recognizer, config: ImportancePruning, context: StepContext) -> list[Example]:
    """Raises SottoError without training clips, or without the recipe's language."""
    if not context.train or context.language is None:
        raise SottoError("importance_pruning by taylor needs data.train and language")
    for source in context.train:
        source.require_transcripts()
    written = get_normalizer(config.transcripts)
    clips = examples_of(context.train, Augmentation(), recognizer.family.longest_seconds, context.seed, written)
    return [clips[index] for index in range(min(config.clips, len(clips)))]


def mean_changes(
    recognizer: Recognizer, gated: Sequence[GatedModule], clips: list[Example], context: StepContext
) -> list[torch.Tensor]:
    """(units,) for every module: the mean over batches of |dL/dz|, L the loss a token and z what scales the unit."""
    model, family = recognizer.model, recognizer.family
    collate = family.collator(str(context.language))
    scales = [torch.ones(each.units, device=model.device, requires_grad=True) for each in gated]
    totals = [torch.zeros(each.units) for each in gated]
    starts = range(0, len(clips), BATCH)
    with evaluating(model), gated_by(model, gated, lambda *_: None, lambda index, _: scales[index]):
        for start in track(starts, "importance"):
            batch = {name: tensor.to(model.device) for name, tensor in collate(clips[start : start + BATCH]).items()}
            _, loss = family.loss(batch, 0.0)
            changes = torch.autograd.grad(loss / (batch["labels"] >= 0).sum(), scales)
            totals = [total + change.abs().cpu() for total, change in zip(totals, changes, strict=True)]
    return [total / len(starts) for total in totals]
