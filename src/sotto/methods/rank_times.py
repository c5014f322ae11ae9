"""How long a linear takes by its rank."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MEASURED_RANKS = 6


@dataclass(frozen=True)
class RankTimes:
    """Seconds of a dense linear (`whole`), and as two factors of some `ranks`, which ascend."""

    whole: float
    ranks: tuple[int, ...]
    seconds: tuple[float, ...]

    def at(self, rank: int) -> float:
        """As two factors of that rank: straight lines between those measured, beyond them the time of the nearest."""
        return float(np.interp(rank, self.ranks, self.seconds))


def measured_ranks(inputs: int, outputs: int, multiple: int) -> tuple[int, ...]:
    """Multiples of `multiple`, evenly from it to the largest at which two factors are no larger than the linear."""
    largest = inputs * outputs // (inputs + outputs) // multiple
    steps = np.linspace(1, max(largest, 1), MEASURED_RANKS).round().astype(int)
    return tuple(multiple * step for step in sorted(set(steps.tolist())))
