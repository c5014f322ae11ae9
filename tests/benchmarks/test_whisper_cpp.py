"""A file of whisper.cpp as whisper.cpp itself reads it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import runtime_pipelines
import whisper_cpp
from sotto.checkpoint import Recognizer
from sotto.data import Clip, DataConfig
from sotto.measurement import measure_cost
from sotto.side_by_side import Timing, audio_for, latency_of
from tones import tiny_whisper

SIZES = {"d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "window_seconds": 2.0, "maximum_tokens": 16}


@pytest.fixture
def model() -> Recognizer:
    """Weights are large enough for every part to be heard."""
    found, generator = Recognizer(*tiny_whisper(**SIZES)), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in found.model.named_parameters():
            if "embed_positions" not in name and "layer_norm" not in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return found


def test_blocks_are_a_scale_and_codes() -> None:
    row = np.linspace(-2.54, 2.0, 64, dtype=np.float32)[None]
    written = np.frombuffer(whisper_cpp.blocks(row), dtype=np.dtype([("scale", "<f2"), ("codes", "i1", 32)]))
    assert len(written) == 2
    found = (written["scale"].astype(np.float32)[:, None] * written["codes"]).ravel()
    np.testing.assert_allclose(found, row[0], atol=0.5 * 2.54 / 127 + 1e-3)
    assert written["codes"][0, 0] == -127


def test_whisper_cpp_computes_what_the_model_computes(model: Recognizer, tmp_path: Path) -> None:
    runtime = pytest.importorskip("_pywhispercpp")
    path = whisper_cpp.write_ggml(model, tmp_path / "model.bin")
    settings = runtime.whisper_context_default_params()
    settings.flash_attn = False  # which attends to what fills a window up to 256 positions, too
    context = runtime.whisper_init_from_file_with_params(str(path), settings)
    audio, tokens = audio_for(Timing(), 16_000, model.window_seconds), [3, 70, 200, 11, 5, 260]
    runtime.whisper_pcm_to_mel(context, audio, len(audio), 1)
    runtime.whisper_encode(context, 0, 1)
    found = []
    for position, token in enumerate(tokens):
        runtime.whisper_decode(context, token, 1, position, 1)
        found.append(runtime.whisper_get_logits(context))  # of the first entry of the vocabulary
    inputs = model.family.inputs([audio])["input_features"]
    with torch.no_grad():
        logits = model.model(input_features=inputs, decoder_input_ids=torch.tensor([tokens])).logits[0]
    torch.testing.assert_close(torch.tensor(found), logits[:, 0], atol=0.1 * float(logits.std()), rtol=0)


def test_a_visit_tells_times_and_bytes(model: Recognizer, tmp_path: Path) -> None:
    pytest.importorskip("_pywhispercpp")
    path = whisper_cpp.write_ggml(model, tmp_path / "model.bin")
    dense = measure_cost(model, "dense")
    found = whisper_cpp.visit(str(path), Timing(1, 1, 1, tokens=4), dense)
    assert found.bytes_on_disk == path.stat().st_size
    assert found.encoder_flops == dense.encoder_flops
    timing = latency_of(found)
    assert timing.tokens == 4
    assert timing.total == pytest.approx(timing.features + timing.encoder + timing.decoder)


def pipeline_of(way: str, model: Recognizer, folder: Path) -> runtime_pipelines.Pipeline:
    path = whisper_cpp.write_ggml(model, folder / "whisper.cpp-q8_0")
    model.save(folder / "torch-float32")
    hearing = runtime_pipelines.Hearing(DataConfig("clips"), "en", "basic", 1)
    return runtime_pipelines.PIPELINES[way](path, "q8_0", hearing)


def test_clips_go_through_whisper_cpp_as_far_as_their_words(
    model: Recognizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("_pywhispercpp")
    steps: list[int] = []
    timed = whisper_cpp.timed_pass

    def counted(runtime: Any, context: Any, audio: Any, tokens: int, *settings: Any) -> tuple[float, float, float]:
        steps.append(tokens)
        return timed(runtime, context, audio, tokens, *settings)

    monkeypatch.setattr(whisper_cpp, "timed_pass", counted)
    pipeline = pipeline_of("whisper.cpp", model, tmp_path)
    clips = [
        Clip("one", np.zeros(8_000, np.float32), 16_000, "AB, a"),
        Clip("two", np.zeros(8_000, np.float32), 16_000),
    ]
    assert pipeline(clips) == []
    spoken = model.processor.tokenizer("ab a", add_special_tokens=False)["input_ids"]
    assert steps == [len(spoken) + 1, 1]


def test_in_fitted_windows_it_hears_as_much_as_a_clip_is_long(
    model: Recognizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The window is two seconds, a hundred positions."""
    pytest.importorskip("_pywhispercpp")
    asked: list[int] = []
    monkeypatch.setattr(whisper_cpp, "hear_at_most", lambda *found: asked.append(found[-1]))
    pipeline = pipeline_of("audio_ctx", model, tmp_path)
    clips = [Clip(str(samples), np.zeros(samples, np.float32), 16_000) for samples in (8_100, 48_000)]
    assert pipeline(clips) == []
    assert asked == [26, 100]


def test_of_what_is_left_out_the_model_hears_nothing(model: Recognizer, tmp_path: Path) -> None:
    runtime = pytest.importorskip("_pywhispercpp")
    path = whisper_cpp.write_ggml(model, tmp_path / "model.bin")
    context = runtime.whisper_init_from_file_with_params(str(path), runtime.whisper_context_default_params())
    audio = audio_for(Timing(), 16_000, model.window_seconds)
    quieter = np.concatenate([audio[: len(audio) * 3 // 4], 0.5 * audio[len(audio) * 3 // 4 :]])

    def heard(samples: Any) -> float:
        whisper_cpp.timed_pass(runtime, context, samples, 1, 1)
        return float(runtime.whisper_get_logits(context))

    assert heard(audio) != heard(quieter)
    whisper_cpp.hear_at_most(runtime, context, 50)  # after features were taken
    fitted = heard(audio)
    assert heard(quieter) == pytest.approx(fitted, abs=1e-6)
    whisper_cpp.hear_at_most(runtime, context, 0)
    assert heard(audio) != pytest.approx(fitted, abs=1e-6)
