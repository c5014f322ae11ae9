"""What stands beside weights or graphs, as clients look for it, and how a folder of graphs is opened."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import AutoConfig, GenerationConfig

from sotto.checkpoint import Recognizer, write_beside
from sotto.errors import SottoError
from sotto.exports.copies import config_without_record
from sotto.families import Ctc, family_of

Model = Callable[[Any], Any]
"""Makes of a config a model that graphs compute."""


def write_settings(recognizer: Recognizer, folder: Path) -> None:
    config_without_record(recognizer.model).save_pretrained(folder)
    write_for_clients(recognizer, folder)


def write_for_clients(recognizer: Recognizer, folder: Path) -> None:
    """Decoding settings, tokenizer and features."""
    write_beside(recognizer, folder)
    name_for_clients(recognizer, folder)


def name_for_clients(recognizer: Recognizer, folder: Path) -> None:
    """Have features and special tokens in the file and under the name that clients other than transformers 5 know.

    transformers 5 keeps features within the processor's file, and calls a list of special tokens as transformers 4 does
    a dictionary, with which that fails. It still reads the older file and the older name.
    """
    recognizer.processor.feature_extractor.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(values.get("extra_special_tokens"), list):
        values["additional_special_tokens"] = values.pop("extra_special_tokens")
        write_json(values, path)


def token_of_no_timestamps(recognizer: Recognizer, runtime: str) -> int:
    """That of a Whisper, which the runtime puts before a text. Raises SottoError where the model does not name it."""
    found: int | None = getattr(recognizer.model.generation_config, "no_timestamps_token_id", None)
    if found is None:
        raise SottoError(
            f"{runtime} needs no_timestamps_token_id in the generation config; take over generation_config.json of "
            "the checkpoint that it was tuned from"
        )
    return found


def write_json(values: object, path: Path) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def opened(folder: Path, precision: str, whisper: Model, ctc: Model) -> Recognizer:
    """The export as a recogniser: its model runs the graphs."""
    config = AutoConfig.from_pretrained(folder)
    family = family_of(config)
    model = (ctc if issubclass(family, Ctc) else whisper)(config)
    if model.can_generate():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return Recognizer(model.eval(), family.load_processor(folder), precision, folder=folder)
