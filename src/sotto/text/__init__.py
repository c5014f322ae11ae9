"""Text normalizers by name or by language. A new one is a file of its own and a line in the table below."""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches

from sotto.errors import SottoError
from sotto.text.basic import basic_normalizer, none_normalizer
from sotto.text.english import english_normalizer
from sotto.text.indic import indic_folded_normalizer, indic_normalizer
from sotto.text.normalizer import Normalizer
from sotto.text.plain import plain_normalizer
from sotto.text.unspaced import chinese_normalizer, japanese_normalizer
from sotto.text.upper import upper_normalizer

__all__ = ["Normalizer", "get_normalizer", "normalizer_names"]


@dataclass(frozen=True)
class _Entry:
    name: str
    build: Callable[[], Normalizer]
    languages: tuple[str, ...] = ()


_INDIC_LANGUAGES = (
    *("hi", "hindi", "mr", "marathi", "ne", "nepali", "sa", "sanskrit"),
    *("bn", "bengali", "as", "assamese", "pa", "punjabi", "panjabi", "gu", "gujarati", "or", "odia", "oriya"),
    *("ta", "tamil", "te", "telugu", "kn", "kannada", "ml", "malayalam"),
)

_REGISTRY = (
    _Entry("none", none_normalizer),
    _Entry("basic", basic_normalizer),
    _Entry("plain", plain_normalizer),
    _Entry("upper", upper_normalizer),
    _Entry("english", english_normalizer, ("en", "english")),
    _Entry("indic", indic_normalizer, _INDIC_LANGUAGES),
    _Entry("indic_folded", indic_folded_normalizer),
    _Entry("chinese", chinese_normalizer, ("zh", "chinese", "cmn", "mandarin", "yue", "cantonese")),
    _Entry("japanese", japanese_normalizer, ("ja", "japanese")),
)


def normalizer_names() -> tuple[str, ...]:
    """The names that `get_normalizer` takes."""
    return tuple(entry.name for entry in _REGISTRY)


def get_normalizer(name: str | None = None, language: str | None = None) -> Normalizer:
    """The normalizer of that name, or else the one for that language, or else `basic`.

    `language` is a code or an English name as Whisper takes them ("en", "English", "en-GB").

    Raises:
        SottoError: no normalizer has that name.
    """
    if name is None:
        name = _name_for_language(language)
    for entry in _REGISTRY:
        if entry.name == name:
            return entry.build()
    nearest = get_close_matches(name.lower(), normalizer_names(), n=1)
    hint = f"did you mean '{nearest[0]}'? " if nearest else ""
    raise SottoError(f"unknown normalizer '{name}': {hint}the known ones are {', '.join(normalizer_names())}")


def _name_for_language(language: str | None) -> str:
    code = (language or "").strip().lower().replace("_", "-").split("-")[0]
    return next((entry.name for entry in _REGISTRY if code in entry.languages), "basic")
