"""An export that fails half-way leaves everything as it was."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from digits import CLIPS, MODEL
from folders import contents
from sotto.checkpoint import Recognizer, load
from sotto.data import DataConfig, open_data
from sotto.errors import SottoError
from sotto.exports import clips_of, export
from sotto.exports.targets import TARGETS, Target
from sotto.exports.verification import Agreement
from sotto.methods import Quantization, StepContext, methods
from sotto.metrics.cost import ideal_bytes
from tones import write_folder


def half_written(error: BaseException) -> Callable[..., Any]:
    """Writes a file of what it is asked for, and fails."""

    def fail(_: object, folder: Path, *__: object) -> None:
        (folder / "config.json").write_text("{")
        raise error

    return fail


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*_: object) -> None:
        raise error

    return fail


def full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


NO_SPACE = r"out: cannot be written \(No space left on device\); nothing was left there"
FAILURES: dict[str, tuple[str, Callable[..., Any], type[BaseException], str | None]] = {
    "disk full while writing": ("transformers_folder.write", half_written(full()), SottoError, NO_SPACE),
    "disk full at the end": ("exporting.write_record", raising(full()), SottoError, NO_SPACE),
    "Ctrl-C while writing": ("transformers_folder.write", half_written(KeyboardInterrupt()), KeyboardInterrupt, None),
    "Ctrl-C while comparing": ("exporting.by_export", raising(KeyboardInterrupt()), KeyboardInterrupt, None),
    "Ctrl-C at the end": ("exporting.replace_folder", raising(KeyboardInterrupt()), KeyboardInterrupt, None),
}


@pytest.mark.parametrize("is_there", [False, True], ids=["new", "there"])
@pytest.mark.parametrize("case", FAILURES)
def test_a_failed_export_leaves_everything_as_it_was(
    case: str, is_there: bool, recognizer: Recognizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = write_folder(tmp_path / "clips", ["one"], [0.6])
    place = tmp_path / "new" / "out"
    if is_there:
        export(recognizer, place, to="lite-whisper", audio=clips, language="en")
    before, folders = contents(tmp_path), {path for path in tmp_path.rglob("*") if path.is_dir()}
    failing, failure, error, message = FAILURES[case]
    monkeypatch.setattr(f"sotto.exports.{failing}", failure)
    with pytest.raises(error, match=message):
        export(recognizer, place, to="transformers", audio=clips, language="en")
    assert contents(tmp_path) == before
    assert {path for path in tmp_path.rglob("*") if path.is_dir()} == folders


@pytest.mark.parametrize("to", ["onnx", "openvino", "sherpa-onnx", "ctranslate2"])
def test_a_wrong_graph_is_not_taken_for_rounding(to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an attention, scores differ by less than 8 bits may explain: the same is proved without rounding."""
    as_it_is = Target.write

    def damaged(target: Target, model: Recognizer, folder: Path, precision: str, clips: Any) -> tuple[str, ...]:
        wrong = model.copy()
        with torch.no_grad():
            wrong.model.model.decoder.layers[0].self_attn.out_proj.weight.mul_(0.9)
        return as_it_is(target, wrong, folder, precision, clips)

    monkeypatch.setattr(Target, "write", damaged)
    with pytest.raises(SottoError, match="the export does not compute what the model computes"):
        export(MODEL, tmp_path / "out", to=to, precision="int8", audio=CLIPS / "calibration")
    assert not list(tmp_path.iterdir())


def test_scales_of_what_is_multiplied_are_not_taken_from_bundled_clips(tmp_path: Path) -> None:
    with pytest.raises(SottoError, match="takes its scales from speech like that which it will hear; name it with"):
        export(MODEL, tmp_path / "out", to="openvino", precision="int8-calibrated")


def test_clips_that_prove_an_export_are_not_those_that_gave_its_scales(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[list[str]] = []
    monkeypatch.setattr(
        "sotto.exports.exporting.windows", lambda _, clips: heard.append([each.name for each in clips]) or []
    )
    monkeypatch.setattr("sotto.exports.exporting.by_model", lambda *_: None)
    monkeypatch.setattr("sotto.exports.exporting.by_export", lambda *_: None)
    monkeypatch.setattr("sotto.exports.exporting.agreement", lambda *_: Agreement(4, 0.0, 0.0, 0))
    monkeypatch.setattr(Target, "write", lambda _self, _model, _folder, _precision, clips: tuple(c.name for c in clips))
    monkeypatch.setattr(Target, "read", lambda *_: None)
    found = export(MODEL, tmp_path / "out", to="openvino", precision="int8-calibrated", audio=CLIPS / "test")
    assert len(found.notes) > 0
    assert not set(found.notes) & set(heard[0])
    assert len(heard) == 1  # the model is heard once, for the proof without rounding and for that with it


def test_clips_are_heard_from_all_over_the_audio_and_no_longer_than_a_window(
    recognizer: Recognizer, tmp_path: Path
) -> None:
    """Four hours of audio would be heard for hours, and lie in memory."""
    folder = write_folder(tmp_path / "clips", ["one"] * 9, [3.0, *[0.5] * 8])
    source = open_data(DataConfig(str(folder)), sampling_rate=recognizer.sampling_rate)
    found = clips_of(source, recognizer, 3)
    assert [clip.name for clip in found] == ["0.wav", "3.wav", "6.wav"]
    assert [clip.seconds for clip in found] == [1.0, 0.5, 0.5]
    assert found[0].audio.base is None
    assert len(clips_of(source, recognizer, 8)) == 8
    assert len(clips_of(source, recognizer, 20)) == 9


@pytest.mark.parametrize("name", ["onnx", "sherpa-onnx", "ctranslate2"])
def test_whole_numbers_take_little_more_than_their_bits(name: str, tmp_path: Path) -> None:
    """Of a small model too, where graphs and names weigh most."""
    model, target, step = load(MODEL, device="cpu"), TARGETS[name], Quantization(embedding_bits=8)
    (tmp_path / "out").mkdir()
    target.write(model, tmp_path / "out", "int8", ())
    found = sum(path.stat().st_size for path in (tmp_path / "out").glob(target.files))
    methods.handler(step)(model, step, StepContext(tmp_path))
    assert 0.9 < found / ideal_bytes(model.model, itemsize=2) < 1.1
