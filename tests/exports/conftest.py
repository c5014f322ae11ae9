"""Models exported once for all tests of a process."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from mixed_shapes import mixed
from recognizers import recognizer as of_architecture
from sotto.checkpoint import Recognizer
from sotto.exports import export
from tones import tiny_whisper, write_folder

Both = tuple[Recognizer, Path]
"""A model, and the folder it was exported to."""
Case = tuple[str, str, str]
"""Target, architecture, and `dense` or `mixed` shapes."""


@pytest.fixture(scope="session")
def exported_by(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], Both]:
    @cache
    def made(case: Case) -> Both:
        target, architecture, shapes = case
        sizes = {"encoder_layers": 2, "decoder_layers": 2}
        found = Recognizer(*tiny_whisper(**sizes)) if architecture == "whisper" else of_architecture(architecture)
        found.model.eval()
        folder = tmp_path_factory.mktemp("export")
        audio = write_folder(folder / "clips", ["one", "two", "three"], [0.6, 0.75, 0.9])
        export(mixed(found) if shapes == "mixed" else found, folder / "out", to=target, audio=audio)
        return found, folder / "out"

    return made
