"""Rules that several normalizers share, each a function from text to text."""

import re
import unicodedata

_NOTE = re.compile(r"[<＜][^<>＜＞]*[>＞]|[\[［][^\[\]［］]*[\]］]|[(（][^()（）]*[)）]")
_ZERO_WIDTH_SPACE = "\u200b"
_VARIATION_SELECTORS = frozenset(map(chr, (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))))


def without_notes(text: str) -> str:
    """Remarks in angle, square or round brackets (full-width ones too) become spaces: "[noise]", "(笑)".

    As in Whisper's normalizers a bracketed remark counts as not spoken. A bracket without its
    partner takes nothing with it.
    """
    return _NOTE.sub(" ", text)


def without_signs(text: str) -> str:
    """Punctuation and symbols (Unicode categories P and S) become spaces; marks (M) stay."""
    return "".join(" " if unicodedata.category(character)[0] in "PS" else character for character in text)


def without_invisibles(text: str) -> str:
    """Format characters (category Cf: joiners, byte order mark, soft hyphen) and variation selectors go.

    The zero width space is one of them, but stands between words: it becomes a space.
    """
    text = text.replace(_ZERO_WIDTH_SPACE, " ")
    return "".join(character for character in text if not _is_invisible(character))


def with_ascii_digits(text: str) -> str:
    """The decimal digits of every script (category Nd) become 0 to 9."""
    return "".join(str(unicodedata.decimal(character, character)) for character in text)


def _is_invisible(character: str) -> bool:
    return unicodedata.category(character) == "Cf" or character in _VARIATION_SELECTORS
