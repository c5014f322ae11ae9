"""A window that is shorter for good: what the model computes, keeps, costs and writes."""

from pathlib import Path

import numpy as np
import pytest
import torch

from conformers import make
from sotto import LowRank, ShorterWindow, compress, export, load
from sotto.checkpoint import Recognizer
from sotto.decoding import Decoding
from sotto.errors import SottoError
from sotto.exports import TARGETS
from sotto.measurement import measure_cost
from sotto.opening import open_model
from tones import forbid_special_tokens, open_folder, square_wave, tiny_whisper, write_folder
from whisper_windows import features_of, own_transcript


@pytest.fixture
def long() -> Recognizer:
    model, processor = tiny_whisper(window_seconds=4.0, encoder_layers=2)
    forbid_special_tokens(model, processor)
    return Recognizer(model.eval(), processor, language="en")


def scores(recognizer: Recognizer, seconds: float) -> torch.Tensor:
    features = features_of(recognizer, [square_wave(300, seconds)])
    tokens = own_transcript(recognizer, features)
    with torch.no_grad():
        found: torch.Tensor = recognizer.model(input_features=features, decoder_input_ids=tokens).logits
    return found


def test_it_computes_what_the_long_one_does_while_its_window_is_shorter(long: Recognizer) -> None:
    short = compress(long, ShorterWindow(2), language="en")
    with long.family.window(2):
        expected = scores(long, 1.5)
    torch.testing.assert_close(scores(short, 1.5), expected)
    assert short.window_seconds == 2
    assert long.window_seconds == 4
    assert features_of(long, [square_wave(300, 1.0)]).shape[-1] == 400


def test_it_costs_less_and_is_what_it_is_when_it_was_saved(long: Recognizer, tmp_path: Path) -> None:
    short = compress(long, ShorterWindow(1), language="en")
    before, after = measure_cost(long, "long"), measure_cost(short, "short")
    assert after.encoder_flops < 0.3 * before.encoder_flops
    assert after.window_seconds == 1
    opened = load(short.save(tmp_path / "short"), device="cpu")
    opened.language = "en"
    assert opened.window_seconds == 1
    assert opened.model.config.max_source_positions == 50
    torch.testing.assert_close(scores(opened, 0.8), scores(short, 0.8))


def test_longer_clips_are_heard_window_after_window(long: Recognizer, tmp_path: Path) -> None:
    short = compress(long, ShorterWindow(1), language="en")
    source = open_folder(write_folder(tmp_path / "clips", ["one", "two"], [0.9, 2.5]))
    seen = []
    short.model.get_encoder().register_forward_hook(lambda _, inputs, output: seen.append(output[0].shape[:2]))
    heard = list(short.family.transcribe(source, Decoding(language="en", batch_size=2)))
    assert [each.name for each in heard] == ["0.wav", "1.wav"]
    assert set(seen) == {(1, 50)}
    assert len(seen) >= 3  # the second clip takes several windows


@pytest.mark.parametrize("target", TARGETS)
def test_other_steps_follow_and_every_export_has_the_window(target: str, long: Recognizer, tmp_path: Path) -> None:
    clips = write_folder(tmp_path / "clips", ["one", "two"], [0.8, 0.9])
    short = compress(long, ShorterWindow(1), LowRank(parameters=0.9, rank_multiple=8), calibration=clips, language="en")
    assert short.window_seconds == 1
    export(short, tmp_path / "export", to=target, audio=clips)
    opened = open_model(tmp_path / "export", device="cpu")
    assert opened.window_seconds == 1
    audio = np.asarray(square_wave(300, 0.7))
    assert opened.family.inputs([audio])["input_features"].shape[-1] == 100


@pytest.mark.parametrize(
    ("seconds", "message"),
    [(5, "a window has whole seconds, at most the model's 4, found 5"), (0, "seconds must be at least 1, found 0")],
)
def test_what_cannot_be_is_said(seconds: int, message: str, long: Recognizer) -> None:
    with pytest.raises(SottoError, match=message):
        compress(long, ShorterWindow(seconds), language="en")
    assert long.window_seconds == 4


def test_a_model_that_hears_any_length_has_none() -> None:
    with pytest.raises(SottoError, match="the model has no window of its own, and hears audio of any length"):
        compress(make("parakeet"), ShorterWindow(2), language="en")
