"""`tokens.txt` as sherpa-onnx reads it: a line for every token, with its symbol and its number."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

from sotto.errors import SottoError

BLANK = "<blk>"  # by this name sherpa-onnx looks for it
SPACE = "▁"  # at the beginning of a symbol
TIME = re.compile(r"<\|\d+\.\d+\|>")


def write_tokens(symbols: Iterable[tuple[str, int]], folder: Path) -> None:
    lines = [f"{symbol} {number}\n" for symbol, number in symbols]
    (folder / "tokens.txt").write_text("".join(lines), encoding="utf-8")


def text_tokens(tokenizer: Any) -> Iterable[tuple[str, int]]:
    """Whisper's tokens of text, their bytes in base64. What is not in the list sherpa-onnx leaves out of a text.

    Raises SottoError for a token that is not written in the letters that stand for bytes.
    """
    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    added = tokenizer.added_tokens_decoder
    for token, number in sorted_vocabulary(tokenizer):
        if number not in added and token:
            if not byte_of.keys() >= set(token):
                raise SottoError(
                    f"sherpa-onnx takes tokens by their bytes, which token {number}, '{token}', does not spell; "
                    "export to onnx"
                )
            yield base64.b64encode(bytes(byte_of[character] for character in token)).decode(), number
        elif number in added and not (added[number].special or TIME.fullmatch(token)):  # a word that a user added
            yield base64.b64encode(token.encode()).decode(), number


def ctc_tokens(tokenizer: Any, blank: int) -> Iterable[tuple[str, int]]:
    """Pieces of words, or characters and what stands between words."""
    between_words = getattr(tokenizer, "word_delimiter_token", None)
    for token, number in sorted_vocabulary(tokenizer):
        yield BLANK if number == blank else SPACE if token in (between_words, " ") else token, number


def sorted_vocabulary(tokenizer: Any) -> list[tuple[str, int]]:
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    return sorted(vocabulary.items(), key=lambda entry: entry[1])
