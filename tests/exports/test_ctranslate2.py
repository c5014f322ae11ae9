"""Exports to CTranslate2: opened by it and by faster-whisper, and held to the model that they were made of."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ctranslate2.converters.transformers import WhisperLoader
from faster_whisper import WhisperModel
from torch import nn
from transformers.models.whisper.modeling_whisper import sinusoids
from typer.testing import CliRunner

from digits import CLIPS, MODEL
from mixed_shapes import factor_at_random, mixed
from sotto.checkpoint import Recognizer, load
from sotto.cli import app
from sotto.data import Clip, DataConfig, open_data
from sotto.decoding import Decoding, Transcription
from sotto.errors import SottoError
from sotto.exports import clips_of, export, open_export
from sotto.exports.ctranslate2_folder import limits
from sotto.exports.ctranslate2_shapes import narrow_copy
from sotto.exports.record import read_record
from sotto.exports.verification import written
from sotto.families.whisper import set_window
from sotto.methods import LayerDropping, Quantization, StepContext, methods
from sotto.metrics.speed import measure_latency
from sotto.opening import cost_of
from sotto.surgery import drop_module, gather_inputs, keep_heads, layers_of, narrow_ffn
from tones import RATE, clip, square_wave, tiny_whisper, write_folder


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
    "factors": (
        factors,
        ["factors in the encoder: exact, nothing gained", "factors in the decoder: exact, nothing gained"],
    ),
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
        ["inputs heard in part: exact, nothing gained"],
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
    assert list(record.notes[:-1]) == expected
    assert record.notes[-1] == "faster-whisper pads audio to 30 s and this model hears 1 s: see docs/export.md"
    assert read_record(tmp_path / "out") == record


def test_a_model_that_would_be_taken_for_english_only_is_told_of() -> None:
    recognizer = Recognizer(*tiny_whisper())
    assert not any("language" in line for line in limits(recognizer))
    vocabulary = recognizer.processor.tokenizer.get_vocab()
    del vocabulary["<|startoflm|>"]
    recognizer.processor.tokenizer.get_vocab = lambda: vocabulary
    assert "faster-whisper leaves language and task out of the prompt: the tokenizer has no <|startoflm|>" in "".join(
        limits(recognizer)
    )
    recognizer.model.generation_config.is_multilingual = False
    assert not any("language" in line for line in limits(recognizer))


def test_all_changes_at_once(recognizer: Recognizer, clips: Path, tmp_path: Path) -> None:
    """Reduced attention too; with timestamps, and audio longer than the window."""
    model = mixed(recognizer)
    record = export(model, tmp_path / "out", to="ctranslate2", audio=clips, language="en")
    assert record.agreement.scores < 1e-5
    exported = open_export(tmp_path / "out")
    for settings in ({}, {"timestamps": True}, {"maximum_tokens": 2}):
        assert transcripts(exported, **settings) == transcripts(model, **settings)


@pytest.mark.parametrize("tokens", [8, 16])
def test_a_text_of_special_tokens_that_fills_all_positions(tokens: int, clips: Path, tmp_path: Path) -> None:
    """CTranslate2 takes those that the text begins with for the prompt."""
    model = Recognizer(*tiny_whisper(maximum_tokens=tokens))
    heard = model.family.inputs([square_wave(300, 0.6)])
    written = model.family.with_transcript(heard)["decoder_input_ids"][0].tolist()
    assert len(written) == tokens
    assert written[3:5] == [model.model.generation_config.no_timestamps_token_id] * 2
    assert export(model, tmp_path / "out", to="ctranslate2", audio=clips).agreement.scores < 1e-5


def transcripts(found: Recognizer, **settings: Any) -> list[Transcription]:
    heard = [clip("one", 0.6), clip("two", 0.8), clip("three", 2.5)]
    return list(found.family.transcribe(heard, Decoding(language="en", batch_size=2, **settings)))


def test_fewer_heads_are_not_scaled_by_what_the_converter_takes_for_granted(
    recognizer: Recognizer, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The converter itself raises nothing: the proof finds it."""
    as_few_heads_everywhere(recognizer)
    monkeypatch.setattr(
        "sotto.exports.ctranslate2_folder.spec_of",
        lambda found: WhisperLoader()(narrow_copy(found).requires_grad_(False), found.processor.tokenizer),
    )
    with pytest.raises(SottoError, match="does not compute what the model computes: its encoder's output differs by"):
        export(recognizer, tmp_path / "out", to="ctranslate2", audio=clips, language="en")
    assert list(tmp_path.iterdir()) == []


def test_what_is_kept_narrow_is_stored_narrow(recognizer: Recognizer, clips: Path, tmp_path: Path) -> None:
    def weights_of(found: Recognizer, name: str) -> int:
        export(found, tmp_path / name, to="ctranslate2", audio=clips, language="en")
        return (tmp_path / name / "model.bin").stat().st_size // 4

    narrow = recognizer.copy()
    as_few_heads_everywhere(narrow)
    narrower_networks(narrow)
    width, heads, inner = 16, 4, 24
    per_head, per_neuron = 4 * width * width // heads + 3 * width // heads, 2 * width + 1
    lost = 3 * (1 + 2 * 2) * per_head + 2 * (2 * inner - 5 - 6) * per_neuron
    assert weights_of(recognizer, "whole") - weights_of(narrow, "narrow") == lost


def test_precisions(recognizer: Recognizer, clips: Path, tmp_path: Path) -> None:
    """Also of a model whose weights Sotto stores in whole numbers."""
    step = Quantization(dynamic=False)
    methods.handler(step)(recognizer, step, StepContext(tmp_path))
    found, sizes = [], []
    for precision in ("float32", "float16", "int8"):
        folder = tmp_path / precision
        record = export(recognizer, folder, to="ctranslate2", precision=precision, audio=clips, language="en")
        found.append(record.agreement.scores)
        sizes.append(cost_of(open_export(folder), str(folder)).bytes_on_disk)
    assert found[0] < 1e-5 < found[1] < 2e-3 < found[2] < 0.2
    assert sizes[0] > 1.4 * sizes[1] > sizes[2]
    assert recognizer.structure.layer("encoder", 0).quantized  # the model itself stays as it was


def test_it_is_measured_by_its_own_decoding(recognizer: Recognizer, clips: Path, tmp_path: Path) -> None:
    export(recognizer, tmp_path / "out", to="ctranslate2", audio=clips, language="en")
    exported = open_export(tmp_path / "out")
    steps = []
    runtime = exported.model.runtime
    exported.model.runtime = Noting(runtime, steps)
    report = measure_latency(exported.model, exported.processor, square_wave(300, 0.9), tokens=9, repeats=1, batch=2)
    assert (report.tokens, report.batch) == (9, 2)
    assert steps == [[8, 8]] * 3  # after the first token of the prompt


@pytest.mark.parametrize("latest", [None, 0])
def test_the_first_timestamp_is_limited_as_the_model_limits_it(
    latest: int | None, recognizer: Recognizer, clips: Path, tmp_path: Path
) -> None:
    """None: the generation config does not name the limit."""
    if latest is None:
        del recognizer.model.generation_config.max_initial_timestamp_index
    else:
        recognizer.model.generation_config.max_initial_timestamp_index = latest
    export(recognizer, tmp_path / "out", to="ctranslate2", audio=clips, language="en")
    exported = open_export(tmp_path / "out")
    assert transcripts(exported, timestamps=True) == transcripts(recognizer, timestamps=True)


class Noting:
    """A runtime of which it is noted how many tokens it wrote."""

    def __init__(self, runtime: Any, steps: list[list[int]]) -> None:
        self.runtime, self.steps = runtime, steps

    def generate(self, *arguments: Any, **settings: Any) -> Any:
        found = self.runtime.generate(*arguments, **settings)
        self.steps.append([len(each.sequences_ids[0]) for each in found])
        return found


def test_what_ctranslate2_cannot_do_is_said(recognizer: Recognizer, clips: Path, tmp_path: Path) -> None:
    export(recognizer, tmp_path / "known", to="ctranslate2", audio=clips, language="en")
    exported = open_export(tmp_path / "known")
    features = exported.family.inputs([square_wave(300, 0.9)])["input_features"]
    with pytest.raises(SottoError, match="gives no attentions; times of words need the checkpoint"):
        exported.model(features, output_attentions=True)
    recognizer.model.generation_config.no_timestamps_token_id = None
    with pytest.raises(SottoError, match="needs no_timestamps_token_id in the generation config; take over"):
        export(recognizer, tmp_path / "out", to="ctranslate2", audio=clips, language="en")
    assert [path.name for path in tmp_path.iterdir()] == ["known"]


class OwnWindow(WhisperModel):
    """faster-whisper for a model with a window of its own, as in docs/export.md."""

    def encode(self, features: Any) -> Any:
        return super().encode(features[..., : self.feature_extractor.nb_max_frames])


def heard_by(client: WhisperModel, heard: Clip, seconds: float) -> str:
    """Silence up to the window is audio: faster-whisper would put zeros in the place of its features."""
    audio = np.pad(heard.audio, (0, round(seconds * RATE) - len(heard.audio)))
    segments, _ = client.transcribe(
        audio,
        language="en",
        beam_size=1,
        temperature=0.0,
        without_timestamps=True,
        condition_on_previous_text=False,
        max_new_tokens=50,
    )
    return "".join(segment.text for segment in segments).strip()


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_faster_whisper_writes_what_the_checkpoint_writes(precision: str, tmp_path: Path) -> None:
    """A trained model, narrowed."""
    model = load(MODEL, device="cpu")
    for stack, index in list(layers_of(model.model)):
        narrow_ffn(model.model, stack, index, stack.feed_forwards[0], range(index, 560))
        keep_heads(model.model, stack, index, stack.attentions[0], [0, 1] if index else [0, 2])
    heard = list(open_data(DataConfig(str(CLIPS / "test"), samples=4), sampling_rate=RATE))
    expected = [found.text for found in model.family.transcribe(heard, Decoding())]
    assert len(set(expected)) == 4
    export(model, tmp_path / "out", to="ctranslate2", precision=precision)
    client = OwnWindow(str(tmp_path / "out"), device="cpu", cpu_threads=1)
    written = [heard_by(client, each, model.window_seconds) for each in heard]
    equal = sum(after == before for after, before in zip(written, expected, strict=True))
    assert equal == len(heard) if precision == "float32" else equal >= len(heard) - 1


def test_faster_whisper_takes_a_model_of_the_published_window_as_it_is(tmp_path: Path) -> None:
    """The trained model with positions for 30 s, with which it still hears something."""
    model = load(MODEL, device="cpu")
    encoder = model.model.get_encoder()
    longer = sinusoids(1500, model.model.config.d_model)
    torch.testing.assert_close(longer[:300], encoder.embed_positions.weight.detach(), atol=1e-3, rtol=0)
    encoder.embed_positions = nn.Embedding.from_pretrained(longer)
    set_window(model.model.config, model.processor.feature_extractor, 30)
    heard = list(open_data(DataConfig(str(CLIPS / "test"), samples=3), sampling_rate=RATE))
    expected = [found.text for found in model.family.transcribe(heard, Decoding())]
    assert len(set(expected)) == 3
    assert export(model, tmp_path / "out", to="ctranslate2").notes == ()
    client = WhisperModel(str(tmp_path / "out"), device="cpu", cpu_threads=1)
    assert [heard_by(client, each, 30.0) for each in heard] == expected


def test_it_detects_the_language_that_the_model_detects(recognizer: Recognizer, clips: Path, tmp_path: Path) -> None:
    export(recognizer, tmp_path / "out", to="ctranslate2", audio=clips)
    features = recognizer.family.inputs([square_wave(pitch, 0.9) for pitch in range(100, 4000, 300)])["input_features"]
    expected = recognizer.model.detect_language(features)
    exported = open_export(tmp_path / "out").model
    assert len(set(expected.tolist())) == 2
    torch.testing.assert_close(exported.detect_language(features), expected)


def test_transcripts_are_compared_in_the_language_that_is_told(
    recognizer: Recognizer, clips: Path, tmp_path: Path
) -> None:
    texts = []
    for language in ("en", "hi"):
        record = export(recognizer, tmp_path / "out", to="ctranslate2", audio=clips, language=language)
        assert record.agreement.transcripts == 0
        texts.append(written(recognizer, clips_of(clips, recognizer, 4), language))
    assert texts[0] != texts[1]  # one of which a detected language would not have given


def test_the_command_says_what_is_to_be_known(tmp_path: Path) -> None:
    arguments = ["export", str(MODEL), "--to", "ctranslate2", "-o", str(tmp_path / "out")]
    said = CliRunner().invoke(app, arguments).stdout.splitlines()
    assert said[0] == "faster-whisper pads audio to 30 s and this model hears 6 s: see docs/export.md"
    assert said[1].startswith("the encoder's output differs by ")
    assert "scores differ by " in said[1]
