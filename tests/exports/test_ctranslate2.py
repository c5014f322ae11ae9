"""Exports to CTranslate2: opened by it and by faster-whisper, and held to the model that they were made of."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ctranslate2.converters.transformers import WhisperLoader
from faster_whisper import WhisperModel

from digits import CLIPS, MODEL
from mixed_shapes import factor_at_random, mixed
from recognizers import recognizer as of_architecture
from sotto.checkpoint import Recognizer, load
from sotto.data import Clip, DataConfig, open_data
from sotto.decoding import Decoding, Transcription
from sotto.errors import SottoError
from sotto.exports import export, open_export
from sotto.exports.ctranslate2_shapes import narrow_copy
from sotto.exports.record import read_record
from sotto.methods import LayerDropping, Quantization, StepContext, methods
from sotto.metrics.speed import measure_latency
from sotto.new_models.whisper import NewWhisper, new_model, new_processor
from sotto.opening import cost_of
from sotto.surgery import drop_module, gather_inputs, keep_heads, layers_of, narrow_ffn
from tones import RATE, clip, square_wave, write_folder


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data") / "clips", ["one", "two", "three"], [0.6, 0.75, 0.9])


def narrower_networks(found: Recognizer) -> None:
    for stack, index in list(layers_of(found.model)):
        if index < 2:
            narrow_ffn(found.model, stack, index, stack.feed_forwards[0], range(1, 6 + index))


def fewer_layers(found: Recognizer) -> None:
    step = LayerDropping(encoder=2, decoder=1)
    methods.handler(step)(found, step, StepContext(Path()))


def as_few_heads_everywhere(found: Recognizer) -> None:
    for stack, index in list(layers_of(found.model)):
        for attention in stack.attentions:
            keep_heads(found.model, stack, index, attention, [0, 2, 3] if stack.name == "encoder" else [1, 2])


def other_heads_in_each_layer(found: Recognizer) -> None:
    kept = {("encoder", 0): [3], ("encoder", 1): [0, 2], ("encoder", 2): [1, 2, 3], ("decoder", 1): [2]}
    for stack, index in list(layers_of(found.model)):
        if (stack.name, index) in kept:
            keep_heads(found.model, stack, index, stack.attentions[-1], kept[stack.name, index])


def factors(found: Recognizer) -> None:
    for stack, index in list(layers_of(found.model)):
        for linear in ("self_attn.q_proj", "fc1"):
            factor_at_random(found, stack, index, linear)


def absent_modules(found: Recognizer) -> None:
    encoder, decoder = found.architecture.stacks
    drop_module(found.model, encoder, 0, encoder.attentions[0])
    drop_module(found.model, encoder, 1, encoder.feed_forwards[0])
    drop_module(found.model, decoder, 1, decoder.attentions[1])


def inputs_in_part(found: Recognizer) -> None:
    gather_inputs(found.model, found.architecture.stack("decoder"), 0, "fc1", range(2, 9))


CHANGES: dict[str, tuple[Callable[[Recognizer], Any], list[str]]] = {
    "dense": (lambda found: None, []),
    "networks": (
        narrower_networks,
        [
            "encoder: narrower feed-forward networks: 2; smaller and faster",
            "decoder: narrower feed-forward networks: 2; smaller and faster",
        ],
    ),
    "layers": (
        fewer_layers,
        ["encoder: 2 of 3 layers: smaller and faster", "decoder: 1 of 3 layers: smaller and faster"],
    ),
    "heads": (
        as_few_heads_everywhere,
        [
            "encoder: attention has 3 of 4 heads: smaller and faster",
            "decoder: attention has 2 of 4 heads: smaller and faster",
        ],
    ),
    "other heads": (
        other_heads_in_each_layer,
        [
            "encoder: attention has 3 of 4 heads: smaller and faster",
            "encoder: attentions with fewer than 3 heads, and zeros for the rest: 2; nothing gained",
            "decoder: attentions with fewer than 4 heads, and zeros for the rest: 1; nothing gained",
        ],
    ),
    "factors": (factors, ["linears with factors, which are multiplied out: 12; nothing gained"]),
    "absent": (
        absent_modules,
        [
            "encoder: attentions with fewer than 4 heads, and zeros for the rest: 1; nothing gained",
            "encoder: narrower feed-forward networks: 1; smaller and faster",
            "decoder: attentions with fewer than 4 heads, and zeros for the rest: 1; nothing gained",
        ],
    ),
    "inputs": (
        inputs_in_part,
        ["linears that hear a part of their inputs, and zeros for the rest: 1; nothing gained"],
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_shape_is_computed_exactly_and_said(
    change: str, recognizer: Recognizer, clips: Path, tmp_path: Path
) -> None:
    make, expected = CHANGES[change]
    make(recognizer)
    record = export(recognizer, tmp_path / "out", to="ctranslate2", audio=clips, language="en")
    assert record.agreement.scores < 1e-5
    assert (record.agreement.decisions, record.agreement.transcripts) == (0, 0)
    assert list(record.notes[:-2]) == expected
    assert read_record(tmp_path / "out") == record
