"""Rules for Chinese and Japanese, which put no spaces between words.

After them a whole text is one word. CER is the rate to read; WER is then the share of texts with any
error at all (the sentence error rate).
"""

import unicodedata

from sotto.text.normalizer import Normalizer
from sotto.text.rules import without_invisibles, without_notes, without_signs


def chinese_normalizer() -> Normalizer:
    """Characters count; width, case, punctuation and all spaces do not.

    Bracketed remarks go; NFKC makes full-width letters and digits plain ones and compatibility forms
    the characters they stand for; lower case; punctuation, symbols, invisible characters and spaces go,
    those between foreign words too.

    Traditional and simplified characters stay apart (學 is not 学): a recogniser that writes the other
    script gets errors for it. Number words stay apart from digits (三 is not 3).
    """
    return Normalizer("chinese", "1", _without_spaces)


def japanese_normalizer() -> Normalizer:
    """The rules of `chinese`, under which half-width katakana become full-width ones.

    Hiragana, katakana and kanji for the same sound stay apart, as do small and large kana; the long
    vowel sign ー and the iteration sign 々 are letters and stay.
    """
    return Normalizer("japanese", "1", _without_spaces)


def _without_spaces(text: str) -> str:
    # Remarks first: NFKC writes ㈱ as (株), which is no remark.
    text = unicodedata.normalize("NFKC", without_notes(text)).lower()
    text = "".join(without_signs(without_invisibles(text)).split())
    return unicodedata.normalize("NFKC", text)
