"""Checkpoints that a recipe names: where they are, and what tells them from others of the same name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from sotto.checkpoint import load_config, local_folder

SETTINGS = ("teacher", "transcripts_from")
"""those of a step, or of what it holds, that name a checkpoint"""
MEGABYTE = 2**20


def local_or_hub(name: str, root: Path) -> str | Path:
    local = root / Path(name).expanduser()
    return local if local.exists() else name


def checkpoints_in(config: Any) -> Iterator[str]:
    """The checkpoints that a configuration names besides the base: its teachers, and what writes its transcripts."""
    for each in fields(config):
        value = getattr(config, each.name)
        if each.name in SETTINGS and value is not None:
            yield value
        for held in value if isinstance(value, tuple) else (value,):
            if is_dataclass(held):
                yield from checkpoints_in(held)


def mark_of(checkpoint: str | Path) -> str:
    """What tells a checkpoint from another of the same name: its weights, or on the hub its commit.

    Raises SottoError where it cannot be opened.
    """
    load_config(checkpoint)
    folder = local_folder(checkpoint)
    return digest_of_weights(folder) if Path(checkpoint).is_dir() else folder.name


def digest_of_weights(folder: Path) -> str:
    """Of the size and both ends of every file of weights; large ones are not read whole."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin")):
        size = path.stat().st_size
        with path.open("rb") as file:
            first = file.read(MEGABYTE)
            file.seek(max(0, size - MEGABYTE))
            digest.update(repr((path.name, size)).encode() + first + file.read())
    return digest.hexdigest()
