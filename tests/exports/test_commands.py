"""Exports through the command line, as a checkpoint is used, in a folder that has a name of its own or none."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from folders import contents
from sotto.checkpoint import Recognizer
from sotto.cli import app
from sotto.errors import SottoError
from sotto.exports import export
from tones import write_folder

WORDS, SECONDS = ["one", "two", "three"], [0.9, 0.6, 0.4]


def sotto(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "160"}).invoke(app, list(map(str, arguments)))


@pytest.fixture(scope="module")
def checkpoint(template: Recognizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return template.save(tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("audio") / "clips", WORDS, SECONDS)


@pytest.mark.parametrize("to", ["onnx", "sherpa-onnx", "ctranslate2", "lite-whisper", "transformers"])
def test_every_export_is_used_as_a_checkpoint_is(to: str, checkpoint: Path, clips: Path, tmp_path: Path) -> None:
    folder, numbers = tmp_path / "out", tmp_path / "errors.json"
    said = sotto("export", checkpoint, "--to", to, "-o", folder, "--audio", clips, "--language", "en")
    assert said.exit_code == 0, said.output
    assert "transcripts of 0 in 3 clips" in said.stdout
    language = ("--language", "en")
    heard, expected = (sotto("transcribe", model, clips, *language).stdout for model in (folder, checkpoint))
    assert heard == expected
    assert heard.strip()
    done = sotto("evaluate", folder, clips, "--against", checkpoint, "--json", numbers, *language)
    assert done.exit_code == 0, done.output
    found = json.loads(numbers.read_text())
    assert found["comparison"]["wer_difference"] == 0
    assert found["models"][str(folder)]["wer"] == found["models"][str(checkpoint)]["wer"]
    timed = sotto("benchmark", checkpoint, folder, "--rounds", 1, "--repeats", 1, "--json", numbers)
    assert timed.exit_code == 0, timed.output
    rows = json.loads(numbers.read_text())["models"]
    assert [row["flops_ratio"] for row in rows] == [1.0, 1.0]
    assert all(row["numbers"]["latency"]["encoder"] > 0 for row in rows)


@pytest.mark.parametrize("to", ["onnx", "sherpa-onnx", "ctranslate2", "lite-whisper", "transformers"])
def test_clients_of_older_versions_find_tokens_and_features(
    to: str, template: Recognizer, checkpoint: Path, clips: Path, tmp_path: Path
) -> None:
    """transformers 4, on which optimum depends, fails with special tokens that are listed under the name of 5."""
    export(str(checkpoint), tmp_path / "out", to=to, audio=clips, language="en")
    tokens = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert "extra_special_tokens" not in tokens
    assert tokens["additional_special_tokens"] == template.processor.tokenizer.extra_special_tokens
    features = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert features["feature_size"] == template.processor.feature_extractor.feature_size


def test_the_folder_that_the_user_is_in_is_filled_and_not_replaced(
    checkpoint: Path, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "out"
    place.mkdir()
    monkeypatch.chdir(place)
    before = place.stat().st_ino
    for to, file in (("lite-whisper", "sotto_export.json"), ("onnx", "onnx/encoder_model.onnx")):
        said = sotto("export", checkpoint, "--to", to, "-o", ".", "--audio", clips, "--language", "en")
        assert said.exit_code == 0, said.output
        assert Path(file).is_file()
        assert place.stat().st_ino == before
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not Path("model.safetensors").exists()


@pytest.mark.parametrize("is_there", [False, True], ids=["empty", "there"])
@pytest.mark.parametrize("moves", [0, 1, 4])
def test_a_folder_that_cannot_be_filled_is_left_as_it_was(
    moves: int, is_there: bool, checkpoint: Path, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "out"
    place.mkdir()
    if is_there:
        export(str(checkpoint), place, to="transformers", audio=clips, language="en")
    monkeypatch.chdir(place)
    before = contents(tmp_path)
    done: list[Path] = []

    def move(source: Path, target: Path) -> None:
        """Fails once, after some moves."""
        done.append(target)
        if len(done) == moves + 1:
            raise OSError(28, "No space left on device")
        os.rename(source, target)

    monkeypatch.setattr("sotto.checkpoint.shutil.move", move)
    with pytest.raises(SottoError, match=r"out: cannot be written \(No space left on device\); nothing was left there"):
        export(str(checkpoint), place, to="lite-whisper", audio=clips, language="en")
    assert len(done) > moves
    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_brackets_in_a_folder_are_no_markup(checkpoint: Path, clips: Path, tmp_path: Path) -> None:
    folder = tmp_path / "[/v1]" / "[red]"
    said = sotto("export", checkpoint, "--to", "transformers", "-o", folder, "--audio", clips, "--language", "en")
    assert said.exit_code == 0, said.output
    assert "[/v1]/[red]" in said.stdout
    assert sotto("evaluate", folder, clips, "--language", "en").exit_code == 0
