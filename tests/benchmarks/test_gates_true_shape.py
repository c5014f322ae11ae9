import json
from pathlib import Path

import pytest

import gates_true_shape
import results_file
from sotto.new_models.parakeet import NewParakeet


def test_every_stage_is_measured_and_half_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results_file, "RESULTS", tmp_path)
    small = NewParakeet(hidden_size=32, layers=2, attention_heads=4, subsampling_channels=8, vocabulary=30)
    monkeypatch.setattr(gates_true_shape, "SHAPE", small)
    monkeypatch.setattr("sys.argv", ["gates_true_shape.py", "--seconds", "1", "--steps", "2"])
    gates_true_shape.main()
    found = json.loads((tmp_path / "gates-true-shape.json").read_text())
    assert [stage["stage"] for stage in found["stages"]] == [
        "model",
        "gates",
        "teacher and optimiser",
        "optimiser step 1",
        "optimiser step 2",
        "decision and removal",
    ]
    peaks = [stage["peak_memory"] for stage in found["stages"]]
    assert peaks[0] > 0
    assert peaks == sorted(peaks)
    assert 0.3 < found["parameters"]["after"] / found["parameters"]["before"] <= 0.5
