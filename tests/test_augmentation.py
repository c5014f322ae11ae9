from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sotto.augmentation import Augmentation, SplicedString, Splicer, Splicing, augment, noise_for
from sotto.data import Clip
from sotto.errors import SottoError
from tones import LOUDNESS, PITCHES, RATE, clip, nearest_word, pitch_of, square_wave

seeds = st.integers(0, 2**32)


def decibels(signal: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    return float(10 * np.log10(np.mean(np.square(signal)) / np.mean(np.square(reference))))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_the_defaults_leave_audio_as_it_is() -> None:
    audio = square_wave(440, 0.3)
    changed, speed = augment(audio, Augmentation(), RATE, rng())
    np.testing.assert_array_equal(changed, audio)
    assert changed.dtype == np.float32
    assert speed == 1.0


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.1, 2.0])
def test_speed_divides_the_length_and_multiplies_the_pitch(factor: float) -> None:
    audio = square_wave(400, 1.0)
    changed, speed = augment(audio, Augmentation(speed=(factor,)), RATE, rng())
    assert speed == factor
    assert len(changed) == pytest.approx(len(audio) / factor, abs=1)
    assert pitch_of(changed) == pytest.approx(400 * factor, abs=2)


def test_every_speed_is_drawn() -> None:
    config = Augmentation(speed=(0.9, 1.0, 1.1))
    audio = square_wave(400, 0.05)
    drawn = [augment(audio, config, RATE, rng(seed))[1] for seed in range(60)]
    assert sorted(set(drawn)) == [0.9, 1.0, 1.1]
    assert min(drawn.count(speed) for speed in config.speed) >= 10


@given(seeds, st.floats(5, 40))
@settings(max_examples=25, deadline=None)
def test_noise_has_the_asked_signal_to_noise_ratio(seed: int, snr: float) -> None:
    audio = 0.2 * square_wave(400, 0.2)
    config = Augmentation(noise_snr_db=(snr, snr), noise_probability=1.0)
    changed, _ = augment(audio, config, RATE, rng(seed))
    assert decibels(audio, changed - audio) == pytest.approx(snr, abs=0.01)


def test_signal_to_noise_ratios_fill_their_range() -> None:
    audio = 0.2 * square_wave(400, 0.1)
    config = Augmentation(noise_snr_db=(10, 30), noise_probability=1.0)
    ratios = [decibels(audio, augment(audio, config, RATE, rng(seed))[0] - audio) for seed in range(40)]
    assert min(ratios) > 9.99
    assert max(ratios) < 30.01
    assert max(ratios) - min(ratios) > 15


def test_noise_is_white_or_falls_with_frequency() -> None:
    """Power above 1 kHz over power below: 7 times the band for white noise; for 1/f, log(8/1) against log(1/0.01)."""
    ratios = []
    for seed in range(20):
        power = np.square(np.abs(np.fft.rfft(noise_for(square_wave(400, 1.0), 10.0, rng(seed)))))
        ratios.append(power[1000:].sum() / power[:1000].sum())
    white = [ratio for ratio in ratios if ratio > 3]
    falling = [ratio for ratio in ratios if ratio <= 3]
    np.testing.assert_allclose(white, 7.0, rtol=0.3)
    np.testing.assert_allclose(falling, np.log(8) / (np.log(1000) + 0.577), rtol=0.3)
    assert min(len(white), len(falling)) >= 5


@pytest.mark.parametrize(("probability", "least", "most"), [(0.0, 0, 0), (0.5, 10, 30), (1.0, 40, 40)])
def test_noise_comes_as_often_as_asked(probability: float, least: int, most: int) -> None:
    audio = square_wave(400, 0.02)
    config = Augmentation(noise_snr_db=(20, 20), noise_probability=probability)
    noisy = sum(not np.array_equal(augment(audio, config, RATE, rng(seed))[0], audio) for seed in range(40))
    assert least <= noisy <= most


def test_gain_stays_within_its_bounds_and_fills_them() -> None:
    audio = 0.1 * square_wave(400, 0.02)
    gains = [decibels(augment(audio, Augmentation(gain_db=6), RATE, rng(seed))[0], audio) for seed in range(60)]
    assert min(gains) > -6.01
    assert max(gains) < 6.01
    assert min(gains) < -4
    assert max(gains) > 4


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_audio_stays_between_minus_one_and_one(seed: int) -> None:
    config = Augmentation(speed=(0.9, 1.1), gain_db=20, noise_snr_db=(0, 10), noise_probability=1.0)
    changed, _ = augment(2 * square_wave(400, 0.05), config, RATE, rng(seed))
    assert np.abs(changed).max() <= 1.0
    assert np.isfinite(changed).all()


def test_silence_stays_silent_and_finite() -> None:
    config = Augmentation(noise_snr_db=(10, 10), noise_probability=1.0)
    changed, _ = augment(np.zeros(1000, np.float32), config, RATE, rng())
    np.testing.assert_array_equal(changed, 0)


def test_the_generator_decides_everything() -> None:
    config = Augmentation(speed=(0.9, 1.0, 1.1), gain_db=6, noise_snr_db=(5, 30))
    audio = square_wave(400, 0.05)
    first, again, other = (augment(audio, config, RATE, rng(seed))[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert len(first) != len(other) or not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"speed": ()}, r"speed factors must be positive, found \[\]"),
        ({"speed": (1.0, 0.0)}, "speed factors must be positive"),
        ({"noise_probability": 1.5}, "noise_probability must be between 0 and 1, found 1.5"),
    ],
)
def test_augmentation_validates_itself(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SottoError, match=message):
        Augmentation(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"minimum": 0}, "expected 1 <= minimum <= maximum, found 0 and 7"),
        ({"minimum": 8}, "found 8 and 7"),
        ({"pause_seconds": (0.4, 0.1)}, "pause_seconds must be two lengths"),
        ({"lead_seconds": (-0.1, 0.1)}, "lead_seconds must be two lengths"),
        ({"cut_probability": -1.0}, "cut_probability must be between 0 and 1"),
        ({"strings": 0}, "strings must be at least 1"),
    ],
)
def test_splicing_validates_itself(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SottoError, match=message):
        Splicing(**values)


# Two speakers, told apart by the length of their recordings.
SECONDS = {"a": 0.10, "b": 0.17}
RECORDINGS = [clip(word, seconds, speaker) for speaker, seconds in SECONDS.items() for word in PITCHES]
PAUSES: dict[str, Any] = {"pause_seconds": (0.03, 0.1), "lead_seconds": (0.01, 0.2)}


def segments(audio: NDArray[np.float32]) -> list[tuple[int, int]]:
    """Where recordings are: pauses hold faint noise, recordings are loud throughout."""
    loud = np.concatenate(([False], np.abs(audio) > LOUDNESS / 2, [False]))
    edges = np.flatnonzero(loud[1:] != loud[:-1])
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def words_in(string: SplicedString, spans: Sequence[tuple[int, int]]) -> str:
    return " ".join(nearest_word(string.audio[start:end]) for start, end in spans)


def check_times(string: SplicedString, spans: Sequence[tuple[int, int]]) -> None:
    assert string.start * RATE == pytest.approx(spans[0][0], abs=1e-6)
    assert string.end * RATE == pytest.approx(spans[-1][1], abs=1e-6)


@given(seeds)
@settings(max_examples=40, deadline=None)
def test_a_string_is_what_its_text_says(seed: int) -> None:
    config = Splicing(minimum=2, maximum=5, **PAUSES)
    string = Splicer(RECORDINGS, config, 2.0).draw(rng(seed))
    spans = segments(string.audio)
    assert words_in(string, spans) == string.text
    assert 2 <= len(spans) <= 5
    assert {(end - start) / RATE for start, end in spans} == {SECONDS[string.speaker]}
    assert len(string.audio) <= 2 * RATE
    assert not string.cut
    check_times(string, spans)
    gaps = [(start - end) / RATE for (_, end), (start, _) in pairwise(spans)]
    assert all(0.0299 <= gap <= 0.1 for gap in gaps)
    assert 0.0099 <= spans[0][0] / RATE <= 0.2


@given(seeds)
@settings(max_examples=40, deadline=None)
def test_a_cut_string_fills_the_window_and_leaves_out_what_is_cut(seed: int) -> None:
    string = Splicer(RECORDINGS, Splicing(cut_probability=1.0, **PAUSES), 1.0).draw(rng(seed))
    spans = segments(string.audio)
    whole = [span for span in spans if (span[1] - span[0]) / RATE == SECONDS[string.speaker]]
    assert len(string.audio) == RATE
    assert string.cut
    assert words_in(string, whole) == string.text
    check_times(string, whole)
    # What is left over is one recording that runs into the end of the window.
    assert [span[1] for span in spans[len(whole) :]] in ([], [RATE])


def test_strings_of_every_length_speaker_and_kind_are_drawn() -> None:
    splicer = Splicer(RECORDINGS, Splicing(minimum=1, maximum=3, cut_probability=0.25, **PAUSES), 1.0)
    strings = [splicer.draw(rng(seed)) for seed in range(200)]
    whole = [string for string in strings if not string.cut]
    assert {len(string.text.split()) for string in whole} == {1, 2, 3}
    assert {string.speaker for string in strings} == {"a", "b"}
    assert {word for string in strings for word in string.text.split()} == set(PITCHES)
    assert 25 <= len(strings) - len(whole) <= 75
    # Most cut strings end inside of a recording, not in a pause.
    inside = [segments(string.audio)[-1][1] == RATE for string in strings if string.cut]
    assert sum(inside) > len(inside) / 2


def test_a_string_ends_early_where_the_window_is_full() -> None:
    config = Splicing(minimum=7, maximum=7, pause_seconds=(0.05, 0.05), lead_seconds=(0.0, 0.0))
    string = Splicer([clip("two", 0.1)], config, 0.5).draw(rng())
    assert string.text == "two two two"  # 0.10 + 0.15 + 0.15 = 0.40 s; a fourth would end at 0.55 s
    assert string.end == pytest.approx(0.4)
    assert not string.cut


def test_recordings_too_long_for_the_window_are_left_out() -> None:
    clips = [clip("one", 0.2), clip("two", 0.85)]
    splicer = Splicer(clips, Splicing(lead_seconds=(0.0, 0.2)), 1.0)
    assert {splicer.draw(rng(seed)).text.split()[0] for seed in range(30)} == {"one"}
    assert all(splicer.draw(rng(seed)).text for seed in range(30))


@pytest.mark.parametrize("clips", [[], [clip("two", 0.85)]])
def test_a_splicer_without_a_usable_recording_is_refused(clips: list[Clip]) -> None:
    with pytest.raises(SottoError, match=f"none of the {len(clips)} clips fits the window of 1 s after a lead of 0.2"):
        Splicer(clips, Splicing(lead_seconds=(0.0, 0.2)), 1.0)


def test_the_same_generator_draws_the_same_string() -> None:
    splicer = Splicer(RECORDINGS, Splicing(cut_probability=0.5), 1.0)
    first, again, other = (splicer.draw(rng(seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.audio, again.audio)
    assert (first.text, first.start, first.end, first.cut) == (again.text, again.start, again.end, again.cut)
    assert len(first.audio) != len(other.audio) or not np.array_equal(first.audio, other.audio)
