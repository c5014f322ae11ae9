"""What parts of an encoder cost by their size, a rank or a head dimension, and which sizes keep to a budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from sotto.errors import SottoError
from sotto.low_rank_math import Curve, allocate

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class PartCost:
    """The cost of a part as it stands (`whole`), and at the `sizes` that pay: sizes and `costs` ascend."""

    whole: float
    sizes: tuple[int, ...]
    costs: tuple[float, ...]


@dataclass(frozen=True)
class EncoderCosts(Generic[Key]):
    """`total` is the cost of all of the encoder; `parts` by where they are."""

    total: float
    parts: Mapping[Key, PartCost]

    def left(self, sizes: Mapping[Key, int]) -> float:
        """The share of the total that is left with parts of these sizes."""
        saved = 0.0
        for place, size in sizes.items():
            part = self.parts[place]
            saved += part.whole - part.costs[part.sizes.index(size)]
        return 1 - saved / self.total


def paying(whole: float, costs: Mapping[int, float]) -> PartCost:
    """Without the sizes that cost no less than the part as it stands, or than a larger size."""
    least = whole
    kept = {}
    for size in sorted(costs, reverse=True):
        if costs[size] < least:
            kept[size] = least = costs[size]
    return PartCost(whole, tuple(sorted(kept)), tuple(sorted(kept.values())))


def sizes_within(
    share: float, costs: EncoderCosts[Key], errors: Callable[[Key, int], float], method: str, remedy: str
) -> dict[Key, int]:
    """The sizes that leave the least sum of errors where no more than `share` of the total is left.

    A part that is not named stays as it is. Raises SottoError, with a `remedy`, where no sizes meet the budget.
    """
    curves = [
        Curve((*part.costs, part.whole), (*(errors(place, size) for size in part.sizes), 0.0))
        for place, part in costs.parts.items()
    ]
    fixed = costs.total - sum(curve.costs[-1] for curve in curves)  # what the sizes cannot change
    chosen = allocate(curves, share * costs.total - fixed)
    if chosen is None:
        least = math.ceil(100 * (fixed + sum(curve.costs[0] for curve in curves)) / costs.total) / 100
        raise SottoError(
            f"the budget {share:g} cannot be met by {method}: the least that can be left is {least:.2f}{remedy}"
        )
    picked = zip(costs.parts.items(), chosen, strict=True)
    return {place: part.sizes[index] for (place, part), index in picked if index < len(part.sizes)}


def time_note(total: float, left: float, where: str) -> str:
    """What was measured there, and what is expected of the chosen sizes."""
    return (
        f"the encoder takes {total:.3g} s over a window in {where} here; "
        f"{100 * left:.0f} % of it are expected to be left"
    )
