"""Which weights are small by the statistics of their own matrix: tensors only."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from sotto.methods.group_math import Members, scale_groups, squared_norms

RATIOS = (0.3, 0.5, 0.7)  # of the smallest weights that go, by how much a tensor's weights vary


def zero_small_elements(weight: torch.Tensor, factor: float) -> None:
    """Zero all that is smaller than `factor` standard deviations of the matrix. In place."""
    weight[weight.abs() < factor * weight.std()] = 0.0


def zero_small_groups(members: Members, count: int, factor: float) -> None:
    """Zero the groups whose norm is below the mean norm plus `factor` (mostly negative) deviations. In place."""
    norms = squared_norms(members, count).sqrt()
    scale_groups(members, (norms >= norms.mean() + factor * norms.std(correction=0)).to(norms.dtype))


def ratios_by_variation(weights: Sequence[torch.Tensor]) -> list[float]:
    """The share of every tensor that goes by its coefficient of variation, std / |mean|.

    0.3 up to the 33rd percentile of all tensors, 0.5 up to the 66th, 0.7 above (Hanumanthaiah et al., 2025, as in the
    code of its authors). A mean of zero counts as no variation, as there.
    """
    means = torch.stack([weight.mean().abs() for weight in weights])
    deviations = torch.stack([weight.std() for weight in weights])
    variation = torch.where(means > 0, deviations / means, 0.0)
    low, high = torch.quantile(variation, torch.tensor([0.33, 0.66], device=variation.device))
    return [RATIOS[int(value > low) + int(value > high)] for value in variation]


def zero_smallest(weight: torch.Tensor, share: float) -> None:
    """Zero the given share of the elements, the smallest ones. In place."""
    count = int(share * weight.numel())
    if count:
        weight[weight.abs() <= weight.abs().flatten().kthvalue(count).values] = 0.0


def largest_accepted(low: float, high: float, steps: int, accepted: Callable[[float], bool]) -> float | None:
    """By bisection, the largest value between `low` and `high` that is accepted; None where `low` is not.

    What is accepted is taken to be all that is small enough; the end `high` is tried first.
    """
    if accepted(high):
        return high
    if not accepted(low):
        return None
    for _ in range(steps):
        middle = (low + high) / 2
        if accepted(middle):
            low = middle
        else:
            high = middle
    return low
