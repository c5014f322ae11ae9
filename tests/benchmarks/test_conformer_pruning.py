import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import conformer_pruning
import results_file
from conformers import make
from tones import PITCHES, write_folder

WAYS = ("L0 and distillation", "Taylor", "layer dropping", "unstructured magnitude", "smaller from nothing")
"""One of each kind, but for that which depends on how busy the machine is; the others differ in a term or in a name."""


def timed(name: str) -> Any:
    """What `sotto benchmark` would measure, which takes a process for each model."""
    assert (Path(name) / "model.safetensors").is_file()
    return SimpleNamespace(numbers=SimpleNamespace(latency=SimpleNamespace(total=0.1)), total_speedup=1.0)


def test_every_way_has_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make("parakeet").save(tmp_path / "base")
    write_folder(tmp_path / "train", list(PITCHES), [0.5, 0.6, 0.7, 0.8])
    write_folder(tmp_path / "validation", ["one", "two"], [0.85, 0.9])
    write_folder(tmp_path / "test", ["two", "three"], [0.95, 0.97])
    monkeypatch.setattr(results_file, "RESULTS", tmp_path / "results")
    folders = [f"--{role}={tmp_path / role}" for role in ("train", "validation", "test", "folder")]
    words = [*folders, f"--model={tmp_path / 'base'}", "--language=en", "--normalizer=basic", "--name=tones"]
    short = [
        "--steps=4",
        "--recovery=2",
        "--batch-size=2",
        "--precision=fp32",
        "--rounds=1",
        "--targets",
        "0.6",
        "--ways",
        *WAYS,
    ]
    monkeypatch.setattr("sys.argv", ["conformer_pruning.py", *words, *short])
    conformer_pruning.main()
    found: list[dict[str, Any]] = json.loads((tmp_path / "results" / "conformer-pruning-tones.json").read_text())[
        "rows"
    ]
    assert [row["way"] for row in found] == ["dense", *WAYS]
    for row in found:
        assert row["latency"] > 0
        by_parameters = row["way"] not in ("dense", "layer dropping")
        assert not by_parameters or 0.36 <= row["pruned"] <= 0.5  # 0.4 was asked for
    assert found[0]["against_dense"] is None
    assert found[1]["against_dense"] is not None
    assert "| L0 and distillation | 60% |" in capsys.readouterr().out
