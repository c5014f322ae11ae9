"""Whisper's rules for English text."""

import importlib.metadata
import re
from collections.abc import Mapping

from sotto.text.normalizer import Normalizer

# Python refuses to read an integer of more than 4300 digits, which a model stuck on "000,000," can write.
_ENDLESS_NUMBER = re.compile(r"[\d,.]{4000}(?=[\d,.])")


def english_normalizer(spellings: Mapping[str, str] | None = None) -> Normalizer:
    """Whisper's `EnglishTextNormalizer`, as transformers ships it.

    It lowers case, deletes bracketed remarks, punctuation, diacritics and fillers ("um"), expands
    contractions and titles, and writes numbers and amounts in digits.

    British spellings become American ones only by the table in `spellings` (British -> American).
    transformers has no such table of its own: `WhisperTokenizer.normalize` takes it from the
    `normalizer.json` of the checkpoint (`tokenizer.english_spelling_normalizer`, None where that file
    is missing). The registry gives none, so that one normalizer serves checkpoints with and without a
    table; where there is one, the version says so.
    """
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    whisper = EnglishTextNormalizer(dict(spellings or {}))

    def function(text: str) -> str:
        return str(whisper(_ENDLESS_NUMBER.sub(r"\g<0> ", text)))

    return Normalizer(
        name="english",
        version=f"1+{len(spellings)} spellings" if spellings else "1",
        function=function,
        source=f"transformers {importlib.metadata.version('transformers')}",
    )
