import json
import sys
from pathlib import Path

import pytest

import quantization
import results_file
from digits import MODEL, some_clips


def test_every_way_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = some_clips("test", tmp_path / "clips", 3)
    monkeypatch.setattr(results_file, "RESULTS", tmp_path / "results")
    asked = {"model": MODEL, "test": clips, "language": "en", "normalizer": "basic", "name": "try"}
    options = [str(part) for key, value in asked.items() for part in (f"--{key}", value)]
    monkeypatch.setattr(sys, "argv", ["quantization.py", *options, "--torchao"])
    quantization.main()
    found = json.loads((tmp_path / "results" / "quantization-try.json").read_text())
    rows = {row["way"]: row for row in found["rows"]}
    assert list(rows)[1:] == [name for name, _ in quantization.ways(True, True)]
    dense = rows["dense, 16 bits"]
    assert dense["against_dense"] is None
    for name, row in rows.items():
        assert row["packed_bytes"] < row["bytes"] < 1.06 * row["packed_bytes"]
        assert row["milliseconds"]["total"] > row["milliseconds"]["encoder"] > 0
        assert name == "dense, 16 bits" or row["bytes"] < 0.6 * dense["bytes"]
    assert found["clips"] == 3
    assert not any(way.embedding_bits for _, way in quantization.ways(False, True))
