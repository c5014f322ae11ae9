"""The checkpoints that a training leaves in its folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
import torch

WEIGHTS = "model.safetensors"


def average(files: Sequence[Path]) -> dict[str, torch.Tensor]:
    """The mean of the weights in safetensors files; whole numbers as in the last of them."""
    loaded = [safetensors.torch.load_file(path) for path in files]
    return {
        name: torch.stack([weights[name] for weights in loaded]).mean(0) if last.is_floating_point() else last
        for name, last in loaded[-1].items()
    }


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint in `folder`, if there is one."""
    found = checkpoints(folder)
    return str(found[-1]) if found else None


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in `folder`, oldest first: one whose writing was killed is passed over."""
    states = [path for path in folder.glob("checkpoint-*/trainer_state.json") if is_json(path)]
    folders = [path.parent for path in states]  # Trainer writes its state last
    return sorted(folders, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return True
