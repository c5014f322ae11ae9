"""Pruning by the statistics of the weights, without retraining, after TSPAR (Mudi et al., 2025, arXiv:2510.12666).

Of the paper's algorithm no more is known than that it has two passes and adapts to the statistics of the weights. Both
rules here are reconstructions: `statistics` is ours; `cov_percentile` is that of a paper with nearly the same words
(Hanumanthaiah et al., CSCN 2025), and is not to be called TSPAR's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from sotto.checkpoint import Recognizer
from sotto.errors import SottoError
from sotto.methods.gathering import GatherTimes
from sotto.methods.groups import AttentionGroups, FeedForwardGroups, Groups, groups_of, stacks_named
from sotto.methods.method import StepContext, methods
from sotto.methods.removal import gather_unheard, remove_idle
from sotto.methods.thresholds import (
    largest_accepted,
    ratios_by_variation,
    zero_small_elements,
    zero_small_groups,
    zero_smallest,
)

ELEMENT_RANGE = (0.0, 2.0)  # standard deviations; of a normal matrix a twentieth is beyond the end
SEARCH_STEPS = 6
GROUP_RANGE = (-4.0, 1.0)  # deviations of the norms from their mean


@dataclass(frozen=True)
class AdaptivePruning:
    """Pass 1 zeroes elements, pass 2 groups; then what surgery can take out is taken out."""

    rule: Literal["statistics", "cov_percentile"] = "statistics"
    element: float | None = None
    """pass 1 zeroes what is smaller than this many standard deviations of its matrix; searched for if not given"""
    group: float | None = None
    """pass 2 zeroes groups whose norm, after pass 1, is below the mean norm of its set plus this many deviations;
    searched for if not given"""
    wer_increase: float | None = None
    """what the search may cost: points of validation WER above the model before this step, and no more than the recipe
    accepts against its base. Without it: that, or nothing where the recipe has no `accept`"""
    search_steps: int = SEARCH_STEPS
    """halvings of the range in the search for one threshold"""
    attention: AttentionGroups = "column"
    feed_forward: FeedForwardGroups = "column"
    stacks: tuple[Literal["encoder", "decoder"], ...] = ("encoder", "decoder")
    remove: bool = True
    """take out heads and neurons that are left with nothing to do"""
    gather: bool = True
    """drop the empty columns of other linears where hearing the rest only is measured to be faster on this machine"""

    def __post_init__(self) -> None:
        if self.rule == "cov_percentile" and (
            any(value is not None for value in (self.element, self.group, self.wer_increase))
            or (self.attention, self.feed_forward, self.search_steps) != ("column", "column", SEARCH_STEPS)
        ):
            raise SottoError(
                "rule cov_percentile has thresholds of its own, and no groups; "
                "leave out element, group, wer_increase, search_steps, attention and feed_forward"
            )
        if not self.searches and (self.wer_increase is not None or self.search_steps != SEARCH_STEPS):
            raise SottoError(
                "wer_increase and search_steps are of a search, and the thresholds are given; leave these out, or those"
            )
        if self.element is not None and not self.element >= 0:
            raise SottoError(f"element must not be negative, found {self.element}")
        if self.wer_increase is not None and self.wer_increase < 0:
            raise SottoError(f"wer_increase must not be negative, found {self.wer_increase}")
        if self.search_steps < 0:
            raise SottoError(f"search_steps must not be negative, found {self.search_steps}")
        if not self.stacks:
            raise SottoError("stacks must name encoder, decoder or both")

    @property
    def needs(self) -> tuple[str, ...]:
        return ("validation",) if self.searches else ()

    @property
    def searches(self) -> bool:
        return self.rule == "statistics" and (self.element is None or self.group is None)


@methods.register("adaptive_pruning", AdaptivePruning)
def apply_adaptive_pruning(recognizer: Recognizer, config: AdaptivePruning, context: StepContext) -> list[str]:
    """Prune `recognizer` in place.

    Raises SottoError where thresholds are searched without validation clips, or nothing is left to prune.
    """
    if config.searches and context.validation_wer is None:
        raise SottoError(
            "adaptive_pruning searches for thresholds by validation WER; give data.validation, or element and group"
        )
    model = recognizer.model
    stacks = stacks_named(recognizer, config.stacks)
    named = " and ".join(stack.name for stack in stacks)
    sets = [groups for stack in stacks for groups in groups_of(model, stack, config.attention, config.feed_forward)]
    if not sets:
        raise SottoError(f"adaptive_pruning: there are no linears left in the layers of {named}")
    if config.rule == "cov_percentile":
        prune_by_variation(matrices(model, sets))
        notes = ["elements pruned by the coefficient of variation of their tensor"]
    else:
        notes = prune_by_statistics(recognizer, config, sets, context)
    weights = matrices(model, sets)
    zero = sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)
    notes.append(f"{zero:.1%} of the weights of all linears in {named} are zero")
    if config.remove:
        notes.append(str(remove_idle(model)))
    if config.gather:
        count = gather_unheard(model, GatherTimes(recognizer).pays)
        notes.append(f"{count} linears hear a part of their inputs only")
    return notes


def matrices(model: Any, sets: Sequence[Groups]) -> list[torch.Tensor]:
    return [weight for groups in sets for weight, _ in groups.members(model)]


@torch.no_grad()
def prune_by_variation(weights: Sequence[torch.Tensor]) -> None:
    for weight, share in zip(weights, ratios_by_variation(weights), strict=True):
        zero_smallest([weight], share)


@dataclass(frozen=True)
class Pruner:
    """The matrices of a model as they were, to be pruned to one pair of thresholds after the other."""

    model: Any
    sets: Sequence[Groups]
    before: Sequence[torch.Tensor]

    @torch.no_grad()
    def prune(self, element: float, group: float | None) -> None:
        """Both passes, or the first alone; `element` 0 and no `group` give back what was."""
        for weight, original in zip(matrices(self.model, self.sets), self.before, strict=True):
            weight.copy_(original)
            zero_small_elements(weight, element)
        if group is not None:
            for groups in self.sets:
                zero_small_groups(groups.members(self.model), groups.count, group)


def prune_by_statistics(
    recognizer: Recognizer, config: AdaptivePruning, sets: Sequence[Groups], context: StepContext
) -> list[str]:
    """Prune to thresholds that are given, or to the largest that keep validation WER within the bound."""
    before = [weight.detach().clone() for weight in matrices(recognizer.model, sets)]
    pruner = Pruner(recognizer.model, sets, before)
    element, group, notes = config.element, config.group, []
    if config.searches:
        try:
            element, group, note = searched(recognizer, pruner, config, context)
        except BaseException:
            pruner.prune(0.0, None)
            raise
        notes.append(note)
    assert element is not None
    pruner.prune(element, group)
    shown = "no group" if group is None else f"groups below the mean norm {group:+.3g} deviations"
    return [f"zeroed: elements below {element:.3g} standard deviations, {shown}", *notes]


def searched(
    recognizer: Recognizer, pruner: Pruner, config: AdaptivePruning, context: StepContext
) -> tuple[float, float | None, str]:
    """Thresholds within the bound, and a note on all that was tried.

    Where both are searched, the first pass may use half of what the bound leaves, so that something is left for the
    second, which alone makes a dense engine faster. Raises SottoError where a given threshold breaks the bound alone.
    """
    assert context.validation_wer is not None
    validation_wer = context.validation_wer
    start = validation_wer(recognizer)
    bound = bound_of(start, config, context)
    tried: list[str] = []

    def accepted(element: float, group: float | None, most: float) -> bool:
        pruner.prune(element, group)
        wer = validation_wer(recognizer)
        tried.append(f"{element:.3g}/{'none' if group is None else format(group, '.3g')}: {wer:.2%}")
        return wer <= most

    element, group = config.element, config.group
    if element is None:
        most = start + (bound - start) / 2 if group is None else bound
        element = largest_accepted(*ELEMENT_RANGE, config.search_steps, lambda value: accepted(value, group, most))
        if element is None:
            assert group is not None  # without a threshold the model is what it was, which is within every bound
            raise breaks("group", group, bound)
    elif not accepted(element, None, bound):
        raise breaks("element", element, bound)
    if group is None:
        known = element
        group = largest_accepted(*GROUP_RANGE, config.search_steps, lambda value: accepted(known, value, bound))
    return element, group, f"validation WER {start:.2%} before; tried (element/group): {', '.join(tried)}"


def bound_of(start: float, config: AdaptivePruning, context: StepContext) -> float:
    """The most that validation WER may be, never below what it is before the step."""
    bounds = [] if config.wer_increase is None else [start + config.wer_increase / 100]
    bounds += [] if context.accepted_wer is None else [context.accepted_wer]
    return max(start, min(bounds, default=start))


def breaks(name: str, value: float, bound: float) -> SottoError:
    return SottoError(f"{name} {value:g} alone raises validation WER above {bound:.2%}; lower it, or leave it out")
