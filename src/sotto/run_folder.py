"""The folder of a run: of one recipe, one base and one set of data, and of one process at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from sotto.errors import SottoError

LOCK = ".lock"
INPUTS = "inputs.json"
RESULTS = ("steps/[1-9]*/numbers.json", "checkpoints/checkpoint-*", "steps/[1-9]*/work/**/checkpoint-*")
"""what tells that work was done: a finished step, or a checkpoint of a training, also of one within a step"""


@contextmanager
def claimed(folder: Path, recipe: str, inputs: Mapping[str, str]) -> Iterator[None]:
    """Make the folder, or go on in one that holds a run of the very same resolved recipe (YAML) and inputs.

    `inputs` says for checkpoints and data what tells them from others. A run without results yet is begun anew.
    Raises SottoError where the folder holds anything else, is in use by another process, or cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise SottoError(f"{folder} is a file; name a folder")
    if not (folder / "recipe.yaml").is_file() and any(map(is_foreign, folder.glob("*"))):
        raise SottoError(f"{folder} is not empty and holds no run; name a new folder")
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = lock.acquire()
    except Timeout as error:
        raise SottoError(f"{folder}: another sotto is at work there; wait for it, or name another folder") from error
    except OSError as error:
        raise cannot_be_written(folder, error) from error
    with held:
        try:
            begin(folder, {"recipe.yaml": recipe, INPUTS: json.dumps(inputs, indent=1, ensure_ascii=False)})
        except OSError as error:
            raise cannot_be_written(folder, error) from error
        yield


def cannot_be_written(folder: Path, error: OSError) -> SottoError:
    return SottoError(f"{folder}: cannot be written ({error.strerror}); name another folder")


def begin(folder: Path, texts: Mapping[str, str]) -> None:
    """Write down what the run is of, file by file, unless another run's results are there."""
    changed = [name for name, text in texts.items() if not holds(folder / name, text)]
    if changed:
        if any(path for pattern in RESULTS for path in folder.glob(pattern)):
            what = "recipe" if "recipe.yaml" in changed else "base or teacher, or of other data"
            raise SottoError(f"{folder} holds a run of another {what}; name a new folder, or remove this one")
        shutil.rmtree(folder / "steps", ignore_errors=True)
    for name in changed:
        write_text(folder / name, texts[name])
    for left in folder.glob("**/.*.partial"):  # of a run that was killed while it saved
        shutil.rmtree(left, ignore_errors=True)
        left.unlink(missing_ok=True)


def is_foreign(path: Path) -> bool:
    """Whether a file in the folder is none that a run leaves there before its recipe."""
    return path.name != LOCK and not path.name.endswith(".partial")


def holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
