"""The rules of `indic`, one by one, and what holds of any text."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sotto.metrics.errors import measure_errors
from sotto.text import Normalizer, get_normalizer
from sotto.text.indic import indic_normalizer

INDIC = get_normalizer("indic")
FOLDED = get_normalizer("indic_folded")

ZWNJ, ZWJ = "\u200c", "\u200d"
VIRAMAS = "\u094d\u09cd\u0a4d\u0acd\u0b4d\u0bcd\u0c4d\u0ccd\u0d4d"
CHILLUS = {  # the code of its own, and the consonant it is made of
    "\u0d7a": "\u0d23",
    "\u0d7b": "\u0d28",
    "\u0d7c": "\u0d30",
    "\u0d7d": "\u0d32",
    "\u0d7e": "\u0d33",
    "\u0d7f": "\u0d15",
}
NUKTA_LETTERS = {  # precomposed: letter and nukta
    "Devanagari": "\u0929\u0931\u0934\u0958\u0959\u095a\u095b\u095c\u095d\u095e\u095f",
    "Bengali": "\u09dc\u09dd\u09df",
    "Gurmukhi": "\u0a33\u0a36\u0a59\u0a5a\u0a5b\u0a5e",
    "Odia": "\u0b5c\u0b5d",
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("प्राचीन संस्कृतियों और", "प्राचीन संस्कृतियों और", id="Devanagari marks stay"),
        pytest.param("তেজপুৰলৈ যাব", "তেজপুৰলৈ যাব", id="Assamese"),
        pytest.param("বাংলা ভাষা", "বাংলা ভাষা", id="Bengali"),
        pytest.param("ਪੰਜਾਬੀ ਵਿੱਚ", "ਪੰਜਾਬੀ ਵਿੱਚ", id="Gurmukhi tippi and addak"),
        pytest.param("ગુજરાતી ભાષા", "ગુજરાતી ભાષા", id="Gujarati"),
        pytest.param("ଓଡ଼ିଆ ଭାଷା", "ଓଡ଼ିଆ ଭାଷା", id="Odia"),
        pytest.param("தமிழ் மொழி அஃது", "தமிழ் மொழி அஃது", id="Tamil with aytham"),
        pytest.param("తెలుగు భాష", "తెలుగు భాష", id="Telugu"),
        pytest.param("ಕನ್ನಡ ಭಾಷೆ", "ಕನ್ನಡ ಭಾಷೆ", id="Kannada"),
        pytest.param("മലയാളം ഭാഷ", "മലയാളം ഭാഷ", id="Malayalam"),
        pytest.param("ऽ ॐ दुःख", "ऽ ॐ दुःख", id="avagraha, om and visarga are letters and a mark"),
        pytest.param("वह चाय पी रहा है।", "वह चाय पी रहा है", id="danda"),
        pytest.param("धर्मक्षेत्रे॥ १॥", "धर्मक्षेत्रे 1", id="double danda"),
        pytest.param("है।वह", "है वह", id="a danda without a space still parts words"),
        pytest.param("डॉ॰ राम", "डॉ राम", id="abbreviation sign"),
        pytest.param("है| “क्या?” — हाँ!", "है क्या हाँ", id="bar for danda, quotes, dash"),
        pytest.param("चाय-वाय", "चाय वाय", id="hyphen"),
        pytest.param("₹ 50 %", "50", id="symbols"),
        pytest.param("हाँ [शोर] जी (हँसी) <noise>", "हाँ जी", id="remarks"),
        pytest.param("हाँ[शोर]जी", "हाँ जी", id="a remark parts words"),
        pytest.param("5 < 6, (अच्छा", "5 6 अच्छा", id="a lone bracket takes nothing with it"),
        pytest.param("WhatsApp पर OK", "whatsapp पर ok", id="lower case"),
        pytest.param("हाँ ❤\ufe0f जी", "हाँ जी", id="no selector is left of an emoji"),
    ],
)
def test_marks_stay_and_signs_go(text: str, expected: str) -> None:
    assert INDIC(text) == unicodedata.normalize("NFC", expected)


@pytest.mark.parametrize("zero", [0x0966, 0x09E6, 0x0A66, 0x0AE6, 0x0B66, 0x0BE6, 0x0C66, 0x0CE6, 0x0D66, 0xFF10])
def test_digits_of_every_script(zero: int) -> None:
    assert INDIC("".join(chr(zero + value) for value in range(10))) == "0123456789"


def test_numbers_that_are_no_decimal_digits_stay() -> None:
    assert INDIC("\u0bf0 \u0d70 \u09f4") == "\u0bf0 \u0d70 \u09f4"  # Tamil and Malayalam ten, Bengali one sixteenth


@pytest.mark.parametrize("letter", "".join(NUKTA_LETTERS.values()))
def test_precomposed_nukta_letters_are_letter_and_nukta(letter: str) -> None:
    pair = unicodedata.normalize("NFD", letter)
    assert len(pair) == 2
    assert INDIC(letter) == INDIC(pair) != INDIC(pair[0])


@pytest.mark.parametrize(("chillu", "consonant"), CHILLUS.items())
def test_a_chillu_is_the_same_in_both_encodings(chillu: str, consonant: str) -> None:
    virama = "\u0d4d"
    assert INDIC(f"അവ{consonant}{virama}{ZWJ}") == f"അവ{chillu}"
    assert INDIC(f"അവ{chillu}") == f"അവ{chillu}"
    assert INDIC(f"അവ{consonant}{virama}") == f"അവ{consonant}{virama}"  # another word: it ends in a short vowel


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(f"ശാപ്പിടാന്{ZWJ} എന്നു", "ശാപ്പിടാൻ എന്നു", id="chillu before a space"),
        pytest.param(f"അയ്{ZWNJ}ക്കു", "അയ്ക്കു", id="Malayalam non-joiner"),
        pytest.param("എൻ്റെ", "എന്റെ", id="nta, two encodings"),
        pytest.param(f"എന്{ZWJ}്റെ", "എന്റെ", id="nta, with a joiner"),
        pytest.param("ഹെൻറി", "ഹെൻറി", id="n and rra, another sound"),
        pytest.param(f"উত্{ZWJ}সব", "উৎসব", id="khanda ta"),
        pytest.param("উত্সব", "উত্সব", id="ta with virama is not khanda ta"),
        pytest.param(f"দর্{ZWJ}জা", "দর্জা", id="any other Bengali joiner goes"),
        pytest.param(f"র{ZWJ}্যাব", "র্যাব", id="a joiner before the virama goes"),
        pytest.param(f"दर्{ZWJ}या", "दऱ्या", id="eyelash ra, two encodings"),
        pytest.param("दर्या", "दर्या", id="reph, another word"),
        pytest.param(f"क्{ZWJ}ष", "क्ष", id="Devanagari joiner"),
        pytest.param(f"श्री{ZWNJ}मान्{ZWNJ}को", "श्रीमान्को", id="Devanagari non-joiner"),
        pytest.param(f"ಅರ್{ZWNJ}ಥ", "ಅರ್ಥ", id="Kannada non-joiner"),
        pytest.param(f"ক\u09c7{ZWNJ}\u09be", "কো", id="composed once the joiner is gone"),
        pytest.param("cafe\u0301's", "cafés", id="composed before the apostrophe is looked at"),
        pytest.param("\ufeffनम\u00adस्ते\u2060", "नमस्ते", id="byte order mark, soft hyphen, word joiner"),
        pytest.param("एक\u200bदो\u00a0तीन", "एक दो तीन", id="zero width and no-break spaces are spaces"),
        pytest.param(
            "\u0d15\u0d46\u0d3e \u0995\u09c7\u09be \u0b95\u0bc6\u0bbe", "കൊ কো கொ", id="vowel signs of two parts"
        ),
    ],
)
def test_joiners_and_encodings(text: str, expected: str) -> None:
    assert INDIC(text) == expected


@pytest.mark.parametrize("apostrophe", "'’‘ʼ")
def test_an_apostrophe_within_a_word_does_not_part_it(apostrophe: str) -> None:
    assert INDIC(f"ল{apostrophe}ৰা নহ{apostrophe}লে") == "লৰা নহলে"
    assert INDIC(f"ସା{apostrophe}ନ୍ତାଣୀ") == "ସାନ୍ତାଣୀ"


def test_an_apostrophe_elsewhere_is_punctuation() -> None:
    assert INDIC("'क्या' 5'6 হে'?") == "क्या 5 6 হে"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param("র", "ৰ", id="Bengali and Assamese ra"),
        pytest.param("ব", "ৱ", id="ba and Assamese wa"),
        pytest.param("ड", "ड़", id="nukta"),
        pytest.param("य", "य़", id="nukta ya"),
        pytest.param("माँ", "मां", id="chandrabindu"),
        pytest.param("हिन्दी", "हिंदी", id="homorganic nasal"),
        pytest.param("की", "कि", id="vowel length"),
        pytest.param("का", "के", id="vowel"),
        pytest.param("कौ", "कै", id="another vowel"),
        pytest.param("ന്", "ൻ", id="virama and chillu"),
        pytest.param("ଯ", "ୟ", id="Odia ja and ya"),
    ],
)
def test_what_stays_apart(one: str, other: str) -> None:
    assert INDIC(one) != INDIC(other)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("हिन्दी सम्बन्ध पञ्च घण्टा गङ्गा", "हिंदी संबंध पंच घंटा गंगा", id="Devanagari"),
        pytest.param("सुन्दर अन्त लम्बा", "सुंदर अंत लंबा", id="more of Devanagari"),
        pytest.param("ગુજરાતી સમ્બન્ધ", "ગુજરાતી સંબંધ", id="Gujarati"),
        pytest.param("సమ్బన్ధ గఙ్గ", "సంబంధ గంగ", id="Telugu"),
        pytest.param("ಸಮ್ಬನ್ಧ ಗಙ್ಗ", "ಸಂಬಂಧ ಗಂಗ", id="Kannada"),
        pytest.param("অঙ্ক সন্ধান", "অংক সন্ধান", id="Bengali, velar only"),
        pytest.param("ଅଙ୍କ ସନ୍ଧାନ", "ଅଂକ ସନ୍ଧାନ", id="Odia, velar only"),
        pytest.param("ਹਿੰਦੀ ਸਨ੍ਦ", "ਹਿੰਦੀ ਸਨ੍ਦ", id="Gurmukhi as it is"),
        pytest.param("இந்த தங்கம்", "இந்த தங்கம்", id="Tamil as it is"),
        pytest.param("പങ്ക് സന്ധ്യ", "പങ്ക് സന്ധ്യ", id="Malayalam as it is"),
        pytest.param("अन्न जन्म वाङ्मय कान्हा अङ्त", "अन्न जन्म वाङ्मय कान्हा अङ्त", id="no stop of its own place follows"),
        pytest.param("माँ हूँ ચાઁદ", "मां हूं ચાંદ", id="chandrabindu"),
        pytest.param("চাঁদ ਗੁਰਾਁ", "চাঁদ ਗੁਰਾਁ", id="chandrabindu where it is another sound"),
    ],
)
def test_folded_nasals(text: str, expected: str) -> None:
    assert indic_normalizer(fold_nasals=True)(text) == expected
    assert INDIC(text) == text


@pytest.mark.parametrize("letter", "".join(NUKTA_LETTERS.values()))
def test_dropped_nukta(letter: str) -> None:
    plain = unicodedata.normalize("NFD", letter)[0]
    assert indic_normalizer(drop_nukta=True)(letter) == plain


def test_the_switches_are_independent_and_named() -> None:
    text = "ज़िन्दगी"
    assert indic_normalizer(drop_nukta=True)(text) == "जिन्दगी"
    assert indic_normalizer(fold_nasals=True)(text) == unicodedata.normalize("NFC", "ज़िंदगी")
    assert FOLDED(text) == "जिंदगी"
    assert INDIC.describe() == "indic v1"
    assert FOLDED.describe() == "indic_folded v1+nukta+nasals"
    assert indic_normalizer(fold_nasals=True).describe() == "indic_folded v1+nasals"


def test_what_basic_hides_is_counted() -> None:
    references, hypotheses = ["गली की बात", "मेरी माँ"], ["गला के बात", "मेरी माँ"]
    rates = {
        name: measure_errors(["a", "b"], references, hypotheses, get_normalizer(name)).wer
        for name in ("basic", "indic")
    }
    assert rates == {"basic": 0.0, "indic": 2 / 5}


LETTERS_AND_MARKS = [
    character for character in map(chr, range(0x0900, 0x0D80)) if unicodedata.category(character)[0] in "LM"
]
WORDS = st.text(alphabet=st.sampled_from(LETTERS_AND_MARKS), min_size=1, max_size=12)
SIGNS_AND_DIGITS = st.sampled_from([*"।॥,-?“|५7", ""])
SENTENCES = st.lists(WORDS | SIGNS_AND_DIGITS, max_size=8).map(" ".join)
# Much of what the rules act on, in any order.
RULED = st.text(
    alphabet=st.sampled_from(LETTERS_AND_MARKS)
    | st.sampled_from([*VIRAMAS, *CHILLUS, *CHILLUS.values(), *"".join(NUKTA_LETTERS.values())])
    | st.sampled_from([*"रतറङक'’ʼ।॥०५<>[]() ", ZWJ, ZWNJ, "\u200b", "\u093c", "\ufeff", "\ufe0f"]),
    max_size=30,
)


def letters_and_marks(text: str) -> list[str]:
    parts = unicodedata.normalize("NFD", text)
    return [part for part in parts if unicodedata.category(part)[0] in "LM"]


@given(text=SENTENCES)
def test_every_letter_and_mark_is_kept(text: str) -> None:
    """In order, up to canonical equivalence, of text without joiners, apostrophes and remarks; nta but for its name."""
    assert letters_and_marks(INDIC(text)) == letters_and_marks(text.replace("ൻ്റ", "ന്റ"))


def test_no_two_letters_or_marks_become_one() -> None:
    canonical = {unicodedata.normalize("NFC", character) for character in LETTERS_AND_MARKS}
    assert len({INDIC(character) for character in LETTERS_AND_MARKS}) == len(canonical)


@pytest.mark.parametrize("normalizer", [INDIC, FOLDED], ids=lambda normalizer: normalizer.name)
@given(text=RULED | st.text())
def test_twice_is_once(normalizer: Normalizer, text: str) -> None:
    once = normalizer(text)
    assert normalizer(once) == once


@given(text=RULED | st.text())
def test_canonically_equivalent_texts_come_out_equal_and_composed(text: str) -> None:
    forms = {INDIC(text), INDIC(unicodedata.normalize("NFC", text)), INDIC(unicodedata.normalize("NFD", text))}
    assert len(forms) == 1
    assert unicodedata.is_normalized("NFC", forms.pop())


@pytest.mark.parametrize("normalizer", [INDIC, FOLDED], ids=lambda normalizer: normalizer.name)
@given(text=(RULED | st.text()).map(lambda text: "".join(c for c in text if c not in "<>[]()＜＞［］（）ʼ")))
def test_a_text_with_a_letter_or_number_is_not_emptied(normalizer: Normalizer, text: str) -> None:
    """Outside of remarks, and ʼ (a letter by its category) counting as an apostrophe."""
    spoken = any(unicodedata.category(character)[0] in "LN" for character in text)
    assert bool(normalizer(text)) or not spoken


@given(word=WORDS, data=st.data())
def test_a_word_stays_one_word(word: str, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(word)))
    inserted = data.draw(st.sampled_from([ZWJ, ZWNJ, "\u00ad", "7", "९"]))
    assert len(INDIC(word[:place] + inserted + word[place:]).split()) == 1


@given(word=WORDS, data=st.data())
def test_a_joiner_that_makes_no_letter_does_not_count(word: str, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(word)))
    joiner = ZWNJ if word[:place].endswith(tuple(VIRAMAS)) else data.draw(st.sampled_from([ZWJ, ZWNJ]))
    assert INDIC(word[:place] + joiner + word[place:]) == INDIC(word)


@given(text=RULED)
def test_chillus_in_either_encoding_are_the_same_text(text: str) -> None:
    spelt_out = text
    for chillu, consonant in CHILLUS.items():
        spelt_out = spelt_out.replace(chillu, f"{consonant}\u0d4d{ZWJ}")
    assert INDIC(spelt_out) == INDIC(text)
