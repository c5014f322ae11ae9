"""Encoded audio -> mono float32 samples at the rate that a model asks for."""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from sotto.data.clips import BadClip

SILENCE_PEAK = 1e-5
SHORTEST_WINDOW_SECONDS = 0.1
EXTENSIONS = frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".caf", ".w64"})
# A stated length may be rounded; a clip has broken off only when clearly more than that is missing.
BROKEN_OFF_SHARE = 0.9
BROKEN_OFF_SECONDS = 0.1
# Programs that write WAV to a pipe do not know its size and state about the largest that 31 or 32 bits hold.
UNKNOWN_WAV_SIZE = 0x7F000000


def decode(encoded: Path | bytes, sampling_rate: int) -> NDArray[np.float32]:
    """Decode a file (or its bytes), average its channels, resample: shape (samples,), at `sampling_rate` Hz.

    Raises BadClip for anything that gives no usable sound: a missing or empty file, one that is not audio or
    breaks off, no samples, silence, samples that are not finite.
    """
    audio, file_rate = _read(_read_file(encoded) if isinstance(encoded, Path) else encoded)
    if len(audio) == 0:
        raise BadClip("holds no samples")
    if not np.isfinite(audio).all():
        raise BadClip("holds samples that are not finite (NaN or infinity)")
    mono = audio.mean(axis=1, dtype=np.float32)
    peak = float(np.abs(mono).max())
    if peak < SILENCE_PEAK:
        raise BadClip(f"is silent (peak {peak:.1g})")
    if file_rate != sampling_rate:
        mono = soxr.resample(mono, file_rate, sampling_rate, quality="HQ")
        if len(mono) == 0:
            raise BadClip(f"is too short to resample to {sampling_rate} Hz")
    return np.ascontiguousarray(mono, dtype=np.float32)


def has_broken_off(seconds: float, stated_seconds: float) -> bool:
    """Whether clearly less was decoded than was stated."""
    return seconds < BROKEN_OFF_SHARE * stated_seconds - BROKEN_OFF_SECONDS


def header_seconds(path: Path) -> float | None:
    """Length by the file's header alone, an estimate for some MP3; None where it cannot be read."""
    try:
        with path.open("rb") as file:
            return float(soundfile.info(file).duration)
    except (soundfile.SoundFileError, OSError, TypeError):
        return None


def windows(audio: NDArray[np.float32], sampling_rate: int, seconds: float) -> Iterator[NDArray[np.float32]]:
    """Consecutive windows of `seconds` over audio of shape (samples,), as views; the last one may be shorter.

    A tail below 0.1 s is dropped unless it is all there is. Raises ValueError if a window holds no sample.
    """
    size = round(seconds * sampling_rate)
    if size < 1:
        raise ValueError(f"a window of {seconds} s holds no sample at {sampling_rate} Hz")
    shortest = min(SHORTEST_WINDOW_SECONDS * sampling_rate, size)
    for start in range(0, len(audio), size):
        window = audio[start : start + size]
        if start == 0 or len(window) >= shortest:
            yield window


def _read_file(path: Path) -> bytes:
    if not path.is_file():
        raise BadClip("is missing")
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadClip(f"cannot be read: {error.strerror}") from error


def _read(encoded: bytes) -> tuple[NDArray[np.float32], int]:
    """Samples of shape (frames, channels) and their rate."""
    if not encoded:
        raise BadClip("is empty")
    try:
        with _opened(encoded) as file:
            audio = file.read(dtype="float32", always_2d=True)
            rate = int(file.samplerate)
            stated = _stated_share(file) * len(audio)
    except soundfile.LibsndfileError as error:
        raise BadClip(f"does not decode: {error.error_string}") from error
    if has_broken_off(len(audio) / rate, stated / rate):
        raise BadClip(f"breaks off: {len(audio) / rate:.2f} of {stated / rate:.2f} s are there")
    return audio, rate


@contextmanager
def _opened(encoded: bytes) -> Iterator[soundfile.SoundFile]:
    """By a file's number: where libsndfile reads through Python, an interrupt is lost and the clip ends there."""
    with tempfile.TemporaryFile() as whole:
        whole.write(encoded)
        whole.seek(0)
        with soundfile.SoundFile(whole.fileno(), closefd=False) as file:
            yield file


def _stated_share(file: soundfile.SoundFile) -> float:
    """Data that a WAV header states, relative to what is there. Other formats report an early end themselves.

    libsndfile reads a WAV file that was cut off without an error and tells of it only in its log.
    """
    found = re.search(r"^data *: (\d+) \(should be (\d+)\)", file.extra_info, re.MULTILINE)
    if found is None:
        return 1.0
    stated, there = int(found[1]), int(found[2])
    return stated / there if there > 0 and stated < UNKNOWN_WAV_SIZE else 1.0
