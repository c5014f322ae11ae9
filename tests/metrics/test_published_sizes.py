import pytest

from published_whisper import published
from sotto.metrics.published_sizes import whisper_kdq_bytes

MEBIBYTE = 2**20


def test_the_published_ratios_come_out_of_the_rule() -> None:
    """The paper prints 5.18x and 10.48x: the sizes of its models, rounded to MiB, divided by one another."""
    small, base, tiny = (published(name) for name in ("small", "base", "tiny"))
    teacher = whisper_kdq_bytes(small) / MEBIBYTE
    students = [whisper_kdq_bytes(model, 8) / MEBIBYTE for model in (base, tiny)]
    assert [round(size) for size in (teacher, *students)] == [461, 89, 44]
    assert [round(461 / round(size), 2) for size in students] == [5.18, 10.48]
    assert teacher == pytest.approx(461.07, abs=0.01)
    assert students == pytest.approx([89.13, 44.02], abs=0.01)
    assert [whisper_kdq_bytes(model) / MEBIBYTE for model in (base, tiny)] == pytest.approx([138.5, 72.0], abs=0.1)
