from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

WriteClip = Callable[..., Path]


@pytest.fixture
def write_clip(tmp_path: Path) -> WriteClip:
    """Writes a sine into `tmp_path / name`; the pitch is the clip's fingerprint."""

    def write(name: str, *, pitch: float = 440.0, seconds: float = 0.3, rate: int = 8000) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        times = np.arange(round(seconds * rate)) / rate
        soundfile.write(path, 0.5 * np.sin(2 * np.pi * pitch * times), rate)
        return path

    return write
