"""Error rates: hand-made counts, intervals, paired comparison and hallucination loops."""

import json
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sotto.errors import SottoError
from sotto.metrics.errors import ErrorReport, Interval, compare, is_repeated, measure_errors
from sotto.text import get_normalizer

NONE = get_normalizer("none")


def report(pairs: list[tuple[str, str]], resamples: int = 200, seed: int = 0) -> ErrorReport:
    """Measure (reference, hypothesis) pairs, named c00, c01 and so on, without normalization."""
    names = [f"c{index:02}" for index in range(len(pairs))]
    references, hypotheses = [r for r, _ in pairs], [h for _, h in pairs]
    return measure_errors(names, references, hypotheses, NONE, seed=seed, resamples=resamples)


def clips_with_errors(errors: list[int], words: int = 10) -> list[tuple[str, str]]:
    """A clip of `words` words for each entry, with that many of its words wrong."""
    return [("a " * words, "b " * wrong + "a " * (words - wrong)) for wrong in errors]


def test_hand_made_counts() -> None:
    result = report([("the cat sat down", "the cat sit down"), ("a b c", "a c"), ("x", "x y z")])
    assert (result.substitutions, result.deletions, result.insertions) == (1, 1, 2)
    assert (result.clips, result.reference_words, result.reference_characters) == (3, 8, 16 + 5 + 1)
    assert result.wer == 4 / 8
    assert result.cer == (1 + 2 + 4) / 22
    assert result.substitution_rate == 1 / 8
    assert result.deletion_rate == 1 / 8
    assert result.insertion_rate == 2 / 8
    assert [clip.word_edits for clip in result.per_clip] == [1, 1, 2]
    assert [clip.character_edits for clip in result.per_clip] == [1, 2, 4]


def test_the_rate_is_of_the_corpus_and_not_the_mean_over_clips() -> None:
    result = report([("a b", "a x"), ("a b c d e f g h", "a b c d e f g h")])
    assert result.wer == 1 / 10
    assert np.mean([clip.word_edits / clip.reference_words for clip in result.per_clip]) == 1 / 4


def test_texts_are_compared_after_the_normalizer() -> None:
    basic = get_normalizer("basic")
    result = measure_errors(["a"], ["Hello, World!"], ["hello world"], basic, resamples=10)
    assert (result.wer, result.cer) == (0, 0)
    assert result.normalizer == basic.describe()
    assert (result.per_clip[0].reference, result.per_clip[0].hypothesis) == ("hello world", "hello world")
    assert report([("Hello, World!", "hello world")]).wer == 1


def test_words_heard_in_silence_are_insertions() -> None:
    result = report([("", "x y z"), ("a b", "a b"), ("", "")])
    assert (result.insertions, result.substitutions, result.deletions) == (3, 0, 0)
    assert result.reference_words == 2
    assert result.wer == 3 / 2
    assert result.cer == 5 / 3


def test_an_empty_hypothesis_is_all_deletions() -> None:
    result = report([("a b", ""), ("c", "c")])
    assert (result.deletions, result.wer) == (2, 2 / 3)


def test_a_draw_of_silence_alone_is_left_out_of_the_interval() -> None:
    result = report([("", "x"), ("a", "a")], resamples=500)
    assert result.wer == 1
    assert result.wer_interval == Interval(0, 1)


def test_no_errors_give_an_interval_of_zero() -> None:
    result = report([("a b", "a b"), ("c", "c"), ("", "")])
    assert (result.wer, result.cer) == (0, 0)
    assert result.wer_interval == Interval(0, 0)
    assert result.cer_interval == Interval(0, 0)


def test_equal_clips_give_an_interval_of_one_point() -> None:
    result = report(clips_with_errors([3] * 7))
    assert result.wer_interval == Interval(0.3, 0.3)


def test_the_interval_is_the_binomial_one_for_clips_of_one_word() -> None:
    result = report(clips_with_errors([1] * 30 + [0] * 70, words=1), resamples=4000)
    draws = np.random.default_rng(1).binomial(100, 0.3, size=200_000) / 100
    low, high = np.quantile(draws, [0.025, 0.975])
    assert result.wer_interval.low == pytest.approx(low, abs=0.011)
    assert result.wer_interval.high == pytest.approx(high, abs=0.011)


def test_the_seed_alone_decides_the_interval() -> None:
    pairs = clips_with_errors([0, 1, 2, 3, 5, 8, 1, 0, 4])
    assert report(pairs, seed=1) == report(pairs, seed=1)
    assert report(pairs, seed=1).wer_interval != report(pairs, seed=2).wer_interval


def test_worst_clips_are_those_with_most_errors() -> None:
    result = report([("a", "b c"), ("a", "a"), ("a b c", "x y z w"), ("aaaa", "bbbb cccc"), ("q", "")])
    assert [clip.name for clip in result.worst(3)] == ["c02", "c03", "c00"]
    assert [clip.name for clip in result.worst(10)] == ["c02", "c03", "c00", "c04"]
    assert result.worst(0) == ()


def test_a_report_survives_json() -> None:
    result = report([("a b", "a x"), ("", "y")])
    data = result.to_dict()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert data["wer"] == 1
    assert data["wer_interval"] == {"low": result.wer_interval.low, "high": result.wer_interval.high}
    assert data["substitution_rate"] == data["insertion_rate"] == 1 / 2
    assert data["per_clip"][1]["hypothesis"] == "y"
    assert (data["normalizer"], data["clips"], data["resamples"]) == ("none v1", 2, 200)


def test_repetition_rate_is_a_share_of_clips() -> None:
    result = report([("thank you", "thank you " * 20), ("a", "a"), ("b", "c"), ("", "")])
    assert result.repetition_rate == 1 / 4
    assert [clip.repeated for clip in result.per_clip] == [True, False, False, False]


def test_a_report_compared_with_itself_differs_by_nothing() -> None:
    result = report([("the cat", "the cow"), ("sat", "sits"), ("on a mat", "on a mat"), ("", "hello")])
    same = compare(result, result)
    assert (same.wer_difference, same.cer_difference) == (0, 0)
    assert same.wer_interval == same.cer_interval == Interval(0, 0)


def test_comparison_is_paired() -> None:
    before = report(clips_with_errors([0, 8, 1, 6, 2, 0, 9]))
    after = report(clips_with_errors([1, 9, 2, 7, 3, 1, 10]))
    change = compare(before, after)
    assert change.wer_difference == pytest.approx(0.1)
    assert (change.wer_interval.low, change.wer_interval.high) == pytest.approx((0.1, 0.1))
    assert (change.cer_interval.low, change.cer_interval.high) == pytest.approx((1 / 19, 1 / 19))
    assert before.wer_interval.high - before.wer_interval.low > 0.2


def test_comparison_has_a_direction_and_a_width() -> None:
    worse, better = report(clips_with_errors([5, 3, 4, 2])), report(clips_with_errors([1, 1, 1, 2]))
    change, back = compare(worse, better), compare(better, worse)
    assert change.wer_difference == pytest.approx(5 / 40 - 14 / 40)
    assert change.wer_interval.low < change.wer_difference < change.wer_interval.high <= 0
    assert back.wer_difference == -change.wer_difference
    assert back.wer_interval.low == pytest.approx(-change.wer_interval.high)
    assert change.cer_difference == pytest.approx(better.cer - worse.cer)
    assert json.loads(json.dumps(change.to_dict(), allow_nan=False)) == change.to_dict()


def test_clips_are_matched_by_name() -> None:
    names, references = ["x", "y", "z"], ["a b c", "d e", "f"]
    before = measure_errors(names, references, ["a b q", "d e", ""], NONE)
    after = measure_errors(names[::-1], references[::-1], ["", "d e", "a b q"], NONE)
    assert compare(before, after).wer_interval == Interval(0, 0)


def test_lists_of_different_lengths_are_refused() -> None:
    with pytest.raises(SottoError, match="2 names, 2 references and 1 hypotheses"):
        measure_errors(["a", "b"], ["x", "y"], ["x"], NONE)


def test_no_clips_are_refused() -> None:
    with pytest.raises(SottoError, match="no clips"):
        measure_errors([], [], [], NONE)


def test_a_name_given_twice_is_refused() -> None:
    with pytest.raises(SottoError, match="'a' stands 2 times"):
        measure_errors(["b", "a", "a"], ["x"] * 3, ["x"] * 3, NONE)


def test_references_that_are_all_empty_are_refused() -> None:
    with pytest.raises(SottoError, match=r"all 2 references are empty after the normalizer basic v1"):
        measure_errors(["a", "b"], ["[noise]", " ... "], ["x", ""], get_normalizer("basic"))


def test_no_resamples_are_refused() -> None:
    with pytest.raises(SottoError, match="resamples must be 1 or more, not 0"):
        report([("a", "a")], resamples=0)


def test_reports_of_other_clips_are_not_compared() -> None:
    two, three = report([("a", "a")] * 2), report([("a", "a")] * 3)
    with pytest.raises(SottoError, match="in one only: 1, such as 'c02'"):
        compare(two, three)


def test_reports_of_other_references_are_not_compared() -> None:
    with pytest.raises(SottoError, match="of 1 clips, such as 'c01'"):
        compare(report([("a", "a"), ("b", "b")]), report([("a", "a"), ("c", "b")]))


def test_reports_of_other_normalizers_are_not_compared() -> None:
    basic = measure_errors(["c00"], ["a"], ["a"], get_normalizer("basic"))
    with pytest.raises(SottoError, match="different normalizers, none v1 and basic v1"):
        compare(report([("a", "a")]), basic)


@pytest.mark.parametrize(
    ("reference", "hypothesis", "repeated"),
    [
        ("thanks for watching", "thanks for watching " * 12, True),
        ("", "you you you you", True),
        ("he said so", "he said so and then the the the the the the", True),
        ("the cat", "the cat " + "and so it goes on and on until the end of the day " * 4, True),
        ("ご視聴", "ご視聴ありがとうございました" * 4, True),
        ("धन्यवाद", "धन्यवाद " * 6, True),
        ("4", "4" * 16, True),
        ("one one one one", "one " * 60, True),
        ("one one one", "one one one", False),
        ("one one one one one one", "one one one one one one", False),
        ("one one one one one one", "one one one one one one one", False),
        ("two one one", "one one one", False),
        ("a hundred", "1000000", False),
        ("the cat sat", "the cat sat the cat sat the cat sat", False),
        ("no no", "no no no no", False),
        ("hello", "", False),
        ("", "", False),
        ("a", "x", False),
    ],
)
def test_a_loop_is_told_from_a_speaker_who_repeats(reference: str, hypothesis: str, repeated: bool) -> None:
    assert is_repeated(reference, hypothesis.strip()) is repeated


def test_a_loop_of_digits_is_seen_through_the_english_normalizer() -> None:
    english = get_normalizer("english")
    result = measure_errors(["a", "b"], ["one one one"] * 2, ["one " * 40, "one one one"], english, resamples=10)
    assert [clip.repeated for clip in result.per_clip] == [True, False]


SENTENCES = st.lists(st.sampled_from(["a", "b", "ab", "ba", "one"]), max_size=6).map(" ".join)
PAIRS = st.lists(st.tuples(SENTENCES, SENTENCES), min_size=1, max_size=8).filter(lambda p: any(r for r, _ in p))


@settings(deadline=None)
@given(pairs=PAIRS)
def test_the_rate_is_zero_only_where_all_words_are_equal(pairs: list[tuple[str, str]]) -> None:
    result = report(pairs, resamples=50)
    equal = all(reference.split() == hypothesis.split() for reference, hypothesis in pairs)
    assert (result.wer == 0) == equal
    assert (result.cer == 0) == equal
    assert (result.worst(len(pairs)) == ()) == equal


@settings(deadline=None)
@given(pairs=PAIRS, random=st.randoms(use_true_random=False))
def test_the_order_of_clips_does_not_matter(pairs: list[tuple[str, str]], random: Random) -> None:
    clips = [(f"clip {index}", *pair) for index, pair in enumerate(pairs)]
    shuffled = random.sample(clips, len(clips))
    first, second = (
        replace(measure_errors(*zip(*order, strict=True), NONE, resamples=50), per_clip=())
        for order in (clips, shuffled)
    )
    assert first == second


@settings(deadline=None)
@given(pairs=PAIRS)
def test_hypothesis_words_are_accounted_for(pairs: list[tuple[str, str]]) -> None:
    result = report(pairs, resamples=50)
    heard = sum(len(hypothesis.split()) for _, hypothesis in pairs)
    assert result.reference_words - result.deletions + result.insertions == heard
