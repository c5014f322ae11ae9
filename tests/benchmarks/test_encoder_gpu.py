"""The benchmark of large-v3's encoder, as far as it can be looked at without a GPU."""

from functools import partial
from typing import Any

import pytest
import torch

import encoder_gpu
from shapes import random_whisper


def test_every_linear_of_every_layer_has_a_published_rank() -> None:
    found = list(encoder_gpu.ranks())
    assert {(index, linear) for index, linear, _ in found} == {
        (index, linear) for index in range(32) for linear in encoder_gpu.LINEARS
    }
    assert len(found) == 32 * 6
    assert found[0] == (0, "q_proj", 0.03)
    assert found[20 * 6 + 5] == (20, "fc2", 0.01)  # a massive activation: one direction is nearly all of the variance


def test_without_a_gpu_it_says_so_and_runs_the_rest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written: dict[str, Any] = {}
    monkeypatch.setattr("sys.argv", ["encoder_gpu.py", "--batches", "4", "--rounds", "2"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    small = {name: partial(random_whisper, "tiny", decoder_layers=1) for name in ("dense", "fast")}
    monkeypatch.setattr(encoder_gpu, "BUILDERS", small)
    monkeypatch.setattr(encoder_gpu, "write_results", lambda name, values: written.update(values, name=name))
    encoder_gpu.main()
    assert "no GPU here" in capsys.readouterr().out
    assert written["name"] == "encoder-without-gpu"
    rows = written["rows"]
    assert [(row["mode"], row["batch"], row["encoder"]) for row in rows] == [
        ("eager", 1, "dense"),
        ("eager", 1, "fast"),
    ]
    assert rows[1]["speedup"] == pytest.approx(rows[0]["seconds"] / rows[1]["seconds"])
