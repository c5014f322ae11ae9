"""Runs on the demo model: measured, resumed, refused, and the demo itself through the command line."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import yaml

import sotto.run
from digits import MODEL, some_clips
from recognizers import recognizer as of_architecture
from sotto.checkpoint import load
from sotto.data import DataConfig, open_data
from sotto.errors import NotAcceptedError, SottoError
from sotto.exports.record import read_record
from sotto.metrics.cost import count_parameters
from sotto.recipe import Recipe, parse_recipe
from sotto.report.numbers import RunNumbers
from sotto.run import carry_out
from sotto.run_inputs import check_needs


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    some_clips("calibration", root / "calibration", 6)
    some_clips("test", root / "test", 8)
    return root


def recipe(data: Path, /, **changes: object) -> Recipe:
    values: dict[str, object] = {
        "base": str(MODEL),
        "language": "en",
        "normalizer": "basic",
        "data": {"calibration": {"path": str(data / "calibration")}, "test": {"path": str(data / "test")}},
        "steps": [{"low_rank": {"parameters": 0.6, "rank_multiple": 8}}],
        "dtype": "float16",
    }
    return parse_recipe(values | changes, "test")


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("runs") / "run"
    said: list[str] = []
    carry_out(recipe(data), data, folder, said.append)
    return folder, said


def test_a_run_leaves_a_smaller_model_and_a_report(finished: tuple[Path, list[str]]) -> None:
    folder, _ = finished
    before, after = (count_parameters(load(path).model).encoder for path in (MODEL, folder / "model"))
    assert 0.55 * before < after <= 0.6 * before
    numbers = json.loads((folder / "report.json").read_text())
    assert [model["name"] for model in numbers["models"]] == ["base", "low_rank"]
    assert numbers["models"][1]["parameters"]["encoder"] == after
    assert numbers["models"][1]["comparison"]["clips"] == 8
    kept = json.loads((folder / "steps" / "speed.json").read_text())
    assert [model["latency"] for model in numbers["models"]] == kept
    assert all(latency["encoder"] > 0 for latency in kept)
    assert "<html" in (folder / "report.html").read_text()
    assert (folder / "model" / "README.md").read_text().startswith("---\nlanguage: en")


def test_a_second_start_skips_what_is_finished(data: Path, finished: tuple[Path, list[str]]) -> None:
    folder, _ = finished
    written = (folder / "steps" / "1-low_rank" / "model" / "model.safetensors").stat().st_mtime_ns
    said: list[str] = []
    again = carry_out(recipe(data), data, folder, said.append)
    assert said == ["base: measured already", "low_rank: finished already"]
    assert (folder / "steps" / "1-low_rank" / "model" / "model.safetensors").stat().st_mtime_ns == written
    assert again.models[1].errors is not None


def test_a_recipe_is_exported_once(data: Path, tmp_path: Path) -> None:
    wanted = recipe(data, export=["transformers", {"lite-whisper": {"precision": "float16"}}])
    said: list[str] = []
    first = carry_out(wanted, data, tmp_path / "run", said.append)
    names = ["transformers-float32", "lite-whisper-float16"]
    notes = {line for line in said if line.endswith(": exact, nothing gained")}
    filled_up = [(name, "attention in the reduced dimension") for name in names] + [
        (names[0], "factors in the encoder")
    ]
    assert notes == {f"{name}: {change}: exact, nothing gained" for name, change in filled_up}
    exporting = [line for line in said if line.startswith(tuple(names)) and line not in notes]
    assert exporting == [*(f"{name}: exporting" for name in names), *(f"{name}: measuring" for name in names)]
    check_exports(first, names)
    exports = tmp_path / "run" / "exports"
    assert sorted(path.name for path in exports.iterdir()) == ["lite-whisper-float16", "transformers-float32"]
    assert read_record(exports / "lite-whisper-float16").agreement.clips == 4
    shutil.rmtree(exports / "transformers-float32")
    said.clear()
    again = carry_out(wanted, data, tmp_path / "run", said.append)
    assert [line for line in said[-5:] if not line.endswith("nothing gained")] == [
        "transformers-float32: exporting",
        "lite-whisper-float16: exported already",
        "transformers-float32: measuring",
    ]
    assert again.exports == first.exports


def check_exports(numbers: RunNumbers, names: list[str]) -> None:
    """They stand in the report, measured on the same clips as the model, of which they say the same."""
    assert [each.name for each in numbers.exports] == names
    last = numbers.models[-1].errors
    for each in numbers.exports:
        assert each.errors is not None
        assert last is not None
        assert each.comparison is not None
        assert [clip.name for clip in each.errors.per_clip] == [clip.name for clip in last.per_clip]
        assert each.errors.wer == pytest.approx(last.wer, abs=0.15)  # of eight clips
        assert each.bytes_on_disk is not None
        assert each.bytes_on_disk > 0
        assert "transcripts of" in each.notes[-1]


def run_of(data: Path, folder: Path, role: str, *exports: object, model: Path = MODEL) -> sotto.run.Run:
    """A run of finished steps, which has clips of that role."""
    shutil.copytree(model, folder / "model")
    (folder / "steps").mkdir()
    source = open_data(DataConfig(str(data / role)), sampling_rate=16_000)
    return sotto.run.Run(recipe(data, export=list(exports)), data, folder, {role: source}, (), print)


def test_exports_are_calibrated_on_calibration_clips_alone(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never on those that errors are measured on, nor on bundled ones of other speech."""
    calibrated = {"openvino": {"precision": "int8-calibrated"}}
    run = run_of(data, tmp_path, "calibration", calibrated)
    written = Mock()
    monkeypatch.setattr("sotto.run.export_on", written)
    written.return_value.notes = ()
    sotto.run.write_exports(run)
    _, _, to, precision, clips = written.call_args.args
    assert (to, precision) == ("openvino", "int8-calibrated")
    assert [each.name for each in clips] == [each.name for each in run.sources["calibration"]]
    quantized = recipe(data, steps=[{"quantization": {}}], export=[calibrated])
    bare = replace(quantized, data=replace(quantized.data, calibration=None))
    with pytest.raises(SottoError, match=r"openvino-int8-calibrated takes its scales from data\.calibration"):
        check_needs(bare)


def test_a_recipe_is_exported_to_graphs(data: Path, tmp_path: Path) -> None:
    saved = of_architecture("parakeet").save(tmp_path / "saved")
    exports = [{"onnx": {"precision": "int8"}}, {"openvino": {"precision": "int8-calibrated"}}]
    run = run_of(data, tmp_path, "calibration", *exports, model=saved)
    sotto.run.write_exports(run)
    said: list[str] = []
    run = replace(run, sources={"test": run.sources["calibration"]}, say=said.append)
    before = sotto.run.evaluated(run, load(saved, device="cpu"), run.sources["test"])
    for name in ("onnx-int8", "openvino-int8-calibrated"):
        record = read_record(tmp_path / "exports" / name)
        assert f"{record.target}-{record.precision}" == name
        assert record.agreement.clips == 4
        found = sotto.run.measured_export(run, name, before)
        assert found.errors is not None
        assert found.errors.clips == before.clips > 0
        assert found.errors.wer == pytest.approx(before.wer, abs=0.15)
        assert found.comparison is not None
        assert sotto.run.measured_export(run, name, before) == found
    assert said == ["onnx-int8: measuring", "openvino-int8-calibrated: measuring"]  # kept for a second start


def test_another_recipe_is_refused_in_the_same_folder(data: Path, finished: tuple[Path, list[str]]) -> None:
    with pytest.raises(SottoError, match="another recipe"):
        carry_out(recipe(data, seed=1), data, finished[0], print)


def test_a_folder_with_something_else_is_refused(data: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(SottoError, match="holds no run"):
        carry_out(recipe(data), data, tmp_path, print)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_a_step_that_costs_too_much_fails_the_run(data: Path, tmp_path: Path) -> None:
    roles = {
        "calibration": {"path": str(data / "calibration")},
        "validation": {"path": str(data / "test")},
    }
    crude = [{"low_rank": {"attention": 0.2, "mlp": 0.2, "rank_multiple": 1}}]
    with pytest.raises(NotAcceptedError, match=r"raises WER on validation by \d+\.\d\d points.*accepts 0\.5"):
        carry_out(recipe(data, data=roles, steps=crude, accept={"wer_increase": 0.5}), data, tmp_path / "run", print)


def test_a_clip_in_two_roles_is_refused(data: Path, tmp_path: Path) -> None:
    roles = {role: {"path": str(data / "test")} for role in ("calibration", "test")}
    with pytest.raises(SottoError, match="calibration.*test"):
        carry_out(recipe(data, data=roles), data, tmp_path / "run", print)
    assert not (tmp_path / "run").exists()


def test_test_clips_without_transcripts_are_refused(data: Path, tmp_path: Path) -> None:
    bare = some_clips("test", tmp_path / "bare", 2)
    (bare / "metadata.csv").unlink()
    roles = {"calibration": {"path": str(data / "calibration")}, "test": {"path": str(bare)}}
    with pytest.raises(SottoError, match="no transcripts"):
        carry_out(recipe(data, data=roles), data, tmp_path / "run", print)


def test_a_step_whose_save_fails_leaves_nothing_and_can_be_repeated(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise SottoError("cannot be written (No space left on device)")

    with monkeypatch.context() as patch:
        patch.setattr(sotto.run, "save", full)
        with pytest.raises(SottoError, match="No space left"):
            carry_out(recipe(data), data, tmp_path / "run", print)
    assert not (tmp_path / "run" / "steps" / "1-low_rank" / "numbers.json").exists()
    said: list[str] = []
    carry_out(recipe(data), data, tmp_path / "run", said.append)
    assert said[0] == "base: measured already"
    assert (tmp_path / "run" / "model" / "config.json").is_file()


def test_a_run_that_was_killed_goes_on(data: Path, tmp_path: Path) -> None:
    values = yaml.safe_load(sotto.run.recipe_as_yaml(recipe(data)))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    command = [sys.executable, "-m", "sotto", "compress", str(tmp_path / "recipe.yaml"), "-o", str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    base = tmp_path / "run" / "steps" / "0-base" / "numbers.json"
    deadline = time.monotonic() + 120
    while not base.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert base.exists()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "base: measured already" in done.stderr
    assert (tmp_path / "run" / "report.html").is_file()
