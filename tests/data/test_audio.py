import io
import signal
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from sotto.data import BadClip, decode, windows
from sotto.data.audio import header_seconds


def sine(pitch: float, seconds: float, rate: int) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate)


def encoded(samples: np.ndarray, rate: int, **options: str) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, **(options or {"format": "WAV", "subtype": "FLOAT"}))
    return buffer.getvalue()


FORMATS = [
    ("wav", {"format": "WAV", "subtype": "PCM_16"}),
    ("flac", {"format": "FLAC"}),
    ("ogg", {"format": "OGG", "subtype": "VORBIS"}),
    ("opus", {"format": "OGG", "subtype": "OPUS"}),
    ("mp3", {"format": "MP3"}),
]


@pytest.mark.parametrize(("extension", "options"), FORMATS)
def test_every_format_decodes_to_the_same_tone(tmp_path: Path, extension: str, options: dict[str, str]) -> None:
    if options["format"] not in soundfile.available_formats():
        pytest.skip(f"this libsndfile writes no {extension}")
    content = encoded(sine(1000, 1.0, 16000), 16000, **options)
    path = tmp_path / f"a.{extension}"
    path.write_bytes(content)
    audio = decode(path, 16000)
    assert audio.dtype == np.float32
    assert audio.shape == (16000,)
    assert np.abs(np.fft.rfft(audio)).argmax() == 1000
    np.testing.assert_array_equal(audio, decode(content, 16000))


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_resampling_keeps_length_pitch_and_level(rate: int) -> None:
    audio = decode(encoded(sine(1000, 1.0, rate), rate), 16000)
    assert abs(len(audio) - 16000) <= 1
    middle = audio[2000:14000]
    np.testing.assert_allclose(middle, sine(1000, 1.0, 16000)[2000:14000], atol=2e-3)


def test_no_resampling_gives_the_samples_back() -> None:
    samples = np.array([0.5, -0.25, 0.125], dtype=np.float32)
    np.testing.assert_array_equal(decode(encoded(samples, 16000), 16000), samples)


def test_channels_are_averaged() -> None:
    left_and_right = np.array([[0.5, 0.1], [-0.2, 0.4]], dtype=np.float32)
    np.testing.assert_allclose(decode(encoded(left_and_right, 16000), 16000), [0.3, 0.1], atol=1e-7)


TONE = sine(440, 1.0, 16000)
FLAC = encoded(TONE, 16000, format="FLAC")
WAV = encoded(TONE, 16000, format="WAV", subtype="PCM_16")
BAD = {
    "empty": (b"", "is empty"),
    "no samples": (encoded(np.zeros(0), 16000), "holds no samples"),
    "zeros": (encoded(np.zeros(1600), 16000), "is silent"),
    "nearly zeros": (encoded(np.full(1600, 9e-6), 16000), "is silent"),
    "channels cancel out": (encoded(np.tile([0.5, -0.5], (1600, 1)), 16000), "is silent"),
    "nan": (encoded(np.array([0.1, np.nan]), 16000), "not finite"),
    "infinity": (encoded(np.array([0.1, np.inf]), 16000), "not finite"),
    "text": (b"this is no audio at all, " * 40, "does not decode"),
    "flac cut off": (FLAC[: len(FLAC) // 2], "does not decode"),
    "wav cut off": (WAV[: len(WAV) // 2], "breaks off: 0.50 of 1.00 s"),
    "wav header only": (WAV[:20], "does not decode"),
    "too short": (encoded(np.array([0.5]), 48000), "too short to resample"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_audio_is_refused_with_its_reason(case: str) -> None:
    content, reason = BAD[case]
    with pytest.raises(BadClip, match=reason) as caught:
        decode(content, 16000)
    assert "\n" not in caught.value.reason


def test_quiet_audio_is_no_silence() -> None:
    assert len(decode(encoded(np.full(1600, 2e-5), 16000), 16000)) == 1600


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(BadClip, match="is missing"):
        decode(tmp_path / "none.wav", 16000)
    with pytest.raises(BadClip, match="is missing"):
        decode(tmp_path, 16000)
    headerless = tmp_path / "a.raw"
    headerless.write_bytes(bytes(range(200)))
    with pytest.raises(BadClip, match="does not decode"):
        decode(headerless, 16000)


@pytest.mark.parametrize("stated", [0x7FFFFFFF, 0x7FFFF000, 0x80000000, 0xFFFFFFFF])
def test_wav_written_to_a_pipe_is_whole(stated: int) -> None:
    position = WAV.index(b"data") + 4
    piped = WAV[:position] + struct.pack("<I", stated) + WAV[position + 4 :]
    np.testing.assert_array_equal(decode(piped, 16000), decode(WAV, 16000))


def test_header_seconds(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(encoded(sine(440, 0.75, 8000), 8000))
    assert header_seconds(path) == 0.75
    path.write_text("no audio")
    assert header_seconds(path) is None
    assert header_seconds(tmp_path / "none.wav") is None


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (0, []),
        (1, [1]),
        (50, [50]),
        (1000, [1000]),
        (1099, [1000]),
        (1100, [1000, 100]),
        (2500, [1000, 1000, 500]),
    ],
)
def test_windows_of_one_second(length: int, expected: list[int]) -> None:
    assert [len(window) for window in windows(np.ones(length, np.float32), 1000, 1.0)] == expected


@given(length=st.integers(1, 2000), seconds=st.floats(0.01, 3.0))
def test_windows_put_together_are_the_audio_less_a_short_tail(length: int, seconds: float) -> None:
    audio = np.arange(length, dtype=np.float32)
    joined = np.concatenate(list(windows(audio, 1000, seconds)))
    np.testing.assert_array_equal(joined, audio[: len(joined)])
    assert length - len(joined) < 100


def test_windows_without_a_sample() -> None:
    with pytest.raises(ValueError, match="holds no sample"):
        next(windows(np.ones(10, np.float32), 1000, 0.0))


def test_an_interrupt_while_a_clip_is_read_is_not_lost() -> None:
    """Where libsndfile reads through Python, it is: the clip would be cut there, and the program go on."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    content = encoded(sine(1000, 60.0, 16000), 16000, format="OGG", subtype="VORBIS")

    def read_on() -> None:
        for _ in range(200):
            assert len(decode(content, 16000)) == 60 * 16000

    before = signal.signal(signal.SIGALRM, interrupted)
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    try:
        with pytest.raises(KeyboardInterrupt):
            read_on()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
