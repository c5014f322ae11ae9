"""The mathematics of low rank: principal directions, ranks by energy, ranks within a budget, factors.

After LiteASR (Kamahori et al., 2025, arXiv:2502.20583); equation numbers are the paper's. All in float64. A linear is
y = W x + b with W (outputs, inputs), as torch has it; the paper's matrices are transposed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

NEGLIGIBLE = 1e-12  # energy, as a share of the largest, below which a direction is rounding error


@dataclass(frozen=True)
class Principal:
    """Mean, energies (variances, descending) and directions (columns, orthonormal) of a linear's outputs."""

    mean: torch.Tensor
    energies: torch.Tensor
    directions: torch.Tensor


@dataclass(frozen=True)
class Factors:
    """`first` (rank, inputs), `second` (outputs, rank) and `bias` (outputs,) of a factored linear."""

    first: torch.Tensor
    second: torch.Tensor
    bias: torch.Tensor


def principal_of_outputs(mean: torch.Tensor, covariance: torch.Tensor) -> Principal:
    """Eq. (2): the right singular vectors of the centred outputs are the eigenvectors of their covariance."""
    energies, directions = torch.linalg.eigh(covariance)
    return Principal(mean, energies.flip(0).clamp(min=0.0), directions.flip(1))


def principal_of_inputs(
    mean: torch.Tensor, covariance: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> Principal:
    """The same from the inputs' moments, since Cov(W x) = W Cov(x) W^T, without forming the larger matrix.

    With Cov(x) = R R^T, the outputs' directions are the left singular vectors of W R, found from the eigenvectors of
    R^T W^T W R, which is as large as the inputs are wide. Directions without energy are left zero.
    """
    variances, axes = torch.linalg.eigh(covariance)
    root = weight @ (axes * variances.clamp(min=0.0).sqrt())
    energies, right = torch.linalg.eigh(root.T @ root)
    energies, right = energies.flip(0).clamp(min=0.0), right.flip(1)
    live = energies > NEGLIGIBLE * energies[0]
    directions = torch.where(live, root @ right / energies.clamp(min=1e-300).sqrt(), 0.0)
    return Principal(weight @ mean + bias, energies, directions)


def rank_by_energy(
    energies: torch.Tensor, threshold: float, multiple: int, outlier_share: float | None = None
) -> int | None:
    """Eq. (6): the smallest multiple of `multiple` whose directions hold more than `threshold` of the energy.

    None where no multiple does. With `outlier_share`, leading directions that alone hold more than that share of what
    is left are set aside first, and the threshold holds for the rest: one massive direction would otherwise meet any
    threshold by itself (large-v3, layer 21, fc2: rank 16 of 1280). A rest that is rounding error needs no rank.
    """
    negligible = NEGLIGIBLE * energies.sum()
    outliers = 0
    while outlier_share is not None and energies[outliers:].sum() > negligible:
        if energies[outliers] <= outlier_share * energies[outliers:].sum():
            break
        outliers += 1
    ranks = range(multiple, len(energies) + 1, multiple)
    rest = energies[outliers:]
    if not rest.sum() > negligible:
        return next((rank for rank in ranks if rank >= outliers), None)
    held = torch.cumsum(rest, 0) / rest.sum()
    return next((rank for rank in ranks if rank > outliers and held[rank - outliers - 1] > threshold), None)


def saves(rank: int, inputs: int, outputs: int, weights: int | None = None) -> bool:
    """Eq. (8) as the paper's code has it: two factors are no larger than the linear (rank at most 0.5 d, 0.8 d).

    `weights` is the size of a linear that is factored already.
    """
    return rank * (inputs + outputs) <= (inputs * outputs if weights is None else weights)


def factors_of(principal: Principal, rank: int, weight: torch.Tensor, bias: torch.Tensor) -> Factors:
    """Eq. (5): outputs projected on the first `rank` directions around their mean, the constant part in the bias."""
    basis = principal.directions[:, :rank].to(weight.dtype)
    constant = principal.mean + basis @ (basis.T @ (bias - principal.mean))
    return Factors(basis.T @ weight, basis, constant)


def factors_of_weight(rank: int, weight: torch.Tensor, bias: torch.Tensor) -> Factors:
    """The naive baseline: the closest matrix of that rank, blind to the activations."""
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    return Factors(values[:rank, None] * right[:rank], left[:, :rank], bias)


@dataclass(frozen=True)
class Regression:
    """The linear map from drifted inputs to original outputs: `weight`, with the moments of its inputs and targets."""

    weight: torch.Tensor
    input_mean: torch.Tensor
    input_covariance: torch.Tensor
    target_mean: torch.Tensor


def regression(
    input_mean: torch.Tensor,
    input_covariance: torch.Tensor,
    target_mean: torch.Tensor,
    cross_covariance: torch.Tensor,
    weight: torch.Tensor,
    ridge: float,
) -> Regression:
    """Least squares from inputs x' of the compressed model to outputs y of the original, held near the weight W.

    argmin_V E|(y - mean) - V (x' - mean)|^2 + r |V - W|^2 with r = `ridge` times the mean input variance;
    `cross_covariance` is Cov(y, x'), (outputs, inputs).
    """
    strength = ridge * input_covariance.diagonal().mean().clamp(min=1e-12)
    identity = torch.eye(len(input_covariance), dtype=input_covariance.dtype, device=input_covariance.device)
    left = input_covariance + strength * identity
    solved = torch.linalg.solve(left, (cross_covariance + strength * weight).T).T
    return Regression(solved, input_mean, input_covariance, target_mean)


def factors_of_regression(fitted: Regression, rank: int) -> Factors:
    """Reduced-rank regression: the fitted map, projected on the principal directions of what it predicts."""
    zero = torch.zeros_like(fitted.target_mean)
    basis = principal_of_inputs(fitted.input_mean, fitted.input_covariance, fitted.weight, zero).directions[:, :rank]
    first = basis.T @ fitted.weight
    return Factors(first, basis, fitted.target_mean - basis @ (first @ fitted.input_mean))


@dataclass(frozen=True)
class Curve:
    """The choices for one linear, ascending in cost: `costs` and weighted output `errors`; the last is the whole."""

    costs: tuple[float, ...]
    errors: tuple[float, ...]


def allocate(curves: Sequence[Curve], budget: float) -> list[int] | None:
    """For each linear the index of a choice, so that the costs stay within `budget` and the errors' sum is least.

    Each curve's lower convex hull is walked from its cheapest point, always taking the step of any linear that lessens
    the error most per unit of cost: exact on the hulls (Lagrangian), and within one step of the optimum at the end,
    where steps that no longer fit are passed over. None where even the cheapest choices exceed the budget.
    """
    hulls = [lower_hull(curve) for curve in curves]
    position = [0] * len(curves)
    spent = sum(curve.costs[hull[0]] for curve, hull in zip(curves, hulls, strict=True))
    if spent > budget:
        return None
    steps = sorted(
        (
            (-slope(curve, hull[at], hull[at + 1]), number, at)
            for number, (curve, hull) in enumerate(zip(curves, hulls, strict=True))
            for at in range(len(hull) - 1)
        ),
    )
    for _, number, at in steps:
        curve, hull = curves[number], hulls[number]
        extra = curve.costs[hull[at + 1]] - curve.costs[hull[position[number]]]
        if spent + extra <= budget:
            position[number] = at + 1
            spent += extra
    return [hull[at] for hull, at in zip(hulls, position, strict=True)]


def slope(curve: Curve, start: int, end: int) -> float:
    """Error saved per unit of cost between two choices."""
    return (curve.errors[start] - curve.errors[end]) / (curve.costs[end] - curve.costs[start])


def lower_hull(curve: Curve) -> list[int]:
    """Indices of the choices on the lower convex hull, from the cheapest to the least error."""
    hull: list[int] = []
    for index in range(len(curve.costs)):
        if hull and curve.errors[hull[-1]] <= curve.errors[index]:
            continue  # dearer, and no better
        if hull and curve.costs[hull[-1]] == curve.costs[index]:
            hull.pop()
        while len(hull) > 1 and slope(curve, hull[-2], hull[-1]) <= slope(curve, hull[-1], index):
            hull.pop()
        hull.append(index)
    return hull
