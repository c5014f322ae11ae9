"""Measuring in turn."""

import os
import time
from pathlib import Path

from sotto.side_by_side import Timing, in_turn, latency_of, visit


def test_calls_take_turns() -> None:
    first, second = in_turn([time.monotonic, time.monotonic], 2)
    assert first[0] < second[0] < first[1] < second[1]


def test_every_call_has_a_process_of_its_own() -> None:
    found = in_turn([os.getpid, os.getpid], 1)
    assert len({os.getpid(), *found[0], *found[1]}) == 3


def test_as_many_tokens_are_decoded_as_are_asked_for(saved: Path) -> None:
    found = visit(str(saved), Timing(rounds=1, repeats=1, tokens=5))
    assert latency_of(found).tokens == 5
