import pytest

import rank_times
from sotto.methods.timed_linears import LinearShape


def test_ranks_go_up_to_as_many_weights() -> None:
    assert list(rank_times.ranks_of(LinearShape(10, 64, 64))) == [8, 16, 24, 32]
    assert list(rank_times.ranks_of(LinearShape(10, 64, 192))) == [8, 16, 24, 32, 40, 48]


def test_what_rounding_a_rank_up_costs() -> None:
    steps = {8: 2.0, 16: 2.0, 24: 3.0, 32: 3.0}
    assert rank_times.rounded_up(steps, 16) == 1
    assert rank_times.rounded_up(steps, 32) == 1.5
    lines = {8: 1.0, 16: 2.0, 24: 3.0, 32: 4.0, 40: 5.0}
    assert rank_times.rounded_up(lines, 16) == pytest.approx((2 + 4 / 3) / 2)


def test_a_row_has_the_time_of_every_rank() -> None:
    row = rank_times.row(LinearShape(4, 128, 128), "torch")
    assert list(row["seconds"]) == [8, 16, 24, 32, 40, 48, 56, 64]
    assert all(seconds > 0 for seconds in (*row["seconds"].values(), row["whole"]))
    assert set(row["rounded_up"]) == {16, 32, 64}
