"""Groups of weights that stand or fall together, and what a sparse group lasso does to them: tensors only.

A group set cuts one axis of each of its member matrices into the same number of equal blocks; group i is block i of
every member. The columns of a matrix are a set with one member and axis 1; the neurons of a feed-forward network are
the rows of the linear into it together with the columns of the linear out of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch

GroupNorm = Literal["l2", "l2_squared"]

Members = Sequence[tuple[torch.Tensor, int]]
"""matrices (outputs, inputs), and the axis of each that the groups cut"""


def squared_norms(members: Members, count: int) -> torch.Tensor:
    """(count,): the sum of the squared weights of every group."""
    total = torch.zeros(count, device=members[0][0].device)
    for weight, axis in members:
        total = total + weight.square().sum(1 - axis).view(count, -1).sum(1)
    return total


def group_size(members: Members, count: int) -> int:
    """Weights in one group."""
    return sum(weight.numel() for weight, _ in members) // count


def group_penalty(members: Members, count: int, norm: GroupNorm) -> torch.Tensor:
    """Sum over the groups of sqrt(size) times the norm (Simon et al., 2013, eq. 3), or of the squared norm.

    The squared form is the square of all weights together: it makes groups small, and none of them zero.
    """
    squares = squared_norms(members, count)
    if norm == "l2_squared":
        return squares.sum()
    # The root has no gradient at zero, where a group that is gone should stay: it gets none.
    norms = torch.where(squares > 0, squares, 1.0).sqrt()
    total = torch.where(squares > 0, norms, 0.0).sum()
    return math.sqrt(group_size(members, count)) * total


def scale_groups(members: Members, factors: torch.Tensor) -> None:
    """Multiply every weight by the factor of its group; `factors` has shape (count,). In place."""
    for weight, axis in members:
        along = factors.repeat_interleave(weight.shape[axis] // len(factors)).to(weight.dtype)
        weight.mul_(along.unsqueeze(1 - axis))


def shrink_elements(weight: torch.Tensor, amount: float) -> None:
    """The proximal operator of `amount` times the sum of absolute values: soft thresholding, in place."""
    weight.copy_(weight.sign() * (weight.abs() - amount).clamp(min=0))


def shrink_groups(members: Members, count: int, amount: float, norm: GroupNorm) -> None:
    """The proximal operator of `amount` times `group_penalty`, in place.

    l2: every group is shortened by amount * sqrt(size), and is zero where it was no longer than that (Yuan and Lin,
    2006). l2_squared: every weight is divided by 1 + 2 * amount.
    """
    if norm == "l2_squared":
        factors = torch.full((count,), 1 / (1 + 2 * amount), device=members[0][0].device)
    else:
        norms = squared_norms(members, count).sqrt()
        shortened = (norms - amount * group_size(members, count) ** 0.5).clamp(min=0)
        factors = torch.where(norms > 0, shortened / norms.clamp(min=torch.finfo(norms.dtype).tiny), 0.0)
    scale_groups(members, factors)
