"""A Whisper trained on windows shorter than its own."""

import pytest
import torch

import conformers
from sotto.errors import SottoError
from sotto.families.whisper import Whisper
from tones import square_wave, tiny_whisper


def whisper() -> Whisper:
    model, processor = tiny_whisper(window_seconds=3.0)
    return Whisper(model.eval(), processor)


def test_for_a_while_the_window_is_shorter() -> None:
    family = whisper()
    positions = family.model.get_encoder().embed_positions.weight.clone()
    with family.window(1.0):
        assert family.longest_seconds == 1
        features = family.inputs([square_wave(300, 0.5)])["input_features"]
        assert features.shape[-1] == 100
        assert family.model.get_encoder()(features).last_hidden_state.shape[1] == 50
    assert family.longest_seconds == 3
    features = family.inputs([square_wave(300, 0.5)])["input_features"]
    assert family.model.get_encoder()(features).last_hidden_state.shape[1] == 150
    torch.testing.assert_close(family.model.get_encoder().embed_positions.weight, positions)


def test_the_positions_are_the_first_of_the_long_window() -> None:
    family = whisper()
    encoder = family.model.get_encoder()
    whole = encoder.embed_positions.weight.clone()
    with family.window(1.0):
        torch.testing.assert_close(encoder.embed_positions.weight, whole[:50])
        assert not encoder.embed_positions.weight.requires_grad


def test_the_window_is_its_own_again_after_an_error() -> None:
    family = whisper()
    with pytest.raises(RuntimeError), family.window(2.0):
        raise RuntimeError
    assert family.longest_seconds == 3


@pytest.mark.parametrize("seconds", [0.5, 1.5, 4.0])
def test_windows_are_whole_seconds_and_no_longer_than_the_models(seconds: float) -> None:
    with (
        pytest.raises(SottoError, match=r"a window has whole seconds, at most the model's 3, found"),
        whisper().window(seconds),
    ):
        pass


def test_a_model_without_a_window_has_no_shorter_one() -> None:
    family = conformers.make("parakeet").family
    with pytest.raises(SottoError, match="the model has no window; leave out window_seconds"), family.window(2.0):
        pass
    with family.window(None):
        assert family.longest_seconds == 30
