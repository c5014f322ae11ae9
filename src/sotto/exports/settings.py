"""What stands beside graphs, config, generation config, tokenizer and feature extractor, and how a folder is opened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import AutoConfig, GenerationConfig

from sotto.checkpoint import Recognizer, write_beside
from sotto.exports.copies import config_without_record
from sotto.families import Ctc, family_of

Model = Callable[[Any], Any]
"""Makes of a config a model that graphs compute."""


def write_settings(recognizer: Recognizer, folder: Path) -> None:
    config_without_record(recognizer.model).save_pretrained(folder)
    write_beside(recognizer, folder)
    recognizer.processor.feature_extractor.save_pretrained(folder)  # the file that clients other than transformers read


def opened(folder: Path, precision: str, whisper: Model, ctc: Model) -> Recognizer:
    """The export as a recogniser: its model runs the graphs."""
    config = AutoConfig.from_pretrained(folder)
    family = family_of(config)
    model = (ctc if issubclass(family, Ctc) else whisper)(config)
    if model.can_generate():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return Recognizer(model.eval(), family.load_processor(folder), precision, folder=folder)
