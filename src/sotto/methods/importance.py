"""Structured pruning by an importance of heads, neurons and channels that is not learnt: what learnt gates must beat.

Magnitude: the mean size of the weights that go with a unit, compared within its module (after Li et al., 2017, who
prune every layer by itself). Taylor: how much the loss would change, to first order, for what the unit costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from sotto.checkpoint import Recognizer
from sotto.distribution import found_by_main
from sotto.errors import SottoError
from sotto.methods.gate_costs import Constraint, GateCosts, check_constraint, gate_costs
from sotto.methods.gate_decisions import Decision, around, carry_out, left_notes, share_of
from sotto.methods.gated_modules import GatedModule, Kind, gated_modules
from sotto.methods.groups import stacks_named
from sotto.methods.method import StepContext, methods
from sotto.methods.unit_importance import first_clips, mean_changes, mean_sizes, worth
from sotto.text import get_normalizer


@dataclass(frozen=True)
class ImportancePruning:
    """Takes out the units of least importance until `target` of the model's cost is left."""

    target: float
    constraint: Constraint = "parameters"
    seconds: float | None = None
    """length of the audio that FLOPs and time are of; without it a window of the family"""
    threads: int | None = None
    """that time is on; without it as many as training has"""
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
        check_constraint(self.constraint, self.seconds, self.threads)
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
    costs = found_by_main(  # times differ
        lambda: gate_costs(recognizer, gated, config.constraint, config.seconds, config.threads)
    )
    if config.by == "magnitude":
        sizes = [mean_sizes(recognizer.model, each) for each in gated]
        decisions = largest_of_each(gated, sizes, costs, config.target)
    else:
        changes = changes_of_loss(recognizer, gated, config, context)
        decisions = most_important(gated, changes, costs, config.target)
    left = share_of(decisions, costs)
    if left > config.target:
        raise SottoError(
            f"importance_pruning: what stays in any case is {left:.0%} of the model's {config.constraint}; "
            f"a target of {config.target:g} cannot be reached"
        )
    before = recognizer.copy() if config.constraint == "latency" else None
    carry_out(recognizer.model, gated, decisions)
    return left_notes(recognizer, before, left, costs, config.constraint, config.target)


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


def changes_of_loss(
    recognizer: Recognizer, gated: Sequence[GatedModule], config: ImportancePruning, context: StepContext
) -> list[torch.Tensor]:
    """Raises SottoError without training clips, their transcripts, or the recipe's language."""
    if not context.train or context.language is None:
        raise SottoError("importance_pruning by taylor needs data.train and language")
    for source in context.train:
        source.require_transcripts()
    clips = first_clips(recognizer, context.train, config.clips, config.transcripts, context.seed)
    return mean_changes(recognizer, gated, clips, context.language)


def most_important(
    gated: Sequence[GatedModule], changes: Sequence[torch.Tensor], costs: GateCosts, target: float
) -> list[Decision]:
    """What is kept where all units above one change for their cost are; units without gates always are."""
    logs = worth(gated, changes, costs)

    def decided(threshold: float) -> list[Decision]:
        return [
            Decision(1.0, (own > threshold).float() if each.has_units else torch.ones(each.units))
            for each, own in zip(gated, logs, strict=True)
        ]

    everything = torch.cat(logs)
    low, high = float(everything.min()) - 1, float(everything.max()) + 1
    below, _ = around(lambda kept: share_of(decided(-kept), costs) <= target, -high, -low)
    return decided(-below)
