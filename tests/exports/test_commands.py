"""Exports through the command line, as a checkpoint is used, in a folder that has a name of its own or none."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from sotto.checkpoint import Recognizer
from sotto.cli import app
from sotto.errors import SottoError
from sotto.exports import export, is_export
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
    sotto("evaluate", folder, clips, "--against", checkpoint, "--json", numbers, *language)
    found = json.loads(numbers.read_text())
    assert found["comparison"]["wer_difference"] == 0
    assert found["models"][str(folder)]["wer"] == found["models"][str(checkpoint)]["wer"]


def test_the_folder_that_the_user_is_in_is_filled_and_not_replaced(
    checkpoint: Path, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = tmp_path.stat().st_ino
    said = sotto("export", checkpoint, "--to", "lite-whisper", "-o", ".", "--audio", clips, "--language", "en")
    assert said.exit_code == 0, said.output
    assert is_export(".")
    assert tmp_path.stat().st_ino == before
    assert Path.cwd() == tmp_path
    with pytest.raises(
        SottoError, match=r"^\. is the folder that you are in, and would be replaced; go to another one"
    ):
        export(str(checkpoint), ".", to="lite-whisper", audio=clips, language="en")
    with pytest.raises(SottoError, match="is the folder that you are in"):
        export(str(checkpoint), tmp_path, to="transformers", audio=clips, language="en")


def test_a_checkpoint_is_saved_in_the_empty_folder_that_the_user_is_in(
    recognizer: Recognizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recognizer.save(".")
    assert Path("config.json").is_file()
    with pytest.raises(SottoError, match="is the folder that you are in"):
        recognizer.save(".")


def test_an_empty_folder_that_cannot_be_filled_stays_empty(
    checkpoint: Path, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "out"
    place.mkdir()
    moved: list[Path] = []

    def one_then_none(source: Path, target: Path) -> None:
        if moved:
            raise OSError(28, "No space left on device")
        moved.append(target)
        os.rename(source, target)

    monkeypatch.setattr("sotto.checkpoint.shutil.move", one_then_none)
    with pytest.raises(SottoError, match=r"out: cannot be written \(No space left on device\); nothing was left there"):
        export(str(checkpoint), place, to="lite-whisper", audio=clips, language="en")
    assert moved
    assert [path.name for path in tmp_path.rglob("*")] == ["out"]


def test_brackets_in_a_folder_are_no_markup(checkpoint: Path, clips: Path, tmp_path: Path) -> None:
    folder = tmp_path / "[/v1]" / "[red]"
    said = sotto("export", checkpoint, "--to", "transformers", "-o", folder, "--audio", clips, "--language", "en")
    assert said.exit_code == 0, said.output
    assert "[/v1]/[red]" in said.stdout
