"""The target `transformers`: a plain checkpoint, which needs no Sotto where it is used, in the shapes of the base."""

from __future__ import annotations

from pathlib import Path

from sotto.checkpoint import Recognizer, load
from sotto.exports.copies import dense_copy
from sotto.exports.settings import name_for_clients


def write(recognizer: Recognizer, folder: Path, precision: str) -> None:
    """Weights, config, generation config, tokenizer and feature extractor in `folder`."""
    plain = Recognizer(dense_copy(recognizer), recognizer.processor)
    plain.save(folder, dtype=precision, packed=False)
    name_for_clients(plain, folder)


def read(folder: Path, precision: str) -> Recognizer:
    """The checkpoint, on the CPU, computed in float32."""
    return load(folder, device="cpu")
