import argparse
from pathlib import Path

import pytest

import head_reduction
import head_speed
from low_rank_pareto import Bench
from sotto.checkpoint import Recognizer
from sotto.data import DataConfig, open_data
from sotto.decoding import Decoding
from sotto.methods.divergence import transcripts_of
from sotto.metrics.cost import encoder_flops
from sotto.text import get_normalizer
from tones import PITCHES, tiny_whisper, write_folder


def test_the_ways_leave_the_same_share(tmp_path: Path) -> None:
    clips = DataConfig(str(write_folder(tmp_path / "clips", list(PITCHES), [0.6, 0.7, 0.8, 0.9])))
    base = Recognizer(*tiny_whisper(encoder_layers=2), language="en")
    base.model.eval()
    bench = Bench(base, clips, clips, Decoding(), get_normalizer("basic"))
    found = {name: bench.sizes_of(recognizer)[1] for name, recognizer in head_reduction.of_flops(bench, [0.75], 1)}
    assert list(found)[:2] == ["heads of 12 channels", "heads of 8 channels"]
    assert found["heads of 8 channels"] < found["heads of 12 channels"] < 1
    assert list(found)[2:] == ["heads, 75%", "low rank, 75%", "heads, then low rank, 75%"]
    assert all(0.65 < share <= 0.75 for share in list(found.values())[2:])


def test_budgets_of_time_are_timed_or_say_why_not(tmp_path: Path) -> None:
    clips = DataConfig(str(write_folder(tmp_path / "clips", list(PITCHES), [0.6, 0.7, 0.8, 0.9])))
    recognizer = Recognizer(*tiny_whisper(encoder_layers=2), language="en")
    recognizer.model.eval()
    bench = Bench(recognizer, clips, clips, Decoding(language="en"), get_normalizer("basic"))
    transcripts = transcripts_of(recognizer, open_data(clips, sampling_rate=16_000), 2, "transcripts")
    base = head_reduction.Base(bench, bench.errors_of(recognizer), transcripts)
    arguments = argparse.Namespace(shares=[], times=[0.01], runtimes=["torch"], multiple=1, rounds=2)
    heads, low_rank = head_reduction.rows(base, arguments)
    assert (heads["way"], low_rank["way"]) == ("heads, 1% of the time in torch", "low rank, 1% of the time in torch")
    assert "refused" in heads
    assert "refused" in low_rank
    assert head_reduction.markdown(heads).startswith("| heads, 1% of the time in torch |")
    row = base.timed_row("as it was", recognizer.copy(), "torch", 3)
    assert row["encoder_flops"] == 1
    assert row["divergence"] == pytest.approx(0, abs=1e-6)
    lower, upper = row["time"]["quarters"]
    assert 0 < lower <= row["time"]["found"] <= upper


def test_ranks_leave_the_flops_of_narrower_heads() -> None:
    flops = encoder_flops(head_speed.narrowed("tiny", 48).model)
    rank = head_speed.rank_for("tiny", flops)
    assert encoder_flops(head_speed.factored("tiny", rank).model) == pytest.approx(flops, rel=0.02)
