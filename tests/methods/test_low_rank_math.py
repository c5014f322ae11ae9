"""The mathematics of low rank: cases worked out by hand, the paper's equations by a batch SVD, brute force."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sotto.low_rank_math import (
    Curve,
    Factors,
    Principal,
    Regression,
    allocate,
    factors_of,
    factors_of_regression,
    factors_of_weight,
    lower_hull,
    principal_of_inputs,
    principal_of_outputs,
    rank_by_energy,
    regression,
    saves,
)

Array = NDArray[np.float64]


def tensor(values: object) -> torch.Tensor:
    return torch.as_tensor(values, dtype=torch.float64)


def principal_of(outputs: Array) -> Principal:
    return principal_of_outputs(tensor(outputs.mean(0)), tensor(np.cov(outputs, rowvar=False, bias=True)))


def outputs_of(factors: Factors, inputs: Array) -> Array:
    result: Array = (tensor(inputs) @ factors.first.T @ factors.second.T + factors.bias).numpy()
    return result


def random_linear(
    inputs: int, outputs: int, rows: int = 200, *, zero_mean: bool = False, seed: int = 0
) -> tuple[Array, Array, Array]:
    """Inputs X (rows, inputs), weight (outputs, inputs), bias; with `zero_mean` the outputs have none."""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((rows, inputs)) @ np.diag(0.8 ** np.arange(inputs)) + generator.standard_normal(
        inputs
    )
    weight, bias = generator.standard_normal((outputs, inputs)), generator.standard_normal(outputs)
    return (x - x.mean(0), weight, 0 * bias) if zero_mean else (x, weight, bias)


# Ranks


@pytest.mark.parametrize(
    ("threshold", "multiple", "rank"),
    [
        (0.49, 1, 1),
        (0.5, 1, 2),  # more than the threshold, not as much as it
        (0.7, 1, 2),
        (0.9, 1, 3),
        (0.97, 1, 4),
        (0.4, 2, 2),
        (0.9, 2, 4),
        (0.9, 3, 3),
        (0.97, 3, None),  # 3 hold 95 %, and 6 there are not
        (0.1, 5, None),
    ],
)
def test_the_smallest_multiple_that_holds_more_than_the_threshold(
    threshold: float, multiple: int, rank: int | None
) -> None:
    assert rank_by_energy(tensor([50, 30, 15, 5]), threshold, multiple) == rank


def test_an_outlier_meets_any_threshold_by_itself_unless_it_is_set_aside() -> None:
    rest = 0.9 ** np.arange(99)
    energies = tensor([1e6 * rest.sum(), *rest])
    assert rank_by_energy(energies, 0.999, 16) == 16
    # By hand: 1 - 0.9^k > 0.999 from k = 66 on, and the outlier itself is one more.
    assert rank_by_energy(energies, 0.999, 1, outlier_share=0.9) == 67
    assert rank_by_energy(energies, 0.999, 16, outlier_share=0.9) == 80


def test_outliers_are_set_aside_one_behind_the_other() -> None:
    energies = tensor([1e9, 1e6, *[1.0] * 8])
    assert rank_by_energy(energies, 0.7, 1, outlier_share=0.9) == 2 + 6
    assert rank_by_energy(energies, 0.7, 1, outlier_share=0.9999) == 1  # 99.9 % is then no outlier


def test_no_outlier_is_found_where_there_is_none() -> None:
    energies = tensor([50, 30, 15, 5])
    for threshold in (0.49, 0.7, 0.9, 0.97):
        assert rank_by_energy(energies, threshold, 1, 0.9) == rank_by_energy(energies, threshold, 1)


def test_rounding_error_behind_outliers_is_no_energy() -> None:
    """Energies that fall fast are outliers one by one; what is left in the end is noise and earns no rank."""
    energies = tensor(20.0 ** -np.arange(64)).clamp(min=1e-17)
    assert rank_by_energy(energies, 0.999, 16) == 16
    assert rank_by_energy(energies, 0.999, 16, outlier_share=0.9) == 16
    assert rank_by_energy(energies, 0.999, 4, outlier_share=0.9) == 12  # 20^-10 is below a millionth of a millionth


def test_no_energy_at_all_needs_the_least_rank() -> None:
    assert rank_by_energy(tensor([0.0] * 32), 0.99, 16) == 16
    assert rank_by_energy(tensor([0.0] * 32), 0.99, 16, outlier_share=0.9) == 16
    assert rank_by_energy(tensor([0.0] * 8), 0.99, 16) is None


def test_the_largest_ranks_that_save_in_large_v3() -> None:
    """Half of the dimension in attention, four fifths in a feed-forward network, both accepted."""
    assert saves(640, 1280, 1280)
    assert not saves(641, 1280, 1280)
    for inputs, outputs in ((1280, 5120), (5120, 1280)):
        assert saves(1024, inputs, outputs)
        assert not saves(1025, inputs, outputs)


def test_a_linear_that_is_factored_already_must_not_grow() -> None:
    assert saves(16, 100, 100, weights=16 * 200)
    assert not saves(17, 100, 100, weights=16 * 200)


# Directions and factors


def test_four_points_on_the_axes() -> None:
    points = np.array([[5.0, 4.0], [1.0, 4.0], [3.0, 5.0], [3.0, 3.0]])  # (3, 4) plus (+-2, 0) and (0, +-1)
    principal = principal_of(points)
    assert principal.mean.tolist() == [3.0, 4.0]
    assert principal.energies.tolist() == pytest.approx([2.0, 0.5])
    assert principal.directions.abs().flatten().tolist() == pytest.approx([1.0, 0.0, 0.0, 1.0])
    kept = outputs_of(factors_of(principal, 1, torch.eye(2, dtype=torch.float64), tensor([0.0, 0.0])), points)
    assert kept.tolist() == pytest.approx(np.array([[5.0, 4.0], [1.0, 4.0], [3.0, 4.0], [3.0, 4.0]]))


def test_points_on_the_diagonal_lie_in_one_direction() -> None:
    principal = principal_of(np.array([[2.0, 2.0], [-2.0, -2.0]]))
    assert principal.energies.tolist() == pytest.approx([8.0, 0.0])
    assert (principal.directions[:, 0] ** 2).tolist() == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("zero_mean", [False, True])
@pytest.mark.parametrize(("inputs", "outputs"), [(12, 12), (10, 24), (24, 10)])
def test_factors_are_those_of_the_papers_equations(inputs: int, outputs: int, zero_mean: bool) -> None:
    """Eq. (1)-(5), with W as the paper has it: (inputs, outputs)."""
    x, weight, bias = random_linear(inputs, outputs, zero_mean=zero_mean)
    w = weight.T
    y = x @ w + bias
    y_mean = y.mean(0)
    _, s, vt = np.linalg.svd(y - y_mean, full_matrices=False)
    principal = principal_of(y)
    count = min(inputs, outputs)
    assert np.allclose(principal.energies[:count], s[:count] ** 2 / len(y), rtol=1e-6, atol=1e-12 * s[0] ** 2)
    for k in (1, 4, 8):
        v = vt[:k].T
        factors = factors_of(principal, k, tensor(weight), tensor(bias))
        assert np.allclose(factors.second @ factors.second.T, v @ v.T)
        assert np.allclose((factors.second @ factors.first).numpy().T, w @ v @ v.T)
        assert np.allclose(factors.bias, y_mean + (bias - y_mean) @ v @ v.T)
        found = outputs_of(factors, x)
        assert np.allclose(found, x @ (w @ v) @ v.T + y_mean + (bias - y_mean) @ v @ v.T)
        assert ((found - y) ** 2).sum() == pytest.approx((s[k:] ** 2).sum())
    if zero_mean:
        assert np.allclose(factors.bias, 0.0)


@pytest.mark.parametrize(("inputs", "outputs"), [(12, 12), (10, 24)])
def test_directions_from_inputs_are_those_from_outputs(inputs: int, outputs: int) -> None:
    x, weight, bias = random_linear(inputs, outputs)
    direct = principal_of(x @ weight.T + bias)
    covariance = tensor(np.cov(x, rowvar=False, bias=True))
    found = principal_of_inputs(tensor(x.mean(0)), covariance, tensor(weight), tensor(bias))
    assert np.allclose(found.mean, direct.mean)
    assert np.allclose(found.energies, direct.energies[:inputs])
    for k in (1, 5, inputs):
        mine, theirs = found.directions[:, :k], direct.directions[:, :k]
        assert np.allclose(mine @ mine.T, theirs @ theirs.T, atol=1e-6)


def test_directions_without_energy_are_left_zero() -> None:
    """Inputs that only span three dimensions give outputs in three directions, whatever the weight."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((50, 3)) @ generator.standard_normal((3, 8))
    weight = generator.standard_normal((20, 8))
    covariance = tensor(np.cov(x, rowvar=False, bias=True))
    found = principal_of_inputs(tensor(x.mean(0)), covariance, tensor(weight), tensor(np.zeros(20)))
    assert not found.directions[:, 3:].any()
    live = found.directions[:, :3]
    assert np.allclose(live.T @ live, np.eye(3))
    silent = principal_of_inputs(tensor(x.mean(0)), 0 * covariance, tensor(weight), tensor(np.zeros(20)))
    assert not silent.directions.any()


@pytest.mark.parametrize(("inputs", "outputs"), [(9, 9), (6, 15), (15, 6)])
def test_factors_of_a_weight_are_its_truncated_svd(inputs: int, outputs: int) -> None:
    _, weight, bias = random_linear(inputs, outputs)
    u, s, vt = np.linalg.svd(weight, full_matrices=False)
    for k in (1, 3, 6):
        factors = factors_of_weight(k, tensor(weight), tensor(bias))
        assert factors.first.shape == (k, inputs)
        assert np.allclose(factors.second @ factors.first, (u[:, :k] * s[:k]) @ vt[:k])
        assert factors.bias.tolist() == bias.tolist()


# Regression on drifted inputs


def drifted_regression(ridge: float, inputs: int = 8, outputs: int = 12) -> tuple[Array, Array, Array, Regression]:
    """Inputs that have drifted, the outputs that the original ones gave, the weight, and the fit."""
    x, weight, bias = random_linear(inputs, outputs)
    y = x @ weight.T + bias
    drifted = x + 0.3 * np.random.default_rng(1).standard_normal(x.shape) + 0.5
    joint = np.cov(np.hstack((drifted, y)), rowvar=False, bias=True)
    fitted = regression(
        tensor(drifted.mean(0)),
        tensor(joint[:inputs, :inputs]),
        tensor(y.mean(0)),
        tensor(joint[inputs:, :inputs]),
        tensor(weight),
        ridge,
    )
    return drifted, y, weight, fitted


@pytest.mark.parametrize(("inputs", "outputs"), [(8, 12), (12, 8), (8, 8)])
def test_at_full_rank_a_regression_is_least_squares(inputs: int, outputs: int) -> None:
    x, y, _, fitted = drifted_regression(1e-12, inputs, outputs)
    design = np.hstack((x, np.ones((len(x), 1))))
    solution = np.linalg.lstsq(design, y, rcond=None)[0]
    assert np.allclose(fitted.weight, solution[:-1].T, atol=1e-6)
    factors = factors_of_regression(fitted, min(inputs, outputs))
    assert np.allclose(outputs_of(factors, x), design @ solution, atol=1e-6)


def test_a_strong_ridge_gives_the_weight_back() -> None:
    _, _, weight, fitted = drifted_regression(1e9)
    assert np.allclose(fitted.weight, weight, atol=1e-6)
    _, _, _, free = drifted_regression(1e-9)
    assert np.abs(free.weight.numpy() - weight).max() > 0.1


def test_a_regression_is_the_minimum_that_it_says_it_is() -> None:
    ridge = 0.1
    x, y, weight, fitted = drifted_regression(ridge)
    strength = ridge * x.var(0).mean()

    def objective(v: Array) -> float:
        residual = (y - y.mean(0)) - (x - x.mean(0)) @ v.T
        return float((residual**2).sum(1).mean() + strength * ((v - weight) ** 2).sum())

    least = objective(fitted.weight.numpy())
    generator = np.random.default_rng(2)
    for size in (1e-3, 1e-1):
        for _ in range(20):
            assert objective(fitted.weight.numpy() + size * generator.standard_normal(weight.shape)) > least


def test_a_regression_of_reduced_rank_projects_its_predictions() -> None:
    x, _, _, fitted = drifted_regression(1e-3)
    predicted = (x - x.mean(0)) @ fitted.weight.numpy().T
    vt = np.linalg.svd(predicted, full_matrices=False)[2]
    for k in (1, 3, 6):
        found = outputs_of(factors_of_regression(fitted, k), x)
        assert np.allclose(found, predicted @ vt[:k].T @ vt[:k] + fitted.target_mean.numpy())


def test_without_drift_a_regression_gives_the_papers_factors() -> None:
    x, weight, bias = random_linear(8, 12)
    y = x @ weight.T + bias
    joint = tensor(np.cov(np.hstack((x, y)), rowvar=False, bias=True))
    fitted = regression(tensor(x.mean(0)), joint[:8, :8], tensor(y.mean(0)), joint[8:, :8], tensor(weight), ridge=1e-3)
    for k in (2, 5):
        expected = outputs_of(factors_of(principal_of(y), k, tensor(weight), tensor(bias)), x)
        assert np.allclose(outputs_of(factors_of_regression(fitted, k), x), expected)


# Budgets


def test_a_hull_leaves_out_what_a_mixture_of_others_beats() -> None:
    curve = Curve(costs=(1, 2, 3, 4, 6), errors=(10, 9, 4, 5, 0))
    assert lower_hull(curve) == [0, 2, 4]  # 2 costs as much as half of 1 and half of 3, 4 is worse than 3
    assert lower_hull(Curve((1, 2, 3), (4, 2, 0))) in ([0, 2], [0, 1, 2])
    assert lower_hull(Curve((1, 2, 3), (0, 0, 0))) == [0]
    assert lower_hull(Curve((5,), (0,))) == [0]


def test_a_budget_is_spent_where_it_saves_most() -> None:
    steep, flat = Curve((1, 2, 3), (100, 10, 0)), Curve((1, 2, 3), (9, 6, 0))
    assert allocate([steep, flat], 1.9) is None
    assert allocate([steep, flat], 2) == [0, 0]
    assert allocate([steep, flat], 3) == [1, 0]
    assert allocate([steep, flat], 4) == [2, 0]
    assert allocate([steep, flat], 5) == [2, 0]  # 4.5 a unit over two units; one unit of it is not on the hull
    assert allocate([steep, flat], 6) == [2, 2]
    assert allocate([], 0) == []


def test_a_step_that_does_not_fit_is_passed_over_for_one_that_does() -> None:
    assert allocate([Curve((1, 11), (100, 0)), Curve((1, 2), (1, 0))], 5) == [0, 1]


@st.composite
def curves(draw: st.DrawFn) -> Curve:
    costs = sorted(draw(st.sets(st.integers(1, 30), min_size=1, max_size=5)))
    errors = draw(st.lists(st.integers(0, 50), min_size=len(costs), max_size=len(costs)))
    return Curve(tuple(map(float, costs)), tuple(map(float, sorted(errors, reverse=draw(st.booleans())))))


PROBLEMS = st.lists(curves(), min_size=1, max_size=4)
BUDGETS = st.integers(1, 120)


def cost_and_error(problem: list[Curve], chosen: list[int]) -> tuple[float, float]:
    pairs = [(curve.costs[index], curve.errors[index]) for curve, index in zip(problem, chosen, strict=True)]
    return sum(cost for cost, _ in pairs), sum(error for _, error in pairs)


@given(PROBLEMS, BUDGETS)
def test_allocation_is_within_one_step_of_brute_force(problem: list[Curve], budget: int) -> None:
    every = itertools.product(*(range(len(curve.costs)) for curve in problem))
    possible = [error for cost, error in (cost_and_error(problem, list(each)) for each in every) if cost <= budget]
    chosen = allocate(problem, budget)
    if not possible:
        assert chosen is None
        return
    assert chosen is not None
    cost, error = cost_and_error(problem, chosen)
    assert cost <= budget
    hulls = [(curve, lower_hull(curve)) for curve in problem]
    steps = [curve.errors[a] - curve.errors[b] for curve, hull in hulls for a, b in itertools.pairwise(hull)]
    assert error <= min(possible) + max(steps, default=0)


@given(PROBLEMS, BUDGETS, BUDGETS)
def test_more_budget_never_means_more_error(problem: list[Curve], budget: int, more: int) -> None:
    less, enough = allocate(problem, budget), allocate(problem, budget + more)
    if less is not None:
        assert enough is not None
        assert cost_and_error(problem, enough)[1] <= cost_and_error(problem, less)[1]


@given(PROBLEMS)
def test_a_budget_for_everything_leaves_the_least_error(problem: list[Curve]) -> None:
    chosen = allocate(problem, sum(curve.costs[-1] for curve in problem))
    assert chosen is not None
    assert cost_and_error(problem, chosen)[1] == sum(min(curve.errors) for curve in problem)
