import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sotto.methods.group_math import (
    group_penalty,
    group_size,
    scale_groups,
    shrink_elements,
    shrink_groups,
    squared_norms,
)

# Two matrices whose groups are the two columns of the first, and with each two rows of the second.
FIRST = [[3.0, 0.0], [4.0, 1.0], [0.0, -1.0]]
SECOND = [[1.0], [2.0], [0.0], [2.0]]


def members() -> list[tuple[torch.Tensor, int]]:
    return [(torch.tensor(FIRST), 1), (torch.tensor(SECOND), 0)]


def test_squared_norms_by_hand() -> None:
    assert squared_norms(members(), 2).tolist() == [25.0 + 5.0, 2.0 + 4.0]
    assert squared_norms(members()[:1], 2).tolist() == [25.0, 2.0]
    assert group_size(members(), 2) == 5


def test_penalties_by_hand() -> None:
    assert group_penalty(members()[:1], 2, "l2").item() == pytest.approx(math.sqrt(3) * (5 + math.sqrt(2)))
    assert group_penalty(members(), 2, "l2_squared").item() == pytest.approx(36.0)


def test_the_gradient_of_a_group_points_along_it_and_an_empty_one_has_none() -> None:
    weight = torch.tensor([[3.0, 0.0], [4.0, 0.0]], requires_grad=True)
    group_penalty([(weight, 1)], 2, "l2").backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, math.sqrt(2) * torch.tensor([[0.6, 0.0], [0.8, 0.0]]))


def test_elements_shrink_by_hand() -> None:
    weight = torch.tensor([[0.5, -0.2], [-0.7, 0.3]])
    shrink_elements(weight, 0.3)
    torch.testing.assert_close(weight, torch.tensor([[0.2, 0.0], [-0.4, 0.0]]))


def test_groups_shrink_by_hand() -> None:
    """Columns of length 5 and 0.5, to be shortened by 0.5 * sqrt(2): that is more than the second has."""
    weight = torch.tensor([[3.0, 0.3], [4.0, 0.4]])
    shrink_groups([(weight, 1)], 2, 0.5, "l2")
    kept = (5 - 0.5 * math.sqrt(2)) / 5
    torch.testing.assert_close(weight, torch.tensor([[3.0 * kept, 0.0], [4.0 * kept, 0.0]]))


def test_the_squared_form_shrinks_all_alike_and_empties_none() -> None:
    weight = torch.tensor([[3.0, 0.3], [4.0, 0.4]])
    shrink_groups([(weight, 1)], 2, 0.5, "l2_squared")
    torch.testing.assert_close(weight, torch.tensor([[1.5, 0.15], [2.0, 0.2]]))


def test_factors_reach_every_member() -> None:
    scaled = members()
    scale_groups(scaled, torch.tensor([0.0, 2.0]))
    assert scaled[0][0].tolist() == [[0.0, 0.0], [0.0, 2.0], [0.0, -2.0]]
    assert scaled[1][0].tolist() == [[0.0], [0.0], [0.0], [4.0]]


@given(st.integers(0, 10_000), st.sampled_from(["l2", "l2_squared"]), st.floats(0.01, 2.0))
def test_shrinking_is_the_proximal_operator(seed: int, norm: str, amount: float) -> None:
    """No other point has less of half the squared distance plus the penalty (element and group together)."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(3, 4, generator=generator)

    def objective(weight: torch.Tensor) -> float:
        penalty = group_penalty([(weight, 1)], 4, norm)  # type: ignore[arg-type]
        return (0.5 * (weight - start).square().sum() + amount * (0.5 * weight.abs().sum() + penalty)).item()

    found = start.clone()
    shrink_elements(found, 0.5 * amount)
    shrink_groups([(found, 1)], 4, amount, norm)  # type: ignore[arg-type]
    best = objective(found)
    for scale in (1e-3, 1e-2, 0.1, 1.0):
        for _ in range(5):
            assert objective(found + scale * torch.randn(3, 4, generator=generator)) >= best - 1e-4
    assert objective(start) >= best - 1e-4
    assert objective(torch.zeros(3, 4)) >= best - 1e-4
