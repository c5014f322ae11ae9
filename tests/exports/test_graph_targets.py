"""What holds for every target whose models are computed by graphs of another runtime."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sotto.checkpoint import Recognizer
from sotto.decoding import Decoding, Transcription
from sotto.errors import SottoError
from sotto.exports import TARGETS, open_export
from sotto.opening import cost_of, open_model
from tones import clip, square_wave

Both = tuple[Recognizer, Path]
"""A model, and the folder it was exported to."""
WHISPERS = [
    ("onnx", "whisper", "dense"),
    ("onnx", "whisper", "mixed"),
    ("openvino", "whisper", "mixed"),
    ("sherpa-onnx", "whisper", "mixed"),
]
CASES = [
    *WHISPERS,
    ("onnx", "parakeet", "mixed"),
    ("onnx", "wav2vec2_conformer", "mixed"),
    ("onnx", "wav2vec2_conformer_rotary", "mixed"),
    ("openvino", "parakeet", "mixed"),
    ("openvino", "wav2vec2_conformer_rotary", "mixed"),
    ("sherpa-onnx", "parakeet", "mixed"),
    ("sherpa-onnx", "wav2vec2_conformer", "mixed"),
]


@pytest.fixture(params=CASES, ids="-".join)
def both(request: pytest.FixtureRequest, exported_by: Callable[[Any], Both]) -> Both:
    return exported_by(request.param)


@pytest.fixture(params=WHISPERS, ids="-".join)
def whisper(request: pytest.FixtureRequest, exported_by: Callable[[Any], Both]) -> Both:
    return exported_by(request.param)


def test_an_export_computes_what_the_model_computes(both: Both) -> None:
    """Clips of unequal length at once, and prompts of any length before anything is kept."""
    model, exported = both[0], open_export(both[1])
    inputs = model.family.inputs([square_wave(300, 0.9), square_wave(200, 0.5)])
    if model.model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.tensor([[1, 5, 9, 11], [1, 4, 2, 3]])
    with torch.no_grad():
        expected = model.family.logits(inputs)
    torch.testing.assert_close(exported.family.logits(inputs), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("timestamps", [False, True])
def test_it_writes_what_the_model_writes(both: Both, timestamps: bool) -> None:
    """Token by token with what is kept of those before; longer than the window too."""
    assert transcripts(open_export(both[1]), timestamps=timestamps) == transcripts(both[0], timestamps=timestamps)


@pytest.mark.parametrize("beams", [2, 3])
def test_it_searches_as_the_model_searches(whisper: Both, beams: int) -> None:
    """Keys and values follow the beams that were kept."""
    assert transcripts(open_export(whisper[1]), beams=beams) == transcripts(whisper[0], beams=beams)


def transcripts(found: Recognizer, **settings: Any) -> list[Transcription]:
    clips = [clip("one", 0.6), clip("two", 0.8), clip("three", 2.5)]
    return list(found.family.transcribe(clips, Decoding(batch_size=2, **settings)))


def test_it_is_measured_as_a_model_is(both: Both) -> None:
    model, folder = both
    exported = open_model(folder)
    numbers, before = cost_of(exported, str(folder)), cost_of(model, "model")
    assert (numbers.parameters, numbers.encoder_flops) == (before.parameters, before.encoder_flops)
    graphs = [path for path in folder.rglob("*") if path.suffix in (".onnx", ".xml", ".bin")]
    assert numbers.bytes_on_disk == sum(path.stat().st_size for path in graphs) > 4 * before.parameters.total


def test_words_cannot_be_timed_without_attentions(whisper: Both) -> None:
    exported = open_export(whisper[1])
    features = exported.family.inputs([square_wave(300, 0.9)])["input_features"]
    with pytest.raises(SottoError, match="gives no attentions; times of words need the checkpoint"):
        exported.model(features, decoder_input_ids=torch.tensor([[1]]), output_attentions=True)


def test_all_targets_that_are_computed_by_graphs_are_here() -> None:
    assert {case[0] for case in CASES} == {name for name, target in TARGETS.items() if not target.in_torch} - {
        "ctranslate2"  # which has a loop of its own
    }
