"""Compression from Python."""

from pathlib import Path

import pytest
import torch

import sotto
from digits import MODEL, some_clips
from sotto.checkpoint import probe
from sotto.metrics.cost import count_parameters


def test_a_copy_is_made_smaller_and_saved(tmp_path: Path) -> None:
    clips = some_clips("calibration", tmp_path / "clips", 4)
    model = sotto.load(MODEL)
    before = probe(model)
    smaller = sotto.compress(model, sotto.LowRank(attention=0.9, mlp=0.9, rank_multiple=8), calibration=clips)
    assert torch.equal(probe(model), before)
    assert count_parameters(smaller.model).encoder < count_parameters(model.model).encoder
    smaller.save(tmp_path / "as-the-base")
    assert sotto.load(tmp_path / "as-the-base").stored_dtype == "float16"
    smaller.save(tmp_path / "smaller", dtype="float32")
    torch.testing.assert_close(probe(sotto.load(tmp_path / "smaller")), probe(smaller))


def test_two_methods_one_after_the_other(tmp_path: Path) -> None:
    clips = some_clips("calibration", tmp_path / "clips", 4)
    once = sotto.compress(MODEL, sotto.LowRank(parameters=0.7, rank_multiple=8), calibration=clips)
    twice = sotto.compress(once, sotto.LowRank(parameters=0.7, rank_multiple=8), calibration=clips)
    assert count_parameters(twice.model).encoder <= 0.7 * count_parameters(once.model).encoder


def test_what_is_no_method_is_refused() -> None:
    with pytest.raises(sotto.SottoError, match="is no method; known: .*low_rank"):
        sotto.compress(MODEL, "low_rank")


def test_low_rank_without_calibration_is_refused() -> None:
    with pytest.raises(sotto.SottoError, match="needs calibration clips"):
        sotto.compress(MODEL, sotto.LowRank())
