"""Normalizers for any language: leave the text alone, or Whisper's multilingual rules."""

import importlib.metadata

from sotto.text.normalizer import Normalizer


def none_normalizer() -> Normalizer:
    """Case, punctuation and spelling count; only the spacing between words does not."""
    return Normalizer("none", "1", str)


def basic_normalizer() -> Normalizer:
    """Whisper's `BasicTextNormalizer`, as transformers ships it, with its defaults.

    It lowers case, applies NFKC, deletes bracketed remarks, and turns symbols, punctuation and
    combining marks into spaces. The last of these breaks words of the scripts that write vowels as
    marks (Devanagari, Bengali, Tamil, Thai and others), so an error rate of such a language under
    `basic` is not one of whole words.
    """
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer

    version = importlib.metadata.version("transformers")
    return Normalizer("basic", "1", BasicTextNormalizer(), f"transformers {version}")
