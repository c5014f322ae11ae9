"""Normalizers: what each one does to text, and how one is chosen."""

import importlib.metadata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sotto.errors import SottoError
from sotto.text import Normalizer, get_normalizer, normalizer_names
from sotto.text.english import english_normalizer

TRANSFORMERS = f"transformers {importlib.metadata.version('transformers')}"


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("none", "  Hello,\tWorld!\n\u00a0Again ", "Hello, World! Again"),
        ("none", " \n", ""),
        ("basic", " Hello, [noise] World (laughs)! ", "hello world"),
        ("basic", "Straße Café ﬁn", "straße café fin"),
        ("basic", "[music]", ""),
        ("basic", "हिन्दी", "ह न द"),
        ("english", "Um, Mr. Smith won't pay 3,000 dollars.", "mister smith will not pay $3000"),
        ("english", "twenty-one cafés, it's <noise> OK", "21 cafes it is ok"),
        ("english", "one one one", "111"),
        ("english", "The colour", "the colour"),
        ("english", "hmm", ""),
    ],
)
def test_known_texts(name: str, text: str, expected: str) -> None:
    assert get_normalizer(name)(text) == expected


def test_a_spelling_table_is_used_and_named() -> None:
    normalizer = english_normalizer({"colour": "color", "grey": "gray"})
    assert normalizer("The Colour grey, coloured") == "the color gray coloured"
    assert normalizer.describe() == f"english v1+2 spellings ({TRANSFORMERS})"


@pytest.mark.parametrize("text", ["7" * 10_000, "111," * 3000 + "111", "one " * 5000 + "thousand"])
def test_english_survives_an_endless_number(text: str) -> None:
    digits = get_normalizer("english")(text).replace(" ", "")
    assert len(digits) >= 5000


@pytest.mark.parametrize(
    ("name", "description"),
    [
        ("none", "none v1"),
        ("basic", f"basic v1 ({TRANSFORMERS})"),
        ("english", f"english v1 ({TRANSFORMERS})"),
        ("indic", "indic v1"),
        ("indic_folded", "indic_folded v1+nukta+nasals"),
        ("chinese", "chinese v1"),
        ("japanese", "japanese v1"),
    ],
)
def test_description_names_the_version_and_the_library(name: str, description: str) -> None:
    assert get_normalizer(name).describe() == description


def test_a_normalizer_is_any_function_with_a_name() -> None:
    shout = Normalizer("shout", "2", str.upper)
    assert shout(" a  b ") == "A B"
    assert shout.describe() == "shout v2"


def test_every_name_can_be_had() -> None:
    assert {"none", "basic", "english", "indic", "chinese", "japanese"} <= set(normalizer_names())
    assert [get_normalizer(name).name for name in normalizer_names()] == list(normalizer_names())


@pytest.mark.parametrize("language", ["en", "EN", "english", "English", "en-GB", "en_US", " en "])
def test_english_has_its_own_normalizer(language: str) -> None:
    assert get_normalizer(language=language).name == "english"


@pytest.mark.parametrize(
    ("name", "languages"),
    [
        ("indic", "hi mr ne sa bn as pa gu or ta te kn ml"),
        ("indic", "Hindi marathi nepali Sanskrit bengali assamese punjabi panjabi gujarati odia oriya"),
        ("indic", "tamil telugu kannada Malayalam hi-IN ml_IN hi_in"),
        ("chinese", "zh zh-CN zh-TW zh_HK ZH yue cmn_hans_cn Chinese mandarin cantonese"),
        ("japanese", "ja JA ja-JP japanese Japanese"),
    ],
)
def test_scripts_with_rules_of_their_own_have_theirs(name: str, languages: str) -> None:
    assert {get_normalizer(language=language).name for language in languages.split()} == {name}


@pytest.mark.parametrize("language", [None, "", "fr", "french", "th", "ur", "si", "eng-land", "no such language"])
def test_other_languages_have_the_basic_one(language: str | None) -> None:
    assert get_normalizer(language=language).name == "basic"


def test_a_name_wins_over_a_language() -> None:
    assert get_normalizer("none", language="en").name == "none"


def test_an_unknown_name_is_told_the_nearest() -> None:
    with pytest.raises(SottoError) as error:
        get_normalizer("Englsh")
    message = str(error.value)
    assert "'Englsh'" in message
    assert "did you mean 'english'?" in message
    assert all(name in message for name in normalizer_names())
    assert "\n" not in message


def test_a_name_like_no_other_is_told_the_known_ones_only() -> None:
    with pytest.raises(SottoError, match="'xyzzy': the known ones are none, basic, plain, upper, english"):
        get_normalizer("xyzzy")


TEXTS = st.text(alphabet=st.sampled_from("abcXYZéßжक्षि。,.'!?()[]<>-0१2 \t\n\u00a0\u3000"), max_size=40)


@pytest.mark.parametrize("name", ["none", "basic", "plain", "upper", "indic", "indic_folded", "chinese", "japanese"])
@given(text=TEXTS)
def test_twice_is_once(name: str, text: str) -> None:
    normalizer = get_normalizer(name)
    assert normalizer(normalizer(text)) == normalizer(text)


@pytest.mark.parametrize("name", normalizer_names())
@given(text=TEXTS)
def test_words_are_separated_by_single_spaces(name: str, text: str) -> None:
    normalized = get_normalizer(name)(text)
    assert normalized == " ".join(normalized.split())


@given(text=TEXTS)
def test_basic_does_not_care_for_case_or_punctuation(text: str) -> None:
    basic = get_normalizer("basic")
    text = text.replace("ß", "")  # its upper case is SS
    assert basic(f"{text.upper()} !") == basic(text.lower())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Printing, in the ONLY sense.", "printing in the only sense"),
        ("“Don’t”, he said -- 'twas the dogs' day", "don't he said twas the dogs day"),
        ("the 2nd half-hour (twice)", "the 2nd half hour twice"),
        ("പാലം കടന്നാലൊ കൂരായണ.", "പാലം കടന്നാലൊ കൂരായണ"),
        ("E\u0301te\u0301", "\u00e9t\u00e9"),
        ("'", ""),
    ],
)
def test_plain_keeps_words_as_they_are_said(text: str, words: str) -> None:
    assert get_normalizer("plain")(text) == words
    assert get_normalizer("plain")(words) == words
    assert get_normalizer("upper")(text) == words.upper()
