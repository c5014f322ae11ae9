"""Measured speed and memory of a model in this process, and the machine they were measured on."""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import nn

from sotto.errors import SottoError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin, SequenceFeatureExtractor


@dataclass(frozen=True)
class LatencyReport:
    """How long one batch of one clip takes, stage by stage; every time is a median over `repeats`."""

    features: float  # seconds from samples to features on the model's device
    encoder: float  # seconds
    decoder: float  # seconds; for a CTC model, those of picking the best label of each frame
    total: float  # seconds
    real_time_factor: float  # RTFx: seconds of audio per second of computing, over the whole batch
    repeats: int
    warmup: int
    audio_seconds: float  # of one clip
    tokens: int  # decoded for each clip; 0 for a CTC model
    device: str
    dtype: str
    threads: int
    batch: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure_latency(
    model: PreTrainedModel,
    processor: ProcessorMixin | SequenceFeatureExtractor,
    audio: NDArray[np.float32],
    *,
    tokens: int = 32,
    repeats: int = 5,
    warmup: int = 2,
    batch: int = 1,
) -> LatencyReport:
    """Time features, encoder and greedy decoding with a key-value cache, one after the other.

    `audio` has shape (samples,) at the processor's rate and is repeated `batch` times. Exactly `tokens`
    are decoded, or as many as the model has positions for, whatever it makes of the clip: two models do the
    same work. Strategies of decoding (language, timestamps, fallback) are left out. Raises `SottoError` for
    audio that is not one clip of at most one window, and for counts that are too small.
    """
    _at_least(1, tokens=tokens, repeats=repeats, batch=batch)
    _at_least(0, warmup=warmup)
    extractor: Any = getattr(processor, "feature_extractor", processor)
    _check_audio(audio, extractor)
    tokens = min(tokens, model.config.max_target_positions) if model.config.is_encoder_decoder else 0
    clips = [audio] * batch
    with _evaluating(model), torch.inference_mode():
        passes = [_timed_pass(model, extractor, clips, tokens) for _ in range(warmup + repeats)]
    features, encoder, decoder = (median(stage) for stage in zip(*passes[warmup:], strict=True))
    total = median(sum(stages) for stages in passes[warmup:])
    seconds = len(audio) / extractor.sampling_rate
    return LatencyReport(
        features=features,
        encoder=encoder,
        decoder=decoder,
        total=total,
        real_time_factor=batch * seconds / total,
        repeats=repeats,
        warmup=warmup,
        audio_seconds=seconds,
        tokens=tokens,
        device=str(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        batch=batch,
    )


class MemoryMeter:
    """The peak of this process's resident memory, in bytes, while a block runs.

        with MemoryMeter() as meter:
            model(features)
        meter.peak, meter.increase

    Memory is looked at every `interval` seconds, so a shorter peak may be missed.
    """

    def __init__(self, interval: float = 0.01) -> None:
        self.start = 0
        self.peak = 0
        self._interval = interval
        self._process = psutil.Process()
        self._left = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)

    @property
    def increase(self) -> int:
        """Bytes of the peak above what was resident when the block began."""
        return self.peak - self.start

    def __enter__(self) -> Self:
        self.start = self.peak = self._resident()
        self._sampler.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self._sampler.join()
        self.peak = max(self.peak, self._resident())

    def _sample(self) -> None:
        while not self._left.wait(self._interval):
            self.peak = max(self.peak, self._resident())

    def _resident(self) -> int:
        return int(self._process.memory_info().rss)


def machine() -> dict[str, str | int]:
    """What a measurement depends on, to be written beside it; nothing that names the host or its user."""
    described: dict[str, str | int] = {
        "cpu": _cpu_kind(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "platform": platform.platform(),
    }
    if torch.cuda.is_available():
        described["gpu"] = torch.cuda.get_device_name()
    return described


def _cpu_kind() -> str:
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _at_least(least: int, **counts: int) -> None:
    for name, count in counts.items():
        if count < least:
            raise SottoError(f"{name}: {count} is too few; give {least} or more")


def _check_audio(audio: NDArray[np.float32], extractor: Any) -> None:
    if audio.ndim != 1 or audio.size == 0:
        raise SottoError(f"audio: shape {audio.shape} is not one clip; give mono samples of shape (samples,)")
    window = getattr(extractor, "n_samples", None)
    if window is not None and audio.size > window:
        seconds, longest = audio.size / extractor.sampling_rate, window / extractor.sampling_rate
        raise SottoError(f"audio: {seconds:.1f} s is more than the window of {longest:.0f} s; give a shorter clip")


def _timed_pass(
    model: PreTrainedModel, extractor: Any, clips: list[NDArray[np.float32]], tokens: int
) -> tuple[float, float, float]:
    """Seconds of features, encoder and decoder."""
    start = _clock(model.device)
    features = extractor(clips, sampling_rate=extractor.sampling_rate, return_tensors="pt")
    features = features.to(model.device, dtype=model.dtype)
    extracted = _clock(model.device)
    encoded = model.get_encoder()(features["input_features"]) if tokens else model(**features)
    listened = _clock(model.device)
    if tokens:
        _decode(model, encoded, len(clips), tokens)
    else:
        encoded.logits.argmax(-1)
    return extracted - start, listened - extracted, _clock(model.device) - listened


def _decode(model: PreTrainedModel, encoded: Any, batch: int, tokens: int) -> None:
    # Not model.generate: Whisper's own seeks through the window again and again, detects the language in an
    # extra pass and stops by what it hears, so that neither its steps nor its time are those of the decoder.
    decode: Any = getattr(model, "decode_by_itself", None)
    if decode is not None:  # by a runtime with a loop of its own
        decode(encoded, tokens)
        return
    spoken = torch.zeros(batch, 1, dtype=torch.long, device=model.device)
    cache = None
    for _ in range(tokens):
        step = model(encoder_outputs=encoded, decoder_input_ids=spoken, past_key_values=cache, use_cache=True)
        spoken = step.logits[:, -1:].argmax(-1)
        cache = step.past_key_values


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@contextmanager
def _evaluating(*models: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; after it, every module is back in the mode that it had."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
