"""Words as they are said: lower case, without punctuation."""

import unicodedata

from sotto.text.normalizer import Normalizer

APOSTROPHES = str.maketrans("\u2019\u02bc", "''")


def plain_normalizer() -> Normalizer:
    """Lower case, NFC, and nothing but letters, marks, digits, and apostrophes within a word.

    For transcripts to learn from: a recogniser of words need not learn where commas go. Spelling, numbers and
    contractions stay as they are.
    """
    return Normalizer("plain", "1", plain)


def plain(text: str) -> str:
    text = unicodedata.normalize("NFC", text.lower()).translate(APOSTROPHES)
    kept = [character if in_word(character) else " " for character in text]
    for index in range(1, len(text) - 1):
        if text[index] == "'" and kept[index - 1] != " " and in_word(text[index + 1]):
            kept[index] = "'"
    return "".join(kept)


def in_word(character: str) -> bool:
    return unicodedata.category(character)[0] in "LMN"
