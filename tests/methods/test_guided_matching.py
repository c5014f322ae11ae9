import torch
from hypothesis import given
from hypothesis import strategies as st

from sotto.methods.guided_matching import matched

ERRORS = torch.tensor(
    [
        [3.0, 1.0, 2.0, 5.0],
        [1.0, 4.0, 3.0, 2.0],
        [0.0, 9.0, 1.0, 1.0],
    ]
)


def test_the_nearest_by_hand() -> None:
    assert matched(ERRORS, "free") == [1, 0, 0]


def test_in_order_none_goes_back_behind_the_one_before_by_hand() -> None:
    assert matched(ERRORS, "monotone") == [1, 3, 3]
    assert matched(torch.tensor([[2.0, 1.0], [5.0, 7.0]]), "monotone") == [1, 1]  # one may be taken again


def test_static_is_that_of_the_code_for_six_layers_of_twelve() -> None:
    assert matched(torch.zeros(6, 12), "static") == [2 * layer + 1 for layer in range(6)]
    assert matched(torch.zeros(4, 12), "static") == [2, 5, 8, 11]
    assert matched(torch.zeros(3, 3), "static") == [0, 1, 2]
    assert matched(torch.zeros(3, 2), "static") == [0, 0, 1]


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 1000))
def test_matchings_of_any_errors(own: int, wanted: int, seed: int) -> None:
    errors = torch.rand(own, wanted, generator=torch.Generator().manual_seed(seed))
    free, monotone, static = (matched(errors, name) for name in ("free", "monotone", "static"))  # type: ignore[arg-type]
    assert monotone == sorted(monotone)
    assert static == sorted(static)
    assert static[-1] == wanted - 1  # the last learns from the last
    for found in (free, monotone, static):
        assert len(found) == own
        assert all(0 <= layer < wanted for layer in found)
    assert free == [int(row.argmin()) for row in errors]
    assert free[0] == monotone[0]
