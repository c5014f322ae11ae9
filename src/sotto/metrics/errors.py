"""Word and character error rates of a corpus, how sure they are, and how two models differ.

All rates are **corpus rates**: the errors of all clips over the reference words (or characters) of
all clips. The mean of the rates of single clips, which some publications give, is another number:
it lets a clip of two words weigh as much as one of fifty. The two must not be compared. Rates are
fractions (0.1 is 10 %) and may exceed 1.

Counts are of the minimal alignment by jiwer, after the normalizer. Characters include the single
spaces between words. A clip whose reference is empty (silence, noise) adds what was heard in it as
insertions, and no reference words. Under the normalizers `chinese` and `japanese` a whole text is one
word: read CER there, since WER is then the share of clips with any error.

Intervals are 95 % percentile bootstrap intervals over clips (Efron and Tibshirani 1993, chapter 13;
Bisani and Ney, ICASSP 2004, for error rates and for the paired form that `compare` uses). Clips are
drawn in the order of their names, so neither rates nor intervals depend on the order they come in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jiwer
import numpy as np
import numpy.typing as npt

from sotto.errors import SottoError
from sotto.text import Normalizer

_DRAWN_AT_ONCE = 100_000  # clips
_CONFIDENCE = 0.95
_LOOP_REPETITIONS = 4
_LOOP_CHARACTERS = 16
_LOOP_UNIT = 200
_LOOP_EXCESS = 2


@dataclass(frozen=True)
class ClipErrors:
    """One clip: both normalized texts, word and character counts, and whether the hypothesis loops."""

    name: str
    reference: str
    hypothesis: str
    substitutions: int
    deletions: int
    insertions: int
    reference_words: int
    character_edits: int
    reference_characters: int
    repeated: bool

    @property
    def word_edits(self) -> int:
        """Substitutions, deletions and insertions together."""
        return self.substitutions + self.deletions + self.insertions


@dataclass(frozen=True)
class Interval:
    """A 95 % interval, as fractions like the rate it belongs to."""

    low: float
    high: float


@dataclass(frozen=True)
class ErrorReport:
    """The error rates of one model on one set of clips, with all that is needed to say what they mean.

    `substitutions`, `deletions` and `insertions` are corpus counts of words; the rates named after
    them are shares of `reference_words`. `repetition_rate` is the share of clips whose hypothesis
    loops (see `is_repeated`). `per_clip` is in the order in which the clips were given.
    """

    wer: float
    cer: float
    wer_interval: Interval
    cer_interval: Interval
    substitutions: int
    deletions: int
    insertions: int
    repetition_rate: float
    clips: int
    reference_words: int
    reference_characters: int
    normalizer: str
    seed: int
    resamples: int
    per_clip: tuple[ClipErrors, ...]

    @property
    def substitution_rate(self) -> float:
        return self.substitutions / self.reference_words

    @property
    def deletion_rate(self) -> float:
        return self.deletions / self.reference_words

    @property
    def insertion_rate(self) -> float:
        return self.insertions / self.reference_words

    def worst(self, n: int) -> tuple[ClipErrors, ...]:
        """The `n` clips that add most word errors to the corpus rate, worst first.

        Ties go by character edits, then by name. Clips without an error are left out.
        """
        wrong = [clip for clip in self.per_clip if clip.character_edits]
        return tuple(sorted(wrong, key=lambda c: (-c.word_edits, -c.character_edits, c.name))[:n])

    def to_dict(self) -> dict[str, Any]:
        """All fields and the three rates, as JSON takes them."""
        rates = {
            "substitution_rate": self.substitution_rate,
            "deletion_rate": self.deletion_rate,
            "insertion_rate": self.insertion_rate,
        }
        return asdict(self) | rates | {"per_clip": [asdict(clip) for clip in self.per_clip]}


@dataclass(frozen=True)
class Comparison:
    """Corpus rates of `after` minus those of `before`, on the same clips: negative is better.

    The intervals are of the differences, paired: both models are measured on the same draw of clips.
    An interval that holds 0 means that these clips do not tell the two apart.
    """

    wer_difference: float
    wer_interval: Interval
    cer_difference: float
    cer_interval: Interval
    clips: int
    normalizer: str
    seed: int
    resamples: int

    def to_dict(self) -> dict[str, Any]:
        """All fields, as JSON takes them."""
        return asdict(self)


def measure_errors(
    names: Sequence[str],
    references: Sequence[str],
    hypotheses: Sequence[str],
    normalizer: Normalizer,
    *,
    seed: int = 0,
    resamples: int = 1000,
) -> ErrorReport:
    """Compare what a model heard with what was said, clip by clip, after `normalizer`.

    Raises:
        SottoError: the three lists differ in length, a name stands twice, `resamples` is below 1, or
            no reference has a word left after the normalizer.
    """
    _check_clips(names, references, hypotheses, normalizer)
    clips = tuple(
        _clip_errors(name, normalizer(reference), normalizer(hypothesis))
        for name, reference, hypothesis in zip(names, references, hypotheses, strict=True)
    )
    counts = _counts(clips)
    word_edits, words, character_edits, characters = counts.sum(axis=0).tolist()
    if words == 0:
        raise SottoError(
            f"all {len(clips)} references are empty after the normalizer {normalizer.describe()}: "
            "give references with words, or choose another normalizer"
        )
    draws = _resampled_totals(counts, seed, resamples)
    return ErrorReport(
        wer=word_edits / words,
        cer=character_edits / characters,
        wer_interval=_interval(draws[:, 0] / draws[:, 1]),
        cer_interval=_interval(draws[:, 2] / draws[:, 3]),
        substitutions=sum(clip.substitutions for clip in clips),
        deletions=sum(clip.deletions for clip in clips),
        insertions=sum(clip.insertions for clip in clips),
        repetition_rate=sum(clip.repeated for clip in clips) / len(clips),
        clips=len(clips),
        reference_words=words,
        reference_characters=characters,
        normalizer=normalizer.describe(),
        seed=seed,
        resamples=resamples,
        per_clip=clips,
    )


def compare(before: ErrorReport, after: ErrorReport, *, seed: int = 0, resamples: int = 1000) -> Comparison:
    """How the corpus rates changed from `before` to `after`, over the same clips, matched by name.

    Raises:
        SottoError: the reports differ in clips, in references or in normalizer, or `resamples` is below 1.
    """
    _check_comparable(before, after)
    counts = np.hstack([_counts(before.per_clip), _counts(after.per_clip)])
    draws = _resampled_totals(counts, seed, resamples)
    return Comparison(
        wer_difference=after.wer - before.wer,
        wer_interval=_interval(draws[:, 4] / draws[:, 5] - draws[:, 0] / draws[:, 1]),
        cer_difference=after.cer - before.cer,
        cer_interval=_interval(draws[:, 6] / draws[:, 7] - draws[:, 2] / draws[:, 3]),
        clips=before.clips,
        normalizer=before.normalizer,
        seed=seed,
        resamples=resamples,
    )


def is_repeated(reference: str, hypothesis: str) -> bool:
    """Whether `hypothesis` holds a hallucination loop: a unit said over and over where the speaker did not.

    A loop is a stretch of text that is one unit (1 to 200 characters, spaces included) said at least
    4 times in a row. The hypothesis is repeated when its longest loop has at least 16 characters and
    more than twice as many as the longest loop of the reference. So "one one one" is never a loop;
    "one one one one" counts only where the reference does not say much the same; and a model that
    goes on for a whole window is found even though the speaker did say it four times.

    The unit is counted in characters because some scripts have no spaces, and because the English
    normalizer writes "one one one" as 111. Both texts are normalized ones: a loop of signs that the
    normalizer deletes costs no errors and is not seen.

    Whisper's own test, a zlib compression ratio above 2.4, is not used: the ratio grows with the
    length of the text and with the bytes that UTF-8 spends on a character of its script.
    Thirty seconds of correct Malayalam often lie above 2.4; "thank you" said four times lies below.
    """
    loop = _longest_loop(hypothesis)
    return loop >= _LOOP_CHARACTERS and loop > _LOOP_EXCESS * _longest_loop(reference)


def _longest_loop(text: str) -> int:
    """Characters in the longest stretch that is one unit said `_LOOP_REPETITIONS` times or more."""
    codes = np.array([ord(character) for character in f"{text} "])
    longest = 0
    for period in range(1, min(_LOOP_UNIT, len(codes) // _LOOP_REPETITIONS) + 1):
        breaks = np.flatnonzero(codes[period:] != codes[:-period])
        ends = np.concatenate([[-1], breaks, [len(codes) - period]])
        stretch = int(np.diff(ends).max()) - 1 + period
        if stretch >= _LOOP_REPETITIONS * period:
            longest = max(longest, stretch)
    return longest


def _clip_errors(name: str, reference: str, hypothesis: str) -> ClipErrors:
    words = jiwer.process_words(reference, hypothesis)
    characters = jiwer.process_characters(reference, hypothesis)
    return ClipErrors(
        name=name,
        reference=reference,
        hypothesis=hypothesis,
        substitutions=words.substitutions,
        deletions=words.deletions,
        insertions=words.insertions,
        reference_words=len(words.references[0]),
        character_edits=characters.substitutions + characters.deletions + characters.insertions,
        reference_characters=len(characters.references[0]),
        repeated=is_repeated(reference, hypothesis),
    )


def _counts(clips: Sequence[ClipErrors]) -> npt.NDArray[np.int64]:
    """(clips, 4): word edits, reference words, character edits, reference characters; rows by name."""
    rows = [
        (clip.word_edits, clip.reference_words, clip.character_edits, clip.reference_characters)
        for clip in sorted(clips, key=lambda clip: clip.name)
    ]
    return np.array(rows, dtype=np.int64)


def _resampled_totals(counts: npt.NDArray[np.int64], seed: int, resamples: int) -> npt.NDArray[np.int64]:
    """(draws, columns): the column sums of `counts` over clips drawn with replacement, once per resample.

    A draw of nothing but empty references has no rate and is left out. Some draws at a time, because the
    index of all of them together would take memory of clips times resamples.
    """
    if resamples < 1:
        raise SottoError(f"resamples must be 1 or more, not {resamples}: 1000 is usual")
    random = np.random.default_rng(seed)
    clips = len(counts)
    at_once = max(1, _DRAWN_AT_ONCE // clips)
    sizes = [min(at_once, resamples - start) for start in range(0, resamples, at_once)]
    totals = np.concatenate([counts[random.integers(clips, size=(size, clips))].sum(axis=1) for size in sizes])
    totals = totals[totals[:, 1] > 0]
    if len(totals) == 0:
        raise SottoError(f"none of {resamples} resamples drew a clip with a reference word: use more")
    return totals


def _interval(values: npt.NDArray[np.float64]) -> Interval:
    low, high = np.quantile(values, [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
    return Interval(float(low), float(high))


def _check_clips(
    names: Sequence[str], references: Sequence[str], hypotheses: Sequence[str], normalizer: Normalizer
) -> None:
    if not len(names) == len(references) == len(hypotheses):
        raise SottoError(
            f"{len(names)} names, {len(references)} references and {len(hypotheses)} hypotheses: "
            "give one of each per clip"
        )
    if not names:
        raise SottoError("no clips to measure errors on: give at least one clip with a reference")
    name, times = Counter(names).most_common(1)[0]
    if times > 1:
        raise SottoError(f"the clip name '{name}' stands {times} times: give every clip a name of its own")


def _check_comparable(before: ErrorReport, after: ErrorReport) -> None:
    if before.normalizer != after.normalizer:
        raise SottoError(
            f"the reports were measured with different normalizers, {before.normalizer} and "
            f"{after.normalizer}: measure both with the same"
        )
    references = {clip.name: clip.reference for clip in before.per_clip}
    others = {clip.name: clip.reference for clip in after.per_clip}
    if lone := sorted(references.keys() ^ others.keys()):
        raise SottoError(
            f"the two reports are not of the same clips (in one only: {len(lone)}, such as '{lone[0]}'): "
            "measure both on the same data"
        )
    if changed := [name for name in sorted(references) if references[name] != others[name]]:
        raise SottoError(
            f"the two reports differ in references (of {len(changed)} clips, such as '{changed[0]}'): "
            "measure both on the same data"
        )
