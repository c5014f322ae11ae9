"""Rules for the scripts of India that write vowels as marks.

Devanagari, Bengali and Assamese, Gurmukhi, Gujarati, Odia, Tamil, Telugu, Kannada, Malayalam.
"""

import re
import unicodedata

from sotto.text.normalizer import Normalizer
from sotto.text.rules import with_ascii_digits, without_invisibles, without_notes, without_signs

# Letters that older text writes with a zero width joiner, and the code each has now (Unicode Standard,
# chapter 12: 12.1 on the eyelash ra of Marathi and Nepali, 12.2 on khanda ta, 12.9 on chillus).
_JOINER_LETTERS = {
    "\u0930\u094d\u200d": "\u0931\u094d",  # र् eyelash ra
    "\u09a4\u09cd\u200d": "\u09ce",  # ৎ khanda ta
    "\u0d23\u0d4d\u200d": "\u0d7a",  # ൺ
    "\u0d28\u0d4d\u200d": "\u0d7b",  # ൻ
    "\u0d30\u0d4d\u200d": "\u0d7c",  # ർ
    "\u0d32\u0d4d\u200d": "\u0d7d",  # ൽ
    "\u0d33\u0d4d\u200d": "\u0d7e",  # ൾ
    "\u0d15\u0d4d\u200d": "\u0d7f",  # ൿ
}

# Malayalam nta has two encodings that look alike: the standard's first, and the one most text uses (Unicode L2/19-345).
_NTA, _USUAL_NTA = "\u0d7b\u0d4d\u0d31", "\u0d28\u0d4d\u0d31"

# Assamese writes the vowel o with an apostrophe (ল'ৰা); Bengali and Odia mark elisions so. Typed as any of these.
_LETTER = r"(?:[^\W\d_]|[\u0900-\u0963\u0971-\u0d7f])"  # to `re`, marks are no word characters
_APOSTROPHE = re.compile(rf"\u02bc|(?<={_LETTER})['‘’](?={_LETTER})")

_NUKTA_CLASS = 7  # canonical combining class of every nukta

# The blocks share one plan, from ISCII: a letter of the same sound stands at the same offset.
_VIRAMA, _ANUSVARA = 0x4D, 0x02
_VELAR = (0x19, 0x15)  # nasal, first of its four stops
_ALL_CLASSES = (_VELAR, (0x1E, 0x1A), (0x23, 0x1F), (0x28, 0x24), (0x2E, 0x2A))
_NASALS_OF = {
    0x0900: _ALL_CLASSES,  # Devanagari
    0x0A80: _ALL_CLASSES,  # Gujarati
    0x0C00: _ALL_CLASSES,  # Telugu
    0x0C80: _ALL_CLASSES,  # Kannada
    0x0980: (_VELAR,),  # Bengali, where the anusvara is always velar
    0x0B00: (_VELAR,),  # Odia, the same
}
_NASAL_BEFORE_ITS_STOP = re.compile(
    "|".join(
        f"{chr(block + nasal)}{chr(block + _VIRAMA)}(?=[{chr(block + stop)}-{chr(block + stop + 3)}])"
        for block, classes in _NASALS_OF.items()
        for nasal, stop in classes
    )
)
_CHANDRABINDU_TO_ANUSVARA = str.maketrans({"\u0901": "\u0902", "\u0a81": "\u0a82"})


def indic_normalizer(*, drop_nukta: bool = False, fold_nasals: bool = False) -> Normalizer:
    """Case, punctuation, digits and ways of encoding do not count; every letter and mark does.

    In this order: NFC; bracketed remarks go; letters written with a joiner (Malayalam chillus, Bengali
    khanda ta, the eyelash ra of Marathi and Nepali) get the code they have of their own, and all other
    joiners and format characters go; lower case; digits of any script become 0 to 9; an apostrophe
    within a word goes; punctuation (danda too) and symbols become spaces; NFC.

    NFC already makes precomposed nukta letters equal to letter and nukta. Letters that only look or
    sound alike stay apart: Bengali ra and Assamese ra, ड and ड़, short and long vowels.

    `drop_nukta` makes क़ equal to क. It merges letters that differ in sound (ড and ড় too).
    `fold_nasals` writes an anusvara for a nasal before a stop of its own place (हिन्दी, हिंदी), and for
    a chandrabindu in Devanagari and Gujarati (माँ, मां). Both give a lower bound, to stand beside the
    rate of `indic`, not in its place; the name becomes `indic_folded` and the version says which.
    """
    folds = [word for word, chosen in (("nukta", drop_nukta), ("nasals", fold_nasals)) if chosen]

    def function(text: str) -> str:
        text = _one_encoding(text)
        if drop_nukta:
            text = _without_nukta(text)
        text = unicodedata.normalize("NFC", text).replace(_NTA, _USUAL_NTA)
        return _with_anusvaras(text) if fold_nasals else text

    return Normalizer("indic_folded" if folds else "indic", "+".join(["1", *folds]), function)


def indic_folded_normalizer() -> Normalizer:
    """`indic` with both folds: differences that are often only of spelling do not count either."""
    return indic_normalizer(drop_nukta=True, fold_nasals=True)


def _one_encoding(text: str) -> str:
    text = without_notes(unicodedata.normalize("NFC", text))
    for sequence, letter in _JOINER_LETTERS.items():
        text = text.replace(sequence, letter)
    text = with_ascii_digits(without_invisibles(text).lower())
    return without_signs(_APOSTROPHE.sub("", text))


def _without_nukta(text: str) -> str:
    parts = unicodedata.normalize("NFD", text)
    return "".join(part for part in parts if unicodedata.combining(part) != _NUKTA_CLASS)


def _with_anusvaras(text: str) -> str:
    text = text.translate(_CHANDRABINDU_TO_ANUSVARA)
    return _NASAL_BEFORE_ITS_STOP.sub(lambda nasal: chr(ord(nasal[0][0]) & ~0x7F | _ANUSVARA), text)
