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
    """Zero the groups whose norm is below the mean norm plus `factor` (mostly negative) deviations. In place.

    The largest stays.
    """
    norms = squared_norms(members, count).sqrt()
    kept = (norms >= norms.mean() + factor * norms.std(correction=0)) | (norms == norms.max())
    scale_groups(members, kept.to(norms.dtype))


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


def zero_smallest(weights: Sequence[torch.Tensor], share: float) -> None:
    """Zero the given share of the elements of all matrices together, the smallest ones. In place."""
    smallest = among_smallest(torch.cat([weight.abs().flatten() for weight in weights]), share)
    for weight, gone in zip(weights, smallest.split([weight.numel() for weight in weights]), strict=True):
        weight[gone.view_as(weight)] = 0.0


def among_smallest(values: torch.Tensor, share: float) -> torch.Tensor:
    """Where the smallest `share` of the values are, and no more of them where some are equal."""
    found = torch.zeros_like(values, dtype=torch.bool)
    found[values.topk(round(share * values.numel()), largest=False).indices] = True
    return found


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
