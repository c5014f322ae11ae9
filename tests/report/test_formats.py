"""How numbers are written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sotto.report import formats


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (formats.count(812), "812"),
        (formats.count(1_900_000), "1.9M"),
        (formats.count(999_960), "1.0M"),
        (formats.count(1_543_490_560), "1.5B"),
        (formats.count(0), "0"),
        (formats.flops(36_900_000_000), "36.9 GFLOPs"),
        (formats.flops(512), "512 FLOPs"),
        (formats.size(3_700_000), "3.7 MB"),
        (formats.size(151_061_672), "151 MB"),
        (formats.rate(0.021), "2.1 %"),
        (formats.rate(1.2), "120.0 %"),
        (formats.points(0.003), "+0.3"),
        (formats.points(-0.01), "-1.0"),
        (formats.points(0.0002), "+0.02"),
        (formats.points(-1e-9), "0.0"),
        (formats.share(41, 100), "41 %"),
        (formats.share(3, 1000), "0.3 %"),
        (formats.share(9996, 10_000), "99.96 %"),
        (formats.share(1004, 1000), "100.4 %"),
        (formats.share(7, 7), "100 %"),
        (formats.share(0, 7), "0 %"),
        (formats.latency(0.0123), "12.3 ms"),
        (formats.latency(0.00002), "0.02 ms"),
        (formats.latency(0.9999), "1.0 s"),
        (formats.duration(4.21), "4.2 s"),
        (formats.duration(59.7), "1 min 0 s"),
        (formats.duration(214), "3 min 34 s"),
        (formats.duration(4380), "1 h 13 min"),
    ],
)
def test_numbers_are_written_for_readers(written: str, expected: str) -> None:
    assert written == expected


@given(st.integers(0, 10**14))
def test_a_count_is_written_to_its_rounding(value: int) -> None:
    number, prefix = formats.scaled(value, ("", "k", "M", "B"))
    unit = 1000 ** ("", "k", "M", "B").index(prefix)
    assert float(number) < 1000 or prefix == "B"
    assert abs(float(number) * unit - value) <= (0.5 if float(number) >= 100 else 0.05) * unit * 1.001
