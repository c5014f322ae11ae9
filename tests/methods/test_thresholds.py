import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sotto.methods.thresholds import (
    among_smallest,
    largest_accepted,
    ratios_by_variation,
    zero_small_elements,
    zero_small_groups,
    zero_smallest,
)


def test_elements_below_a_multiple_of_the_deviation_go() -> None:
    weight = torch.tensor([[1.0, -1.0], [3.0, -3.0]])  # deviation sqrt(20 / 3) = 2.58
    kept = weight.clone()
    zero_small_elements(kept, 0.3)
    assert torch.equal(kept, weight)
    zero_small_elements(kept, 0.5)
    assert kept.tolist() == [[0.0, 0.0], [3.0, -3.0]]


def test_groups_below_the_mean_norm_go() -> None:
    """Norms 1, 5 and 6 have mean 4 and deviation sqrt(14 / 3) = 2.16."""
    weight = torch.tensor([[1.0, 3.0, 6.0], [0.0, 4.0, 0.0]])
    zero_small_groups([(weight, 1)], 3, -1.5)
    assert weight[:, 0].tolist() == [1.0, 0.0]  # 4 - 1.5 * 2.16 = 0.76
    zero_small_groups([(weight, 1)], 3, -1.0)
    assert weight.tolist() == [[0.0, 3.0, 6.0], [0.0, 4.0, 0.0]]


def test_the_share_that_goes_depends_on_the_variation_of_a_tensor() -> None:
    """Mean 1 each, deviations 1 to 6; a mean of zero counts as no variation."""
    steady = [1 + torch.tensor([-spread, spread]) / 2**0.5 for spread in (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)]
    assert ratios_by_variation(steady) == [0.3, 0.3, 0.5, 0.5, 0.7, 0.7]
    assert ratios_by_variation([torch.tensor([-9.0, 9.0]), *steady[:3]])[0] == 0.3


def test_the_smallest_share_goes() -> None:
    weight = torch.tensor([[0.1, -0.4], [0.3, -0.2]])
    zero_smallest([weight], 0.5)
    torch.testing.assert_close(weight, torch.tensor([[0.0, -0.4], [0.3, 0.0]]))
    zero_smallest([weight], 0.0)
    assert (weight == 0).sum() == 2


def test_the_smallest_of_several_matrices_go_together() -> None:
    first, second = torch.tensor([[1.0, -2.0], [3.0, -4.0]]), torch.tensor([[10.0, 0.5, -30.0, 40.0]])
    zero_smallest([first, second], 0.5)
    assert first.tolist() == [[0.0, 0.0], [0.0, -4.0]]
    assert second.tolist() == [[10.0, 0.0, -30.0, 40.0]]


def test_no_more_go_where_some_are_equal() -> None:
    weight = torch.full((5, 4), 0.5)
    zero_smallest([weight], 0.4)
    assert (weight == 0).sum() == 8
    assert among_smallest(torch.ones(5), 0.4).sum() == 2


def test_the_largest_group_stays() -> None:
    """Of two norms the larger is the mean plus the deviation, or by rounding a little less."""
    for width in range(1, 40):
        weight = torch.stack([torch.full((width,), 0.1), torch.full((width,), 0.7)], 1)
        zero_small_groups([(weight, 1)], 2, 1.0)
        assert (weight[:, 0] == 0).all()
        assert (weight[:, 1] != 0).all()


@given(st.floats(-1, 2), st.integers(0, 12))
def test_bisection_finds_the_edge_of_what_is_accepted(edge: float, steps: int) -> None:
    tried: list[float] = []

    def accepted(value: float) -> bool:
        tried.append(value)
        return value <= edge

    found = largest_accepted(0.0, 1.0, steps, accepted)
    assert found == (None if edge < 0 else 1.0 if edge >= 1 else pytest.approx(edge, abs=0.5**steps))
    assert found is None or found <= max(edge, 0.0)
    assert len(tried) <= steps + 2
