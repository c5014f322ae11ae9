"""Measuring in turn."""

import os
import time
from pathlib import Path

import pytest

from sotto.checkpoint import Recognizer
from sotto.errors import SottoError
from sotto.exports import export
from sotto.side_by_side import Timing, benchmark, in_turn, latency_of, visit
from tones import write_folder


def test_calls_take_turns() -> None:
    first, second = in_turn([time.monotonic, time.monotonic], 2)
    assert first[0] < second[0] < first[1] < second[1]


def test_every_call_has_a_process_of_its_own() -> None:
    found = in_turn([os.getpid, os.getpid], 1)
    assert len({os.getpid(), *found[0], *found[1]}) == 3


def test_as_many_tokens_are_decoded_as_are_asked_for(saved: Path) -> None:
    found = visit(str(saved), Timing(rounds=1, repeats=1, tokens=5))
    assert latency_of(found).tokens == 5


def test_beside_an_export_that_runs_on_the_cpu_all_do(
    recognizer: Recognizer, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = write_folder(tmp_path / "clips", ["one"], [0.9])
    export(recognizer, tmp_path / "out", to="ctranslate2", audio=clips, language="en")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("sotto.side_by_side.in_turn", lambda calls, _: [[call()] for call in calls])
    rows = benchmark([str(saved), str(tmp_path / "out")], Timing(rounds=1, repeats=1))
    assert [latency_of(row.numbers).device for row in rows] == ["cpu", "cpu"]


def test_a_precision_that_an_export_does_not_have_is_refused_before_anything_is_timed(
    recognizer: Recognizer, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = write_folder(tmp_path / "clips", ["one"], [0.9])
    export(recognizer, tmp_path / "out", to="ctranslate2", audio=clips, language="en")
    monkeypatch.setattr("sotto.side_by_side.in_turn", lambda *_: pytest.fail("something was timed"))
    with pytest.raises(SottoError, match="out: an export has the precision that it was written in; leave out dtype"):
        benchmark([str(saved), str(tmp_path / "out")], Timing(dtype="bfloat16"))
