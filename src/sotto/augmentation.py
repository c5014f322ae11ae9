"""Changes to training audio: speed, gain and noise, and strings spliced from short recordings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import soxr
from numpy.typing import NDArray

from sotto.data import Clip
from sotto.errors import SottoError

Audio = NDArray[np.float32]


@dataclass(frozen=True)
class Augmentation:
    """How training audio is varied; the defaults leave it as it is."""

    speed: tuple[float, ...] = (1.0,)
    """one of these factors is drawn for each clip (tempo and pitch together)"""
    gain_db: float = 0.0
    """a gain drawn evenly from minus to plus this many decibels"""
    noise_snr_db: tuple[float, float] | None = None
    """range of signal-to-noise ratios, in decibels; half of the noise is white, half falls with frequency"""
    noise_probability: float = 0.5

    def __post_init__(self) -> None:
        if not self.speed or min(self.speed) <= 0:
            raise SottoError(f"speed factors must be positive, found {list(self.speed)}")
        if not 0 <= self.noise_probability <= 1:
            raise SottoError(f"noise_probability must be between 0 and 1, found {self.noise_probability}")


@dataclass(frozen=True)
class Splicing:
    """Strings made of several short recordings of one speaker, with pauses: digits to connected digits."""

    minimum: int = 1
    maximum: int = 7
    pause_seconds: tuple[float, float] = (0.02, 0.4)
    lead_seconds: tuple[float, float] = (0.0, 0.5)
    cut_probability: float = 0.0
    """share of strings that run on past the window, so that the last recording is cut and not transcribed"""
    strings: int = 10_000
    """how many strings one epoch has"""

    def __post_init__(self) -> None:
        if not 1 <= self.minimum <= self.maximum:
            raise SottoError(f"expected 1 <= minimum <= maximum, found {self.minimum} and {self.maximum}")
        for name in ("pause_seconds", "lead_seconds"):
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise SottoError(f"{name} must be two lengths, the shorter first, found {low} and {high}")
        if not 0 <= self.cut_probability <= 1:
            raise SottoError(f"cut_probability must be between 0 and 1, found {self.cut_probability}")
        if self.strings < 1:
            raise SottoError(f"strings must be at least 1, found {self.strings}")


@dataclass(frozen=True)
class SplicedString:
    """A string, and where its transcribed speech starts and ends (seconds)."""

    audio: Audio
    text: str
    speaker: str
    start: float
    end: float
    cut: bool


def augment(audio: Audio, config: Augmentation, sampling_rate: int, rng: np.random.Generator) -> tuple[Audio, float]:
    """The varied audio, and the speed factor that was drawn (times divide by it)."""
    speed = float(rng.choice(config.speed))
    if speed != 1.0:
        audio = np.asarray(soxr.resample(audio, sampling_rate * speed, sampling_rate), dtype=np.float32)
    if config.noise_snr_db is not None and rng.random() < config.noise_probability:
        audio = audio + noise_for(audio, float(rng.uniform(*config.noise_snr_db)), rng)
    if config.gain_db:
        audio = audio * np.float32(10 ** (rng.uniform(-config.gain_db, config.gain_db) / 20))
    return np.clip(audio, -1.0, 1.0).astype(np.float32), speed


def noise_for(audio: Audio, snr_db: float, rng: np.random.Generator) -> Audio:
    """Noise at a signal-to-noise ratio (decibels) against `audio`: white, or with power falling as 1 / frequency."""
    noise = rng.standard_normal(len(audio))
    if rng.random() < 0.5:
        spectrum = np.fft.rfft(noise)
        noise = np.fft.irfft(spectrum / np.sqrt(np.arange(len(spectrum)) + 1.0), n=len(audio))
    power = np.mean(np.square(audio)) / 10 ** (snr_db / 10)
    level = np.sqrt(power / max(float(np.mean(np.square(noise))), 1e-12))
    return np.asarray(noise * level, dtype=np.float32)


class Splicer:
    """Draws strings from short recordings, which are decoded once and kept.

    Recordings that do not fit the window after the longest lead are left out. Raises SottoError where none does.
    """

    def __init__(self, clips: Sequence[Clip], config: Splicing, window_seconds: float) -> None:
        self.config = config
        self.window_seconds = window_seconds
        self.by_speaker: dict[str, list[Clip]] = {}
        for clip in clips:
            if config.lead_seconds[1] + clip.seconds <= window_seconds:
                self.by_speaker.setdefault(clip.speaker or "", []).append(clip)
        if not self.by_speaker:
            raise SottoError(
                f"splicing: none of the {len(clips)} clips fits the window of {window_seconds:g} s after a lead of "
                f"{config.lead_seconds[1]:g} s; give shorter clips"
            )
        self.speakers = sorted(self.by_speaker)
        counts = np.array([len(self.by_speaker[speaker]) for speaker in self.speakers])
        self.shares = counts / counts.sum()

    def draw(self, rng: np.random.Generator) -> SplicedString:
        """One string of one speaker, no longer than the window; runs on past it where it is to be cut.

        A speaker of many recordings is drawn more often, so that all recordings are heard alike.
        """
        speaker = self.speakers[rng.choice(len(self.speakers), p=self.shares)]
        clips = self.by_speaker[speaker]
        rate = clips[0].sampling_rate
        window = int(self.window_seconds * rate)
        to_be_cut = rng.random() < self.config.cut_probability
        wanted = window if to_be_cut else int(rng.integers(self.config.minimum, self.config.maximum + 1))
        pieces = [self.silence(self.config.lead_seconds, rate, rng)]
        start = end = position = len(pieces[0])
        words: list[str] = []
        while len(words) < wanted:
            clip = clips[rng.integers(len(clips))]
            if position + len(clip.audio) > window:
                if to_be_cut:
                    pieces.append(clip.audio[: window - position])
                break
            end = position + len(clip.audio)
            words.append(clip.text or "")
            pieces += [clip.audio, self.silence(self.config.pause_seconds, rate, rng)]
            position = end + len(pieces[-1])
            if position >= window:
                break
        audio = np.concatenate(pieces)[:window]
        cut = to_be_cut and bool(words)
        return SplicedString(audio, " ".join(words), speaker, start / rate, end / rate, cut)

    @staticmethod
    def silence(seconds: tuple[float, float], rate: int, rng: np.random.Generator) -> Audio:
        """A pause of random length, filled with faint noise: true recordings have no digital silence."""
        return (rng.standard_normal(int(rng.uniform(*seconds) * rate)) * 1e-4).astype(np.float32)
