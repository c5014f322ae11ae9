"""An export that fails half-way leaves everything as it was."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sotto.checkpoint import Recognizer
from sotto.errors import SottoError
from sotto.exports import export
from tones import write_folder


def half_written(error: BaseException) -> Callable[..., Any]:
    """Writes a file of what it is asked for, and fails."""

    def fail(_: object, folder: Path, *__: object) -> None:
        (folder / "config.json").write_text("{")
        raise error

    return fail


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*_: object) -> None:
        raise error

    return fail


def full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


NO_SPACE = r"out: cannot be written \(No space left on device\); nothing was left there"
FAILURES: dict[str, tuple[str, Callable[..., Any], type[BaseException], str | None]] = {
    "disk full while writing": ("transformers_folder.write", half_written(full()), SottoError, NO_SPACE),
    "disk full at the end": ("exporting.write_record", raising(full()), SottoError, NO_SPACE),
    "Ctrl-C while writing": ("transformers_folder.write", half_written(KeyboardInterrupt()), KeyboardInterrupt, None),
    "Ctrl-C while comparing": ("exporting.by_export", raising(KeyboardInterrupt()), KeyboardInterrupt, None),
    "Ctrl-C at the end": ("exporting.replace_folder", raising(KeyboardInterrupt()), KeyboardInterrupt, None),
}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("is_there", [False, True], ids=["new", "there"])
@pytest.mark.parametrize("case", FAILURES)
def test_a_failed_export_leaves_everything_as_it_was(
    case: str, is_there: bool, recognizer: Recognizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = write_folder(tmp_path / "clips", ["one"], [0.6])
    place = tmp_path / "new" / "out"
    if is_there:
        export(recognizer, place, to="lite-whisper", audio=clips, language="en")
    before, folders = contents(tmp_path), {path for path in tmp_path.rglob("*") if path.is_dir()}
    failing, failure, error, message = FAILURES[case]
    monkeypatch.setattr(f"sotto.exports.{failing}", failure)
    with pytest.raises(error, match=message):
        export(recognizer, place, to="transformers", audio=clips, language="en")
    assert contents(tmp_path) == before
    assert {path for path in tmp_path.rglob("*") if path.is_dir()} == folders
