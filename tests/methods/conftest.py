"""Recognisers and a few clips for tests of methods."""

import copy
from pathlib import Path

import numpy as np
import pytest
import soundfile
from small_whisper import MakeRecognizer, build

from sotto.checkpoint import Recognizer
from sotto.data import ClipSource, DataConfig, open_data

RATE = 16000
SECONDS = (0.7, 1.0, 2.4, 1.6)  # with a window of one second: 1 + 1 + 3 + 2 windows


@pytest.fixture(scope="session")
def clips_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Chirps in noise that swells and fades, no two alike."""
    folder = tmp_path_factory.mktemp("clips")
    generator = np.random.default_rng(0)
    for number, seconds in enumerate(SECONDS):
        times = np.arange(round(seconds * RATE)) / RATE
        pitch = 150 + 400 * number + 300 * np.sin(2 * np.pi * (1 + number) * times)
        chirp = np.sin(2 * np.pi * np.cumsum(pitch) / RATE)
        noise = generator.standard_normal(len(times)) * np.abs(np.sin(2 * np.pi * (2 + number) * times))
        soundfile.write(folder / f"{number}.wav", 0.3 * chirp + 0.1 * noise, RATE)
    return folder


@pytest.fixture
def clips(clips_folder: Path) -> ClipSource:
    return open_data(DataConfig(str(clips_folder)), sampling_rate=RATE)


@pytest.fixture(scope="session")
def make_recognizer() -> MakeRecognizer:
    """Builds a recogniser with a window of one second; the same arguments give an equal one, and a new copy."""
    built: dict[tuple[int, ...], Recognizer] = {}

    def make(width: int = 32, layers: int = 2, heads: int = 2, seed: int = 0) -> Recognizer:
        key = (width, layers, heads, seed)
        if key not in built:
            built[key] = build(*key)
        return copy.deepcopy(built[key])

    return make
