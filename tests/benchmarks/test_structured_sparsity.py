import json
from pathlib import Path
from typing import Any

import pytest

import results_file
import structured_sparsity
from conformers import make
from sotto.checkpoint import Recognizer
from tones import PITCHES, tiny_whisper, write_folder


@pytest.mark.parametrize("architecture", ["whisper", "parakeet"])
def test_every_way_has_its_rows(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = Recognizer(*tiny_whisper()) if architecture == "whisper" else make("parakeet")
    found.save(tmp_path / "base")
    write_folder(tmp_path / "train", list(PITCHES), [0.5, 0.6, 0.7, 0.8])
    write_folder(tmp_path / "validation", ["one", "two"], [0.85, 0.9])
    write_folder(tmp_path / "test", ["two", "three"], [0.95, 0.97])
    monkeypatch.setattr(results_file, "RESULTS", tmp_path / "results")
    folders = [f"--{role}={tmp_path / role}" for role in ("train", "validation", "test", "folder")]
    words = [*folders, f"--model={tmp_path / 'base'}", "--language=en", "--normalizer=basic", "--name=tones"]
    short = ["--steps=4", "--batch-size=2", "--precision=fp32", "--main=10", "--beside", "none", "basic"]
    sweep = ["--lambdas", "1", "10", "--seeds", "0", "1", "--shares", "0.3", "--thresholds", "0.3/-1.5", "0.6/-1.5"]
    sweep += ["--searched", "10", "--groups", "column/neuron", "head/neuron"]
    only = ["--encoder-only"] if architecture == "parakeet" else []
    monkeypatch.setattr("sys.argv", ["structured_sparsity.py", *words, *short, *sweep, *only])
    structured_sparsity.main()
    rows: list[dict[str, Any]] = json.loads((tmp_path / "results" / "structured-sparsity-tones.json").read_text())[
        "rows"
    ]
    counts = {way: sum(row["way"] == way for row in rows) for way in dict.fromkeys(row["way"] for row in rows)}
    assert counts == {
        "dense": 1,
        "one-shot magnitude": 1,
        "adaptive thresholds without SGL": 2,
        "IMP, global": 1,
        "IMP, layer": 1,
        "structured magnitude": 1,
        "thresholds by search without SGL": 1,
        "TSPAR, recovered": 8,
        "TSPAR, distilled": 8,
        "SGL, magnitude": 4,
        "TSPAR": 8,
        "TSPAR, thresholds by search": 3,
    }
    trained = {(row["lambda"], row["seed"], row["groups"]) for row in rows if row["way"] == "TSPAR"}
    kinds = ("column/neuron", "head/neuron")
    assert trained == {(1.0, 0, kinds[0]), (10.0, 0, kinds[0]), (10.0, 0, kinds[1]), (10.0, 1, kinds[0])}
    for row in rows:
        assert 0 <= row["removed"] <= row["pruned"] < 1
        assert row["way"] == "dense" or "search" in row["way"] or row["pruned"] > 0.05
        assert row["flops"] <= 1
        assert row["beside"]["basic"] == {
            key: row[key] for key in ("wer", "wer_interval", "cer", "cer_interval", "against_dense")
        }
        assert row["beside"]["none"]["wer"] >= row["wer"]  # the model writes capitals or marks, or it does not
    # in a model this small the names of packed tensors weigh as much as a sixth of the weights
    assert all(row["bytes"] < rows[0]["bytes"] for row in rows if row["pruned"] > 0.25)
    printed = capsys.readouterr().out
    assert printed.count("| TSPAR | lambda 10.0, seed 1, groups column/neuron, element 0.6, group -1.5 |") == 1
    monkeypatch.setattr("sys.argv", ["structured_sparsity.py", *words, *short, *sweep, *only, "--steps=5"])
    with pytest.raises(SystemExit, match="holds what was made with other settings"):
        structured_sparsity.main()


def test_calls_share_the_work_and_the_last_puts_it_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Recognizer(*tiny_whisper()).save(tmp_path / "base")
    write_folder(tmp_path / "train", list(PITCHES), [0.5, 0.6, 0.7, 0.8])
    write_folder(tmp_path / "test", ["two", "three"], [0.95, 0.97])
    monkeypatch.setattr(results_file, "RESULTS", tmp_path / "results")
    roles = {"train": "train", "validation": "test", "test": "test", "folder": "folder", "model": "base"}
    words = [f"--{role}={tmp_path / name}" for role, name in roles.items()]
    words += ["--language=en", "--normalizer=basic", "--name=tones", "--steps=4", "--batch-size=2", "--precision=fp32"]
    words += ["--shares", "0.3", "--thresholds", "0.3/-1.5", "--lambdas", "1"]
    ways = [["--ways", "IMP, global"], ["--ways", "SGL"], ["--ways", "IMP, global", "SGL"]]
    for asked in ways[:2]:
        monkeypatch.setattr("sys.argv", ["structured_sparsity.py", *words, *asked])
        structured_sparsity.main()
    kept = {path: path.stat().st_mtime for path in (tmp_path / "folder").rglob("*") if path.suffix != ".lock"}
    first = rows_of(capsys.readouterr().out)
    monkeypatch.setattr("sys.argv", ["structured_sparsity.py", *words, *ways[2]])
    structured_sparsity.main()
    assert {path: path.stat().st_mtime for path in kept} == kept
    assert rows_of(capsys.readouterr().out) == first
    monkeypatch.setattr("sys.argv", ["structured_sparsity.py", *words, "--known", "--lambdas", "1", "2"])
    structured_sparsity.main()  # of all ways and lambdas, those that there are
    assert rows_of(capsys.readouterr().out) == first
    assert not list((tmp_path / "folder").glob("sgl-*-2-*"))
    monkeypatch.setattr("sys.argv", ["structured_sparsity.py", *words, *ways[2], "--test-samples=1"])
    structured_sparsity.main()  # the models as they are, measured anew
    changed = {path for path, time in kept.items() if path.stat().st_mtime != time and path.is_file()}
    assert changed == set((tmp_path / "folder").glob("*.json")) - {tmp_path / "folder" / "settings.json"}


def rows_of(printed: str) -> set[str]:
    return {line for line in printed.splitlines() if line.startswith("| ")}


def test_a_decoder_can_have_a_threshold_of_its_own() -> None:
    alike, apart = (structured_sparsity.thresholds_of(words) for words in ("0.3/-1", "0.3/-0.75/-9"))
    assert [(step.stacks, step.element, step.group) for step in alike.steps("head/neuron")] == [
        (("encoder", "decoder"), 0.3, -1)
    ]
    assert [(step.stacks, step.element, step.group) for step in apart.steps("head/neuron")] == [
        (("encoder",), 0.3, -0.75),
        (("decoder",), 0.3, -9),
    ]
    assert {step.attention for step in apart.steps("head/neuron")} == {"head"}
    assert (alike.name, apart.name) == ("0.3--1", "0.3--0.75--9")
    assert apart.values == {"element": 0.3, "group": -0.75, "decoder_group": -9}
