"""Which dimension the heads of every attention get: one for all, by an energy threshold, or within a budget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sotto.checkpoint import Recognizer
from sotto.data import ClipSource
from sotto.errors import SottoError
from sotto.head_reduction_math import HeadBases
from sotto.low_rank_math import Curve, allocate
from sotto.methods.divergence import divergence, transcripts_of
from sotto.methods.head_narrowing import AttentionPlace, narrow
from sotto.methods.head_reduction_config import HeadReduction
from sotto.methods.sensitivity import spread
from sotto.metrics.cost import count_parameters, encoder_flops, flops_by_module
from sotto.progress import track
from sotto.surgery import head_dim_of, layer_path

COMPARED_WINDOWS = 8  # the same for all choices, so few of them tell


def choose_head_dims(
    recognizer: Recognizer, config: HeadReduction, bases: Mapping[AttentionPlace, HeadBases], clips: ClipSource
) -> dict[AttentionPlace, int]:
    """The head dimension of every attention whose heads are to be narrower."""
    now = {place: head_dim_of(recognizer.model, *place) for place in bases}
    if config.head_dim is not None:
        return {place: config.head_dim for place in bases if config.head_dim < now[place]}
    if config.threshold is not None:
        return by_threshold(config.threshold, config.multiple, now, bases)
    return by_budget(recognizer, config, now, bases, clips)


def by_threshold(
    threshold: float, multiple: int, now: Mapping[AttentionPlace, int], bases: Mapping[AttentionPlace, HeadBases]
) -> dict[AttentionPlace, int]:
    """The smallest multiple that holds more than the threshold of scores and of outputs, for each attention by itself."""
    found = {}
    for place, basis in bases.items():
        enough = [dim for dim in range(multiple, now[place], multiple) if basis.shares[dim - 1] > threshold]
        if enough:
            found[place] = enough[0]
    return found


def by_budget(
    recognizer: Recognizer,
    config: HeadReduction,
    now: Mapping[AttentionPlace, int],
    bases: Mapping[AttentionPlace, HeadBases],
    clips: ClipSource,
) -> dict[AttentionPlace, int]:
    """The dimensions that move the model least within the budget, where what single attentions move adds up.

    Raises SottoError where no dimensions meet the budget.
    """
    share, total, per_channel = budget_of(recognizer, config, now)
    choices = {place: range(config.multiple, now[place], config.multiple) for place in now}
    moved = divergences(recognizer, choices, bases, clips)
    curves = [
        Curve(
            tuple(per_channel[place] * dim for dim in (*choices[place], now[place])),
            (*(moved[place, dim] for dim in choices[place]), 0.0),
        )
        for place in now
    ]
    fixed = total - sum(curve.costs[-1] for curve in curves)
    chosen = allocate(curves, share * total - fixed)
    if chosen is None:
        least = (fixed + sum(curve.costs[0] for curve in curves)) / total
        raise SottoError(f"{least}")
    picked = {place: (*choices[place], None)[index] for place, index in zip(now, chosen, strict=True)}
    return {place: dim for place, dim in picked.items() if dim is not None}
