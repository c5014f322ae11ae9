"""Windows that are fitted to the clips: how long they are, what is heard in them, and where they are kept."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from conformers import make
from sotto import FittedWindow, compress, export, load
from sotto.checkpoint import Recognizer
from sotto.data import Clip
from sotto.decoding import Decoding
from sotto.errors import SottoError
from sotto.examples import IGNORED, Example
from sotto.exports import TARGETS
from sotto.families.fitted_windows import drawn_seconds, fitted_seconds
from sotto.methods import LayerwiseDistillation
from sotto.objectives import Setting, objectives
from sotto.opening import open_model
from tones import forbid_special_tokens, square_wave, tiny_whisper, write_folder

LENGTHS = [2.4, 0.4, 1.2, 3.9, 0.6]  # seconds, in no order
FITTED = Decoding(language="en", batch_size=2)


@pytest.fixture
def whole() -> Recognizer:
    model, processor = tiny_whisper(window_seconds=4.0, encoder_layers=2)
    forbid_special_tokens(model, processor)
    return Recognizer(model.eval(), processor, language="en")


@pytest.fixture
def fitted(whole: Recognizer) -> Recognizer:
    return compress(whole, FittedWindow(silence=0.5), language="en")


def clips(lengths: list[float]) -> list[Clip]:
    tones = [np.asarray(square_wave(200 + 60 * number, seconds)) for number, seconds in enumerate(lengths)]
    return [Clip(str(number), tone, 16_000) for number, tone in enumerate(tones)]


def positions_heard(recognizer: Recognizer, lengths: list[float], decoding: Decoding) -> list[tuple[int, int]]:
    """(clips, positions) of every pass through the encoder."""
    seen: list[tuple[int, int]] = []
    handle = recognizer.model.get_encoder().register_forward_hook(
        lambda _, inputs, output: seen.append(tuple(output[0].shape[:2]))
    )
    found = list(recognizer.family.transcribe(clips(lengths), decoding))
    handle.remove()
    assert [each.name for each in found] == [str(number) for number in range(len(lengths))]
    return seen


@pytest.mark.parametrize(
    ("silence", "longest", "expected"),
    [(0.5, 1.2, 2), (0.5, 1.5, 2), (0.5, 1.51, 3), (0.0, 2.0, 2), (0.5, 9.9, 10), (0.0, 0.0, 1)],
)
def test_a_window_ends_with_the_whole_second_after_the_silence(silence: float, longest: float, expected: int) -> None:
    extractor = SimpleNamespace(chunk_length=10, fitted_silence=silence)
    assert fitted_seconds(extractor, longest) == expected
    assert fitted_seconds(SimpleNamespace(chunk_length=10), longest) == 10


def test_training_draws_windows_up_to_the_whole_one_and_short_ones_more_often() -> None:
    extractor = SimpleNamespace(chunk_length=10, fitted_silence=0.5, sampling_rate=1)
    drawn = [drawn_seconds(extractor, [2, 3, number]) for number in range(4)]
    assert drawn == [drawn_seconds(extractor, [2, 3, number]) for number in range(4)]
    many = [drawn_seconds(extractor, [2] + [1] * number) for number in range(600)]
    assert set(many) == set(range(3, 11))
    counts = np.bincount(many)[3:]
    assert counts[0] > 2 * counts[-1]
    assert drawn_seconds(SimpleNamespace(chunk_length=10, sampling_rate=1), [2, 3]) == 10


def test_clips_of_about_a_length_are_heard_together_and_told_in_their_order(fitted: Recognizer) -> None:
    assert positions_heard(fitted, LENGTHS, FITTED) == [(2, 100), (2, 150), (1, 200)]
    assert fitted.window_seconds == 4


def test_the_same_is_written_as_with_windows_of_that_length(fitted: Recognizer, whole: Recognizer) -> None:
    found = list(fitted.family.transcribe(clips([0.7]), FITTED))
    with whole.family.window(2):
        expected = list(whole.family.transcribe(clips([0.7]), FITTED))
    assert found == expected
    assert found[0].text


def test_timestamps_and_long_audio_take_whole_windows(fitted: Recognizer) -> None:
    assert set(positions_heard(fitted, [0.7], Decoding(language="en", timestamps=True))) == {(1, 200)}
    assert set(positions_heard(fitted, [6.0], FITTED)) == {(1, 200)}


def test_no_more_is_read_ahead_than_the_next_long_clip(fitted: Recognizer) -> None:
    read: list[str] = []

    def reading() -> Iterator[Clip]:
        for clip in clips([0.5, 6.0, 0.5, 0.6]):
            read.append(clip.name)
            yield clip

    heard = fitted.family.transcribe(reading(), FITTED)
    assert next(heard).name == "0"
    assert read == ["0", "1"]
    assert [each.name for each in heard] == ["1", "2", "3"]


def test_a_teacher_that_is_the_model_itself_hears_the_same_windows(fitted: Recognizer) -> None:
    """Also where training takes shorter windows than the model has."""
    built = objectives.handler(LayerwiseDistillation())(LayerwiseDistillation(), Setting(fitted.family))
    with fitted.family.window(3), built.attached(fitted.model):
        for lengths in ([0.4, 0.9], [2.8, 2.9]):
            examples = [Example(clip.audio, "a", "en", None) for clip in clips(lengths)]
            batch = fitted.family.collator("en")(examples)
            outputs, _ = fitted.family.loss(batch, 0.0)
            tokens = (batch["labels"] != IGNORED).sum()
            assert built(fitted.model, batch, outputs, tokens).isfinite()
    assert fitted.window_seconds == 4
    assert set(positions_heard(fitted, [3.9], FITTED)) == {(1, 200)}


def test_others_hear_whole_windows(whole: Recognizer) -> None:
    assert positions_heard(whole, LENGTHS, FITTED) == [(2, 200), (2, 200), (1, 200)]


def test_a_training_step_hears_the_window_that_was_drawn(fitted: Recognizer) -> None:
    examples = [Example(clip.audio, "a", "en", None) for clip in clips([0.4, 0.9])]
    batch = fitted.family.collator("en")(examples)
    seconds = drawn_seconds(fitted.processor.feature_extractor, [len(example.audio) for example in examples])
    assert batch["input_features"].shape[-1] == 100 * seconds
    assert 2 <= seconds < 4
    outputs, loss = fitted.family.loss(batch, 0.0)
    loss.backward()  # type: ignore[no-untyped-call]
    assert outputs.encoder_last_hidden_state.shape[1] == 50 * seconds
    gradient = fitted.model.get_encoder().conv1.weight.grad
    assert gradient is not None
    assert gradient.abs().sum() > 0
    assert fitted.window_seconds == 4
    with torch.no_grad(), fitted.family.window(seconds):
        _, again = fitted.family.loss(batch, 0.0)
    torch.testing.assert_close(loss.detach(), again)


def test_a_checkpoint_keeps_them_and_the_base_does_not_have_them(
    fitted: Recognizer, whole: Recognizer, tmp_path: Path
) -> None:
    opened = load(fitted.save(tmp_path / "fitted"), device="cpu")
    opened.language = "en"
    assert positions_heard(opened, [0.7], FITTED) == [(1, 100)]
    assert positions_heard(whole, [0.7], FITTED) == [(1, 200)]


@pytest.mark.parametrize("target", TARGETS)
def test_exports_fit_windows_or_say_that_they_do_not(target: str, fitted: Recognizer, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "clips", ["one", "two"], [0.8, 1.7])
    record = export(fitted, tmp_path / "export", to=target, audio=folder)
    opened = open_model(tmp_path / "export", device="cpu")
    opened.language = "en"
    assert opened.window_seconds == 4
    whole = target in ("onnx", "sherpa-onnx", "ctranslate2")
    assert any("padded to the whole window" in note for note in record.notes) is whole
    fits = fitted_seconds(opened.processor.feature_extractor, 0.7)
    assert fits == (4 if whole else 2)
    texts = [found.text for found in opened.family.transcribe(clips(LENGTHS), FITTED)]
    if target == "openvino":
        assert texts == [found.text for found in fitted.family.transcribe(clips(LENGTHS), FITTED)]


def test_what_cannot_be_is_said(whole: Recognizer) -> None:
    with pytest.raises(SottoError, match="fitted_window: silence must not be negative, found -1"):
        compress(whole, FittedWindow(silence=-1), language="en")
    with pytest.raises(SottoError, match="the model has no window to fit: its batches are as long as their clips"):
        compress(make("parakeet"), FittedWindow(), language="en")
