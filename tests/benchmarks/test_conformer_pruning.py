import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import conformer_pruning
import pruning_bench
import results_file
from conformers import make
from sotto.checkpoint import load
from sotto.data import DataConfig
from sotto.methods import ImportancePruning, LayerDropping, StepContext, methods
from sotto.structure import to_json
from sotto.text import get_normalizer
from sotto.training import Training
from tones import PITCHES, write_folder

GATES = ("L0 from Taylor and distillation", "L0 and distillation")
WAYS = (*GATES, "Taylor", "layer dropping", "unstructured magnitude", "smaller from nothing")
"""One of each kind, but for that which depends on how busy the machine is; the others differ in a term or in a name."""


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
        assert row["real_time_factor"] == pytest.approx(10 / row["latency"])
        by_parameters = row["way"] not in ("dense", "layer dropping")
        assert not by_parameters or 0.36 <= row["pruned"] <= 0.5  # 0.4 was asked for
    latency = {row["way"]: row["latency"] for row in found}
    assert latency["unstructured magnitude"] == latency["dense"]  # one model of that shape was timed
    assert latency["Taylor"] != latency["dense"]
    assert found[0]["against_dense"] is None
    assert found[1]["against_dense"] is not None
    assert "beyond" not in found[1]
    compared = {row["way"]: row["beyond"]["wer"] for row in found if "beyond" in row}
    assert list(compared) == list(WAYS[1:])
    learnt = [row["way"] for row in found if any("the gates learnt to leave" in note for note in row["notes"])]
    assert learnt == list(GATES)
    for row in found:
        if row["way"] in compared:
            assert compared[row["way"]] == pytest.approx(row["wer"] - found[1]["wer"])
    assert "| L0 from Taylor and distillation | 60% |" in capsys.readouterr().out


def test_a_start_from_nothing_has_the_shape_of_the_model_and_no_weight_of_it(tmp_path: Path) -> None:
    bench = bench_on(tmp_path)
    trained, fresh = bench.base().model, conformer_pruning.untrained(bench).model
    assert fresh.config.to_dict() == trained.config.to_dict()
    named = dict(trained.named_parameters())
    for name, weight in fresh.named_parameters():
        if weight.ndim > 1:
            assert not torch.equal(weight, named[name]), name
    for name, buffer in fresh.named_buffers():
        if name.endswith("running_var"):
            torch.testing.assert_close(buffer, torch.ones_like(buffer))


def bench_on(folder: Path) -> pruning_bench.Bench:
    """With a base whose batch norms have seen something."""
    found = make("parakeet")
    for name, buffer in found.model.named_buffers():
        if name.endswith("running_var"):
            buffer.fill_(2.0)
    found.save(folder / "base", dtype="float32")
    clips = DataConfig(str(folder))
    basic = get_normalizer("basic")
    training = Training(steps=1, keep="last")
    return pruning_bench.Bench(str(folder / "base"), clips, clips, clips, "en", basic, training, folder, "none")


def measured_of(*transcripts: tuple[str, str, str]) -> pruning_bench.Measured:
    return pruning_bench.Measured(10, 8, 5, 20, None, {}, (), transcripts, {})


def test_texts_as_they_are_are_read_by_any_normalizer(tmp_path: Path) -> None:
    none, basic = get_normalizer("none"), get_normalizer("basic")
    bench = replace(bench_on(tmp_path), beside=(none,))
    own = measured_of(("a", "Two!", "two"), ("b", "three", "three"))
    before = measured_of(("a", "Two!", "one"), ("b", "three", "Three"))
    assert own.errors(none).wer == 0.5
    assert own.errors(basic).wer == 0
    found = pruning_bench.rates_of(bench, own, before)
    assert (found["wer"], found["against_dense"]["wer"]) == (0, -0.5)
    assert found["beside"]["none"]["against_dense"]["wer"] == -0.5
    assert pruning_bench.rates_of(bench, own, None)["against_dense"] is None


def test_a_model_of_the_shapes_of_a_record_takes_the_place_of_the_one_that_was_pruned(tmp_path: Path) -> None:
    bench = bench_on(tmp_path)
    recognizer = bench.base()
    for step in (LayerDropping(encoder=1), ImportancePruning(0.6)):
        methods.handler(step)(recognizer, step, StepContext(tmp_path / "work"))
    structure = to_json(recognizer.structure)
    found = load(conformer_pruning.shaped(bench, structure, tmp_path / "shaped"))
    assert to_json(found.structure) == structure
    shapes = {name: weight.shape for name, weight in recognizer.model.named_parameters()}
    assert {name: weight.shape for name, weight in found.model.named_parameters()} == shapes


def test_ways_that_are_not_known_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make("parakeet").save(tmp_path / "base")
    roles = {"model": "base", "train": "base", "validation": "base", "test": "base", "folder": "folder"}
    words = [f"--{role}={tmp_path / name}" for role, name in roles.items()]
    words += ["--language=en", "--normalizer=basic", "--name=tones", "--ways", "Tailor"]
    monkeypatch.setattr("sys.argv", ["conformer_pruning.py", *words])
    with pytest.raises(SystemExit, match="unknown ways: Tailor; known: L0 from Taylor and distillation,"):
        conformer_pruning.main()
