"""Exports to OpenVINO: opened by OpenVINO and by openvino-genai, and held to the model that they were made of."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import openvino
import pytest
import torch
from openvino_genai import WhisperPipeline
from typer.testing import CliRunner

from digits import CLIPS, MODEL, with_layers_of_different_shapes
from mixed_shapes import mixed
from recognizers import recognizer as of_architecture
from sotto.checkpoint import Recognizer, load
from sotto.cli import app
from sotto.data import Clip, DataConfig, open_data
from sotto.decoding import Decoding, Segment
from sotto.errors import SottoError
from sotto.exports import export
from sotto.exports.openvino_folder import EXPANDED
from sotto.exports.openvino_pipeline import GenaiPipeline, segments_of
from sotto.exports.openvino_precision import in_precision
from sotto.exports.signal_stack import signal_stack_kept
from sotto.opening import open_model
from tones import RATE, tiny_whisper, write_folder

CONFORMER = Path(__file__).parents[2] / "benchmarks" / "reference" / "conformer-english"
Both = tuple[Recognizer, Path]
"""A model, and the folder it was exported to."""


@pytest.fixture
def whisper(exported_by: Callable[[Any], Both]) -> Both:
    return exported_by(("openvino", "whisper", "mixed"))


def test_the_decoder_is_one_that_openvino_genai_takes(whisper: Both) -> None:
    """Its states: keys and values of both attentions, but for the audio where the first layer's was taken out."""
    decoder = openvino.Core().read_model(whisper[1] / "openvino_decoder_model.xml")
    assert {port.get_any_name() for port in decoder.inputs} == {"input_ids", "encoder_hidden_states", "beam_idx"}
    assert [port.get_any_name() for port in decoder.outputs] == ["logits"]
    with signal_stack_kept():
        request = openvino.Core().compile_model(decoder, "CPU").create_infer_request()
    kept = {f"{layer}.decoder.{part}" for layer in (0, 1) for part in ("key", "value")}
    assert {state.name for state in request.query_state()} == kept | {"1.encoder.key", "1.encoder.value"}


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8", "int8-calibrated"])
def test_openvino_genai_writes_what_a_trained_whisper_writes(precision: str, tmp_path: Path) -> None:
    """Greedily, with timestamps, and audio longer than the model's window, which is six seconds."""
    model = load(MODEL, device="cpu")
    folder = tmp_path / "out"
    record = export(model, folder, to="openvino", precision=precision, audio=CLIPS / "calibration")
    assert (record.agreement.scores < 1e-5) == (precision == "float32")
    with signal_stack_kept():
        client = WhisperPipeline(folder, "CPU", INFERENCE_PRECISION_HINT="f32")
    clips = list(open_data(DataConfig(str(CLIPS / "test"), samples=4), sampling_rate=RATE))
    expected = [found.text for found in model.family.transcribe(clips, Decoding())]
    assert GenaiPipeline(folder, {}).write(model.family, clips[0].audio, 30) == 30
    assert GenaiPipeline(folder, {}).write(model.family, clips[0].audio[:80], 3) == 3
    assert record.notes == ()
    equal = sum(heard(client, clip.audio)[0] == text for clip, text in zip(clips, expected, strict=True))
    assert equal == len(clips) if precision == "float32" else equal >= len(clips) - 1
    if precision == "float32":
        joined = np.concatenate([clip.audio for clip in clips])
        (found,) = model.family.transcribe([Clip("joined", joined, RATE, "", "")], Decoding(timestamps=True))
        assert joined.size > model.family.window_seconds * RATE
        text, segments = heard(client, joined, return_timestamps=True)
        assert text == found.text
        expected_times = [(each.start, each.end) for each in found.segments]
        within = np.minimum(segments, joined.size / RATE)  # the last one of openvino-genai lasts into the padding
        np.testing.assert_allclose(within, expected_times, atol=0.05)
    largest = {"float32": 4.01, "bfloat16": 2.01, "int8": 1.1, "int8-calibrated": 1.15}[precision]
    weights = sum(path.stat().st_size for path in folder.glob("openvino_*coder_model.bin"))
    assert weights < largest * model.model.num_parameters()


@pytest.mark.parametrize("precision", ["float32", "int8-calibrated"])
def test_openvino_genai_writes_what_a_whisper_with_layers_of_different_shapes_writes(
    precision: str, tmp_path: Path
) -> None:
    model = with_layers_of_different_shapes()
    export(model, tmp_path / "out", to="openvino", precision=precision, audio=CLIPS / "calibration")
    with signal_stack_kept():
        client = WhisperPipeline(tmp_path / "out", "CPU", INFERENCE_PRECISION_HINT="f32")
    clips = list(open_data(DataConfig(str(CLIPS / "test"), samples=4), sampling_rate=RATE))
    expected = [found.text for found in model.family.transcribe(clips, Decoding())]
    assert len(set(expected)) == len(clips)
    equal = sum(heard(client, clip.audio)[0] == text for clip, text in zip(clips, expected, strict=True))
    assert equal >= len(clips) - (precision != "float32")


def test_a_trained_conformer_is_calibrated(tmp_path: Path) -> None:
    model = load(CONFORMER, device="cpu")
    record = export(model, tmp_path / "out", to="openvino", precision="int8-calibrated", audio=CLIPS / "calibration")
    assert record.before_rounding is not None
    assert record.before_rounding.scores < 1e-5 < record.agreement.scores
    assert (tmp_path / "out" / "openvino_model.bin").stat().st_size < 1.1 * model.model.num_parameters()
    clips = list(open_data(DataConfig(str(CLIPS / "test"), samples=8), sampling_rate=RATE))
    expected, found = (
        [each.text for each in heard_by.family.transcribe(clips, Decoding())]
        for heard_by in (model, open_model(tmp_path / "out"))
    )
    assert 0 < jiwer.cer(expected, found) < 0.2


@pytest.mark.parametrize(
    ("architecture", "precision"), [("wav2vec2_conformer_rotary", "int8-calibrated"), ("parakeet", "bfloat16")]
)
def test_a_conformer_of_every_shape_is_rounded(architecture: str, precision: str, tmp_path: Path) -> None:
    found = mixed(of_architecture(architecture))
    audio = write_folder(tmp_path / "clips", ["one", "two", "three"], [0.6, 0.75, 0.9])
    record = export(found, tmp_path / "out", to="openvino", precision=precision, audio=audio)
    assert record.before_rounding is not None
    assert record.before_rounding.scores < 1e-5
    assert record.agreement.scores > 1e-4


def heard(client: WhisperPipeline, audio: Any, **settings: Any) -> tuple[str, Any]:
    found = client.generate(audio.tolist(), language="<|en|>", task="transcribe", **settings)
    times = [(chunk.start_ts, chunk.end_ts) for chunk in found.chunks or ()]
    return found.texts[0].strip(), times


def test_short_clips_go_in_batches_and_what_is_alone_through_openvino_genai(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clips of 1 to 3 s; the window is six seconds."""
    export(MODEL, tmp_path / "out", to="openvino", audio=CLIPS / "calibration")
    clips = list(open_data(DataConfig(str(CLIPS / "test"), samples=5), sampling_rate=RATE))
    long = Clip("long", np.concatenate([clip.audio for clip in clips]), RATE, "", "")
    taken: list[str] = []
    transcription = GenaiPipeline.transcription

    def noted(self: GenaiPipeline, family: Any, clip: Clip, *settings: Any) -> Any:
        taken.append(clip.name)
        return transcription(self, family, clip, *settings)

    monkeypatch.setattr(GenaiPipeline, "transcription", noted)
    family = open_model(tmp_path / "out").family
    one_by_one = [found.text for found in family.transcribe(clips, Decoding(batch_size=1))]
    assert taken == [clip.name for clip in clips]
    taken.clear()
    found = list(family.transcribe([*clips[:4], long, clips[4]], Decoding(batch_size=3)))
    assert [each.text for each in found if each.name != "long"] == one_by_one
    assert taken == [clips[3].name, "long", clips[4].name]


def test_openvino_genai_tells_the_times_of_words(tmp_path: Path) -> None:
    """One is said after 0.6 s, nine after 1.2 s; the first word lasts from the window's start, as in Whisper."""
    export(MODEL, tmp_path / "out", to="openvino", audio=CLIPS / "calibration")
    clips = open_data(DataConfig(str(CLIPS / "test")), sampling_rate=RATE)
    clip = next(clip for clip in clips if clip.text == "one nine")
    with signal_stack_kept():
        client = WhisperPipeline(tmp_path / "out", "CPU", INFERENCE_PRECISION_HINT="f32", word_timestamps=True)
    words = client.generate(clip.audio, word_timestamps=True).words
    assert [each.word for each in words] == [" one", " nine"]
    assert [words[0].start_ts, words[0].end_ts, words[1].start_ts] == pytest.approx([0.0, 1.2, 1.2], abs=0.1)
    assert words[1].start_ts < words[1].end_ts <= clip.seconds


def test_where_a_layer_does_not_hear_audio_times_of_words_are_refused(whisper: Both) -> None:
    decoder = openvino.Core().read_model(whisper[1] / "openvino_decoder_model.xml")
    assert not any("encoder_attn" in node.get_friendly_name() for node in decoder.get_ops())
    with signal_stack_kept():
        client = WhisperPipeline(whisper[1], "CPU", word_timestamps=True)
    with pytest.raises(RuntimeError, match="cross_attention_qk_scaled_scores"):
        client.generate(np.zeros(RATE, np.float32), word_timestamps=True)


def test_a_damaged_tokenizer_is_said(whisper: Both, tmp_path: Path) -> None:
    folder = shutil.copytree(whisper[1], tmp_path / "damaged")
    (folder / "openvino_tokenizer.xml").write_text("no model")
    found = open_model(folder)
    with pytest.raises(SottoError, match=r"damaged: cannot be opened \(.*\); export the model again"):
        list(found.family.transcribe([Clip("one", np.zeros(RATE, np.float32), RATE, "", "")], Decoding()))


@pytest.mark.parametrize(("precision", "most"), [("float16", 2e-2), ("bfloat16", 5e-2)])
def test_half_precision_takes_half(precision: str, most: float, tmp_path: Path) -> None:
    found = Recognizer(*tiny_whisper(d_model=64, attention_heads=2))
    audio = write_folder(tmp_path / "clips", ["one", "two"], [0.6, 0.75])
    sizes = []
    for each in ("float32", precision):
        record = export(found, tmp_path / each, to="openvino", precision=each, audio=audio)
        sizes.append((tmp_path / each / "openvino_decoder_model.bin").stat().st_size)
    assert 1e-6 < record.agreement.scores < most
    assert sizes[1] / sizes[0] == pytest.approx(0.5, abs=0.01)


def test_what_is_stored_in_bfloat16_is_the_nearest_number_of_that_kind() -> None:
    values = np.array([[1.5, 2.7, -np.inf], [-3e38, 1e-30, -3.4e38]], np.float32)
    inputs = openvino.opset13.parameter([2, 3], np.float32)
    model = openvino.Model([openvino.opset13.add(inputs, openvino.opset13.constant(values))], [inputs])
    found = in_precision(model, "bfloat16", ())
    kinds = [node.get_element_type() for node in found.get_ordered_ops() if node.get_type_name() == "Constant"]
    assert kinds == [openvino.Type.bf16]
    with signal_stack_kept():
        compiled = openvino.Core().compile_model(found, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        sums = compiled([np.zeros((2, 3), np.float32)])[0]
    expected = torch.from_numpy(values).bfloat16().float()
    assert expected[1, 2].isinf()
    expected[1, 2] = torch.finfo(torch.bfloat16).min
    np.testing.assert_array_equal(sums, expected)


def test_every_shape_can_be_calibrated(tmp_path: Path) -> None:
    """Attention in the reduced dimension too, which the model itself keeps."""
    found = mixed(Recognizer(*tiny_whisper(encoder_layers=2, decoder_layers=2)))
    before = found.structure
    audio = write_folder(tmp_path / "clips", ["one", "two", "three"], [0.6, 0.75, 0.9])
    record = export(found, tmp_path / "out", to="openvino", precision="int8-calibrated", audio=audio)
    assert 1e-4 < record.agreement.scores < 0.1
    assert record.notes == (EXPANDED,)
    assert found.structure == before


def test_nncf_says_after_it_what_it_said_before(monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger("nncf")
    monkeypatch.setattr(logger, "level", logging.WARNING)
    heard = openvino.opset13.parameter([1, 2])
    in_precision(openvino.Model([openvino.opset13.relu(heard)], [heard], "rectifier"), "float32", ())
    assert logger.level == logging.WARNING


def test_chunks_that_were_never_closed_last_until_their_window_ends() -> None:
    chunks = [
        (0.5, -1.0, "all of one"),
        (6.4, 9.0, "closed"),
        (9.2, -1.0, "open"),
        (15.0, 15.5, ""),
        (16.0, 16.5, "late"),
    ]
    assert list(segments_of(chunks, window=6.0, seconds=15.2)) == [
        Segment(0.5, 6.0, "all of one"),
        Segment(6.4, 9.0, "closed"),
        Segment(9.2, 15.0, "open"),
    ]


def test_a_clip_of_some_samples_is_heard(whisper: Both) -> None:
    clip = Clip("short", np.full(80, 0.1, np.float32), RATE, "", "")
    before, after = (
        each.family.transcribe([clip], Decoding(timestamps=True)) for each in (whisper[0], open_model(whisper[1]))
    )
    assert list(after) == list(before)


@pytest.fixture
def checkpoint(whisper: Both, tmp_path: Path) -> Path:
    return whisper[0].save(tmp_path / "checkpoint")


def said(*arguments: object) -> str:
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert done.exit_code == 0, done.output
    return done.stdout


def test_errors_stand_beside_the_runtime_and_its_batch(whisper: Both, checkpoint: Path, tmp_path: Path) -> None:
    clips, numbers = whisper[1].parent / "clips", tmp_path / "numbers.json"
    for beams in (1, 2):
        said("evaluate", whisper[1], clips, "--against", checkpoint, "--beams", beams, "--json", numbers)
        models = json.loads(numbers.read_text())["models"]
        settings = f"{'greedy' if beams == 1 else '2 beams'}, language automatic, no timestamps"
        assert [each["decoding"] for each in models.values()] == [
            f"openvino float32, {settings}, batch 8",
            f"torch, {settings}, batch 8",
        ]
        assert len({each["wer"] for each in models.values()}) == 1


def test_an_export_is_transcribed_with_and_measured_by_the_commands(
    whisper: Both, checkpoint: Path, tmp_path: Path
) -> None:
    clips, numbers = whisper[1].parent / "clips", tmp_path / "numbers.json"
    assert said("transcribe", whisper[1], clips) == said("transcribe", checkpoint, clips)
    said("benchmark", checkpoint, whisper[1], "--rounds", 1, "--repeats", 1, "--json", numbers)
    rows = json.loads(numbers.read_text())["models"]
    assert [row["numbers"]["latency"]["device"] for row in rows] == ["cpu", "cpu"]
    assert rows[0]["numbers"]["pipeline_seconds"] is None
    assert rows[1]["numbers"]["pipeline_seconds"] > 0
    assert rows[1]["flops_ratio"] == 1.0
    assert rows[1]["encoder_speedup"] > 0
