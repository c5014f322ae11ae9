"""What a method is: a configuration type, and the function that carries it out on a recogniser."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sotto.checkpoint import Recognizer, load
from sotto.data import ClipSource
from sotto.registry import Registry
from sotto.text import Normalizer, get_normalizer


@dataclass(frozen=True)
class StepContext:
    """What a step may use besides the model: the data roles of the recipe, and a folder for its own checkpoints."""

    folder: Path
    calibration: ClipSource | None = None
    train: tuple[ClipSource, ...] = ()
    """folders of clips, which are learnt from together"""
    validation: ClipSource | None = None
    validation_wer: Callable[[Recognizer], float] | None = None
    """WER on the validation clips, decoded and normalised as the recipe says"""
    accepted_wer: float | None = None
    """what the recipe accepts of it"""
    open: Callable[[str], Recognizer] = load
    """opens a checkpoint that a step names, with its path seen from the recipe"""
    language: str | None = None
    normalizer: Normalizer = field(default_factory=lambda: get_normalizer(None))
    seed: int = 0


Method = Callable[[Recognizer, Any, StepContext], list[str]]
"""Changes the recogniser in place and returns notes for the report, a line each."""

methods: Registry[Method] = Registry("method")
