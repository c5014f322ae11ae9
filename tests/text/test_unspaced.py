"""The rules of `chinese` and `japanese`, what holds of any text, and the error rates they lead to."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sotto.metrics.errors import measure_errors
from sotto.text import Normalizer, get_normalizer

CHINESE = get_normalizer("chinese")
JAPANESE = get_normalizer("japanese")
BOTH = pytest.mark.parametrize("normalizer", [CHINESE, JAPANESE], ids=lambda normalizer: normalizer.name)


@BOTH
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("他是两代帝师翁同龢的玄孙。", "他是两代帝师翁同龢的玄孙", id="full stop"),
        pytest.param(
            "蟹酿橙，亦作《蟹酿枨》、「宋代」：名菜！？…", "蟹酿橙亦作蟹酿枨宋代名菜", id="marks of all kinds"
        ),
        pytest.param(" 我 爱\u3000北京\n天安门 ", "我爱北京天安门", id="spaces of every width"),
        pytest.param("１９８０年　ＡＢＣ", "1980年abc", id="full width"),
        pytest.param("我用 New York 地图", "我用newyork地图", id="spaces between foreign words"),
        pytest.param("涨了 3,000 点（笑）", "涨了3000点", id="comma in a number, full-width remark"),
        pytest.param("好[noise]的<unk>(笑)", "好的", id="remarks"),
        pytest.param("㈱東京 ⑴ ①", "株東京11", id="a bracketed character is no remark"),
        pytest.param("約50%増、＄5", "約50増5", id="symbols"),
        pytest.param("約翰・史密斯", "約翰史密斯", id="middle dot"),
        pytest.param("〇一二 々 ー", "〇一二々ー", id="letters and numbers that look like signs"),
        pytest.param("豈\ufe00葛\U000e0100城", "豈葛城", id="variation selectors"),
        pytest.param("\ufeff你\u200b好\u2060", "你好", id="invisible characters"),
        pytest.param("\uf900 \u2f00", "豈一", id="compatibility ideograph, radical"),
        pytest.param("\U00020000\U0002a6df", "\U00020000\U0002a6df", id="characters beyond the first plane"),
        pytest.param("。！？ ……", "", id="nothing but signs"),
    ],
)
def test_known_texts(normalizer: Normalizer, text: str, expected: str) -> None:
    assert normalizer(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("ｶﾞｷﾞｸﾞ ﾊﾟﾋﾟ ｺｰﾋｰ", "ガギグパピコーヒー", id="half-width katakana"),
        pytest.param("か\u3099 か゛ は\u309a", "ががぱ", id="voicing marks apart from their letter"),
        pytest.param("こんにちは、世界。「はい」～♪", "こんにちは世界はい", id="punctuation"),
        pytest.param("人々 いすゞ ゐゑ", "人々いすゞゐゑ", id="iteration marks, old kana"),
        pytest.param("㌔ ㍻", "キロ平成", id="squared words"),
    ],
)
def test_japanese(text: str, expected: str) -> None:
    assert JAPANESE(text) == expected


@BOTH
@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param("学", "學", id="simplified, traditional or Japanese form"),
        pytest.param("三", "3", id="number word"),
        pytest.param("あ", "ア", id="hiragana, katakana"),
        pytest.param("つ", "っ", id="large, small kana"),
        pytest.param("か", "が", id="voicing"),
        pytest.param("ビル", "ビール", id="vowel length"),
        pytest.param("二", "ニ", id="look-alikes: two and katakana ni"),
    ],
)
def test_what_stays_apart(normalizer: Normalizer, one: str, other: str) -> None:
    assert normalizer(one) != normalizer(other)


@BOTH
def test_a_text_is_one_word_and_cer_is_the_rate(normalizer: Normalizer) -> None:
    references = ["我 爱 北京。", "你好，世界！"]
    hypotheses = ["我爱北京", "你号世界"]
    report = measure_errors(["a", "b"], references, hypotheses, normalizer)
    assert (report.reference_characters, report.reference_words) == (8, 2)
    assert report.cer == 1 / 8
    assert report.wer == 1 / 2  # of two texts one has an error
    assert report.normalizer == f"{normalizer.name} v1"


def test_spaces_cost_characters_under_none_only() -> None:
    def cer(name: str) -> float:
        return measure_errors(["a"], ["我爱北京"], ["我 爱 北 京"], get_normalizer(name)).cer

    assert {name: cer(name) for name in ("none", "basic", "chinese")} == {"none": 0.75, "basic": 0.75, "chinese": 0.0}


def test_a_loop_is_seen_without_spaces() -> None:
    report = measure_errors(["a"], ["谢谢大家"], ["谢谢大家，" * 8], CHINESE)
    assert report.repetition_rate == 1.0


CHARACTERS = st.sampled_from([*map(chr, range(0x4E00, 0x9FFD)), *"あいうえおかがぱっゃアイウーガヴ々〇"])
SIGNS = st.sampled_from([*" \u3000\t\n。，、！？「」『』《》・…—～,.!?\"'-%&+", "\u200b", "\ufeff"])
MIXED = st.text(
    alphabet=CHARACTERS | SIGNS | st.sampled_from([*"abＡＢ１２ｶﾞﾞ゛゜㈱①½(（[＜<>)）]", "\u3099", "\ufe00"]), max_size=30
)


@given(pieces=st.lists(st.tuples(CHARACTERS, st.text(alphabet=SIGNS, max_size=2)), max_size=20))
def test_every_character_is_kept_and_no_sign_counts(pieces: list[tuple[str, str]]) -> None:
    text = "".join(character + signs for character, signs in pieces)
    assert CHINESE(text) == "".join(character for character, _ in pieces)


@given(text=MIXED | st.text())
def test_twice_is_once(text: str) -> None:
    assert CHINESE(CHINESE(text)) == CHINESE(text)


@given(text=MIXED | st.text())
def test_one_word_without_signs_is_left(text: str) -> None:
    normalized = CHINESE(text)
    assert len(normalized.split()) <= 1
    assert not any(unicodedata.category(character)[0] in "PSZ" for character in normalized)


@given(text=(MIXED | st.text()).map(lambda text: "".join(c for c in text if c not in "<>[]()＜＞［］（）")))
def test_a_text_with_a_letter_or_number_is_not_emptied(text: str) -> None:
    """Outside of remarks."""
    spoken = any(unicodedata.category(character)[0] in "LN" for character in text)
    assert bool(CHINESE(text)) or not spoken
