"""What the README promises of the demo, by the command that a user types."""

import json
import os
import subprocess
import sys

import pytest

import sotto
from sotto.demo import DEMO_RECIPE

SHIPPED_BYTES = 6_000_000


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float]]:
    folder = tmp_path_factory.mktemp("demo") / "run"
    command = [sys.executable, "-m", "sotto", "demo", "-o", str(folder)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert "The encoder has" in done.stdout
    found: list[dict[str, float]] = json.loads((folder / "report.json").read_text())["models"]
    return found


def test_the_encoder_is_left_at_most_45_percent_of_its_parameters(models: list[dict[str, dict[str, float]]]) -> None:
    before, after = (model["parameters"]["encoder"] for model in models)
    assert after <= 0.45 * before


def test_the_word_error_rate_rises_by_at_most_one_point(models: list[dict[str, dict[str, float]]]) -> None:
    before, after = (model["errors"]["wer"] for model in models)
    assert before <= 0.05
    assert after - before <= 0.01


def test_every_linear_has_its_flops_in_reduced_attention_too(models: list[dict[str, list[dict[str, float]]]]) -> None:
    assert any("computed in the reduced dimension" in str(note) for note in models[1]["notes"])
    for model in models:
        assert all(layer["flops"] > 0 for layer in model["layers"])


def test_the_demo_is_small_enough_for_the_wheel() -> None:
    folder = DEMO_RECIPE.parent
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= SHIPPED_BYTES


def test_the_demo_recogniser_gives_times_within_the_clip() -> None:
    from sotto.data import DataConfig, open_data
    from sotto.decoding import Decoding
    from sotto.transcription import transcribe

    recognizer = sotto.load(DEMO_RECIPE.parent / "model")
    clips = open_data(DataConfig(str(DEMO_RECIPE.parent / "clips" / "test")), sampling_rate=recognizer.sampling_rate)
    few = [clip for clip, _ in zip(clips, range(8), strict=False)]
    for result in transcribe(recognizer, few, Decoding(language="en", timestamps=True)):
        assert all(0 <= part.start <= part.end <= result.seconds + 0.02 for part in result.segments)
