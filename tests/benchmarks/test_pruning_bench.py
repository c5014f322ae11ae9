from pathlib import Path

from pruning_bench import Bench, Measured, rates_of
from sotto.data import DataConfig
from sotto.text import get_normalizer
from sotto.training import Training

REFERENCES = ["one two three", "four five six"]


def measured(*hypotheses: str) -> Measured:
    names = [f"{number}.wav" for number in range(len(hypotheses))]
    clips = list(zip(names, REFERENCES, hypotheses, strict=True))
    return Measured(1, 1, 1, 1, None, {}, (), clips, {})


def bench(folder: Path) -> Bench:
    data, normalizer = DataConfig("clips"), get_normalizer("basic")
    return Bench("model", data, data, data, "en", normalizer, Training(1), folder, "none")


def test_a_clip_that_loops_in_either_model_counts_in_one_of_two_rates(tmp_path: Path) -> None:
    looping = measured("one two six", "four " * 30)
    rates = rates_of(bench(tmp_path), looping, measured("one two three", "four five six"))
    assert rates["loops"] == 1
    assert rates["wer"] == (1 + 29) / 6
    assert rates["without_loops"]["wer"] == 1 / 3
    assert rates["without_loops"]["against_dense"]["wer"] == 1 / 3
    rates = rates_of(bench(tmp_path), measured("one two six", "four five six"), looping)
    assert rates["loops"] == 0
    assert rates["without_loops"]["against_dense"]["wer"] == 0.0


def test_where_all_clips_loop_there_is_no_rate_without(tmp_path: Path) -> None:
    looping = measured("one " * 30, "four " * 30)
    assert rates_of(bench(tmp_path), looping, None)["without_loops"] is None
