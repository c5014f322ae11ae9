"""Pruning by magnitude: what other ways of pruning have to be better than.

One-shot: the smallest weights go at once. Iterative (Han et al., 2015): they go in rounds, with training in between
that holds what is gone at zero. Structured: whole heads and neurons with the least L1 norm (Li et al., 2017).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from sotto.checkpoint import Recognizer
from sotto.errors import SottoError
from sotto.methods.fine_tuning import FineTuning, fine_tune
from sotto.methods.group_math import Members, group_size, scale_groups
from sotto.methods.groups import groups_of, stacks_named, weight_of
from sotto.methods.hold_zeros import HoldZeros
from sotto.methods.method import StepContext, methods
from sotto.methods.removal import remove_idle
from sotto.methods.thresholds import among_smallest, zero_smallest
from sotto.surgery import linears_of

Scope = Literal["layer", "global"]


@dataclass(frozen=True)
class MagnitudePruning:
    """Zeroes the share `share` of the weights of all linears in the layers of the stacks."""

    share: float
    scope: Scope = "global"
    """layer: the same share of every matrix. global: the smallest of all, so that shares differ"""
    rounds: int = 1
    """the weights that are left after each round are the same share of those before it"""
    recovery: FineTuning | None = None
    """after every round, with the zeros held; `steps` are those of all rounds together"""
    stacks: tuple[Literal["encoder", "decoder"], ...] = ("encoder", "decoder")
    remove: bool = True
    """take out heads and neurons that are left with nothing to do"""

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise SottoError(f"share must be between 0 and 1, found {self.share}")
        if self.rounds < 1:
            raise SottoError(f"rounds must be at least 1, found {self.rounds}")
        if self.recovery is None and self.rounds > 1:
            raise SottoError("rounds without recovery in between are one round; give recovery, or leave rounds out")
        if self.recovery is not None and self.recovery.training.steps < self.rounds:
            raise SottoError(f"recovery has {self.recovery.training.steps} steps for {self.rounds} rounds; give more")

    @property
    def needs(self) -> tuple[str, ...]:
        return FineTuning.needs if self.recovery is not None else ()


@dataclass(frozen=True)
class StructuredMagnitude:
    """Takes out the share of heads and the share of neurons with the least L1 norm."""

    heads: float = 0.0
    neurons: float = 0.0
    scope: Scope = "layer"
    stacks: tuple[Literal["encoder", "decoder"], ...] = ("encoder", "decoder")

    def __post_init__(self) -> None:
        for name in ("heads", "neurons"):
            if not 0 <= getattr(self, name) < 1:
                raise SottoError(f"{name} must be at least 0 and below 1, found {getattr(self, name)}")
        if not self.heads and not self.neurons:
            raise SottoError("give heads, neurons or both")


@methods.register("magnitude_pruning", MagnitudePruning)
def apply_magnitude_pruning(recognizer: Recognizer, config: MagnitudePruning, context: StepContext) -> list[str]:
    """Prune `recognizer` in place. Raises SottoError for a linear that is factored."""
    model = recognizer.model
    stacks = stacks_named(recognizer, config.stacks)
    matrices = [weight_of(model, *place) for place in linears_of(model) if place[0] in stacks]
    if not matrices:
        raise SottoError(f"magnitude_pruning: there are no linears left in the layers of {' and '.join(config.stacks)}")
    notes = []
    for number in range(1, config.rounds + 1):
        share = 1 - (1 - config.share) ** (number / config.rounds)
        with torch.no_grad():
            for weights in [[weight] for weight in matrices] if config.scope == "layer" else [matrices]:
                zero_smallest(weights, share)
        if config.recovery is not None:
            wer = recovered(recognizer, config, context, number)
            notes.append(f"round {number}: {share:.1%} pruned, validation WER {wer:.2%} after recovery")
    if not notes:
        notes = [f"{config.share:.1%} pruned at once"]
    if config.remove:
        notes.append(str(remove_idle(model)))
    return notes


def recovered(recognizer: Recognizer, config: MagnitudePruning, context: StepContext, number: int) -> float:
    """Validation WER after the training of round `number`, which is the same part of all steps in every round."""
    recovery = config.recovery
    assert recovery is not None
    whole = recovery.training
    own = whole.steps * number // config.rounds - whole.steps * (number - 1) // config.rounds
    training = replace(
        whole,
        steps=own,
        warmup_steps=whole.warmup_steps * own // whole.steps,
        evaluate_every=min(whole.evaluate_every, own),
        seed=whole.seed + number - 1,  # other clips first, varied in another way
    )
    held = replace(recovery, training=training, objectives=(*recovery.objectives, HoldZeros()))
    return fine_tune(recognizer, held, context, context.folder / f"round-{number}")


@methods.register("structured_magnitude", StructuredMagnitude)
def apply_structured_magnitude(recognizer: Recognizer, config: StructuredMagnitude, context: StepContext) -> list[str]:
    """Take heads and neurons out of `recognizer` in place; every module keeps at least one.

    Raises SottoError where heads are to go and no attention can lose any.
    """
    model = recognizer.model
    stacks = stacks_named(recognizer, config.stacks)
    if config.heads and all(attention.head_count is None for stack in stacks for attention in stack.attentions):
        raise SottoError("structured_magnitude: attention with rotary positions keeps its heads; leave out heads")
    for kind, share in (("head", config.heads), ("neuron", config.neurons)):
        sets = [
            (groups.members(model), groups.count)
            for stack in stacks
            for groups in groups_of(model, stack, "head", "neuron")
            if groups.kind == kind
        ]
        with torch.no_grad():
            zero_least_groups(sets, share, config.scope)
    return [str(remove_idle(model))]


def zero_least_groups(sets: Sequence[tuple[Members, int]], share: float, scope: Scope) -> None:
    """Zero the `share` of the groups with the least L1 norm, of each set or of all together. In place."""
    if not sets:
        return
    norms = [mean_absolute(members, count) for members, count in sets]
    if scope == "layer":
        least = [among_smallest(own, share) for own in norms]
    else:
        least = list(among_smallest(torch.cat(norms), share).split([len(own) for own in norms]))
    for (members, _), own, gone in zip(sets, norms, least, strict=True):
        scale_groups(members, (~gone | (own == own.max())).to(own.dtype))


def mean_absolute(members: Members, count: int) -> torch.Tensor:
    """(count,): the mean size of a weight in every group, so that sets of other sizes compare."""
    sums: Any = sum(weight.abs().sum(1 - axis).view(count, -1).sum(1) for weight, axis in members)
    return sums / group_size(members, count)  # type: ignore[no-any-return]
