"""Clips through Sotto, one by one and in batches, and one by one through what else users of a runtime run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer

import whisper_cpp
from runtime_rows import PLAIN
from sotto.checkpoint import DTYPES
from sotto.data import Clip, DataConfig, open_data
from sotto.decoding import Decoding
from sotto.exports.signal_stack import signal_stack_kept
from sotto.metrics.errors import ErrorReport, measure_errors
from sotto.opening import open_model
from sotto.text import get_normalizer

RATE = 16_000
TOKENS = 128  # at most, of a window: a model that loops is to do so for the same time everywhere

BATCH = 16
AUDIO_CTX = "audio_ctx"  # whisper.cpp's name for how much of a window is heard
POSITIONS_A_SECOND = 50  # of Whisper's encoder

Pipeline = Callable[[Sequence[Clip]], list[str]]
"""Gives what it wrote; nothing where it was told what to write."""


@dataclass(frozen=True)
class Heard:
    """One pass over all clips: how long it took, how long the clips are, and the errors of what was written.

    `first_seconds` are those of the pass before it: some runtimes prepare themselves for every new shape of a batch.
    """

    seconds: float
    first_seconds: float
    audio_seconds: float
    errors: ErrorReport | None

    @property
    def real_time_factor(self) -> float:
        return self.audio_seconds / self.seconds


@dataclass(frozen=True)
class Hearing:
    """What is heard, and how."""

    data: DataConfig
    language: str
    normalizer: str
    threads: int

    @property
    def decoding(self) -> Decoding:
        return Decoding(language=self.language, batch_size=1, maximum_tokens=TOKENS)


def hear(by: str, precision: str, place: str, hearing: Hearing) -> Heard:
    """All clips through one of `PIPELINES`, twice, after the first ones to warm up; in its own process."""
    torch.set_num_threads(hearing.threads)
    clips = list(open_data(hearing.data, sampling_rate=RATE))
    pipeline = PIPELINES[by](Path(place), precision, hearing)
    pipeline(clips[:BATCH])
    first_seconds, _ = timed_pass(pipeline, clips)
    seconds, texts = timed_pass(pipeline, clips)
    names, references = [clip.name for clip in clips], [clip.text or "" for clip in clips]
    normalizer = get_normalizer(hearing.normalizer, hearing.language)
    errors = measure_errors(names, references, texts, normalizer) if texts else None
    return Heard(seconds, first_seconds, sum(clip.seconds for clip in clips), errors)


def timed_pass(pipeline: Pipeline, clips: Sequence[Clip]) -> tuple[float, list[str]]:
    start = time.perf_counter()
    texts = pipeline(clips)
    return time.perf_counter() - start, texts


def sotto_pipeline(place: Path, precision: str, hearing: Hearing) -> Pipeline:
    """`precision` of a checkpoint; an export's folder has its own, and takes float32."""
    return opened(place, precision, hearing.decoding)


def batch_pipeline(place: Path, precision: str, hearing: Hearing) -> Pipeline:
    return opened(place, precision, replace(hearing.decoding, batch_size=BATCH))


def opened(place: Path, precision: str, decoding: Decoding) -> Pipeline:
    recognizer = open_model(place, device="cpu", dtype=DTYPES[precision])
    return lambda clips: [found.text for found in recognizer.family.transcribe(clips, decoding)]


def openvino_pipeline(place: Path, precision: str, hearing: Hearing) -> Pipeline:
    """OpenVINO takes a precision of its own but where float32 is asked for, as when Sotto opens it."""
    import openvino_genai

    from sotto.exports.openvino_models import settings_of

    with signal_stack_kept():
        client = openvino_genai.WhisperPipeline(place, "CPU", **settings_of(precision == "float32"))
    asked = {"language": f"<|{hearing.language}|>", "task": "transcribe", "max_new_tokens": TOKENS}

    def heard(clip: Clip) -> str:
        return str(client.generate(clip.audio, **asked)).strip()

    return lambda clips: [heard(clip) for clip in clips]


def faster_whisper_pipeline(place: Path, precision: str, hearing: Hearing) -> Pipeline:
    """Clips are padded with silence to the model's window, which may be shorter than 30 s: see docs/export.md."""
    from faster_whisper import WhisperModel

    class OwnWindow(WhisperModel):  # type: ignore[misc]
        def encode(self, features: Any) -> Any:
            return super().encode(features[..., : self.feature_extractor.nb_max_frames])

    client = OwnWindow(str(place), device="cpu", compute_type=precision, cpu_threads=hearing.threads)

    def heard(clip: Clip) -> str:
        audio = np.pad(clip.audio, (0, max(0, client.feature_extractor.n_samples - len(clip.audio))))
        segments, _ = client.transcribe(
            audio,
            language=hearing.language,
            beam_size=1,
            temperature=0.0,
            without_timestamps=True,
            condition_on_previous_text=False,
            max_new_tokens=TOKENS,
        )
        return "".join(segment.text for segment in segments).strip()

    return lambda clips: [heard(clip) for clip in clips]


def sherpa_pipeline(place: Path, precision: str, hearing: Hearing) -> Pipeline:
    """With the 5 ms of silence in front that docs/export.md tells of. It cuts off what is longer than the window, and
    stops after six tokens a second, so that a model that loops does so for a shorter time than elsewhere."""
    import sherpa_onnx

    suffix = ".int8.onnx" if precision == "int8" else ".onnx"
    client = sherpa_onnx.OfflineRecognizer.from_whisper(
        str(place / f"encoder{suffix}"),
        str(place / f"decoder{suffix}"),
        str(place / "tokens.txt"),
        language=hearing.language,
        num_threads=hearing.threads,
    )
    lead = np.zeros(RATE // 200, np.float32)

    def heard(clip: Clip) -> str:
        stream = client.create_stream()
        stream.accept_waveform(RATE, np.concatenate([lead, clip.audio]))
        client.decode_stream(stream)
        return str(stream.result.text).strip()

    return lambda clips: [heard(clip) for clip in clips]


def whisper_cpp_pipeline(place: Path, precision: str, hearing: Hearing, fitted: bool = False) -> Pipeline:
    """Features, encoder, and a step of the decoder for the prompt and for every token of what is said in the clip.

    whisper.cpp takes its special tokens from the size of the vocabulary and knows those of the published models, so
    that it cannot be left to write by itself. What it takes to choose a token is not in the time. Words are those of
    the transcript as they are counted; of a clip that is longer than the window the first one is heard. Where windows
    are `fitted`, the encoder hears as much as the clip is long (whisper.cpp's `audio_ctx`).
    """
    import _pywhispercpp as runtime

    context = runtime.whisper_init_from_file_with_params(str(place), runtime.whisper_context_default_params())
    tokenizer = AutoTokenizer.from_pretrained(place.parent / PLAIN.name)
    normalizer = get_normalizer(hearing.normalizer, hearing.language)
    most = runtime.whisper_n_audio_ctx(context)

    def told(clips: Sequence[Clip]) -> list[str]:
        for clip in clips:
            tokens = tokenizer(normalizer(clip.text or ""), add_special_tokens=False)["input_ids"]
            steps = min(len(tokens), TOKENS) + 1
            positions = min(most, math.ceil(clip.seconds * POSITIONS_A_SECOND)) if fitted else None
            whisper_cpp.timed_pass(runtime, context, clip.audio, steps, hearing.threads, positions)
        return []

    return told


PIPELINES: dict[str, Callable[[Path, str, Hearing], Pipeline]] = {
    "sotto": sotto_pipeline,
    "batches": batch_pipeline,
    "openvino": openvino_pipeline,
    "sherpa-onnx": sherpa_pipeline,
    "ctranslate2": faster_whisper_pipeline,
    "whisper.cpp": whisper_cpp_pipeline,
    AUDIO_CTX: partial(whisper_cpp_pipeline, fitted=True),
}
