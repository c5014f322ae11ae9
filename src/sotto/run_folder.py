"""The folder of a run: one recipe's, and no other's."""

from __future__ import annotations

import shutil
from pathlib import Path

from sotto.errors import SottoError


def claim_folder(folder: Path, recipe: str) -> None:
    """Make the folder, or go on in one that holds a run of the very same resolved recipe (YAML).

    Raises SottoError where it holds anything else, or cannot be written.
    """
    written = folder / "recipe.yaml"
    if folder.exists() and not folder.is_dir():
        raise SottoError(f"{folder} is a file; name a folder")
    if written.is_file():
        if written.read_text(encoding="utf-8") != recipe:
            raise SottoError(f"{folder} holds a run of another recipe; name a new folder, or remove this one")
    elif folder.exists() and any(not path.name.endswith(".partial") for path in folder.iterdir()):
        raise SottoError(f"{folder} is not empty and holds no run; name a new folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(written, recipe)
    except OSError as error:
        raise SottoError(f"{folder}: cannot be written ({error.strerror}); name another folder") from error
    for left in folder.glob("**/.*.partial"):  # of a run that was killed while it saved
        shutil.rmtree(left, ignore_errors=True)
        left.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
