"""Models measured side by side (`sotto benchmark`): each in a process of its own, in turn, with pauses."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np
import torch
from numpy.typing import NDArray

from sotto.checkpoint import DTYPES
from sotto.data import DataConfig, open_data
from sotto.measurement import measure_speed
from sotto.metrics.speed import LatencyReport, MemoryMeter
from sotto.opening import cost_of, open_model
from sotto.progress import track
from sotto.report.numbers import ModelNumbers

PAUSE_SECONDS = 0.25  # a process that has just ended leaves a warm core and a spinning thread pool behind


@dataclass(frozen=True)
class Timing:
    """How to time: `rounds` visits to every model, `repeats` passes a visit."""

    rounds: int = 3
    repeats: int = 5
    threads: int | None = None
    dtype: str = "float32"
    audio: str | None = None
    """an audio file; noise as long as the window where there is none"""


@dataclass(frozen=True)
class SideBySide:
    """One model's numbers, and its encoder's speed against the first model's: the median of per-round ratios."""

    numbers: ModelNumbers
    encoder_speedup: float
    flops_ratio: float
    total_speedup: float


def benchmark(names: Sequence[str], timing: Timing) -> list[SideBySide]:
    """Measure each of the checkpoints `names` in turn, round after round; the first is what the others are held to."""
    visits: dict[str, list[ModelNumbers]] = {name: [] for name in names}
    schedule = [name for _ in range(timing.rounds) for name in names]
    for name in track(schedule, "measuring"):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            visits[name].append(process.submit(visit, name, timing).result())
        time.sleep(PAUSE_SECONDS)
    first = visits[names[0]]
    return [compared(visits[name], first) for name in names]


def visit(name: str, timing: Timing) -> ModelNumbers:
    """Cost, latency and peak memory of one checkpoint; runs in its own process."""
    if timing.threads is not None:
        torch.set_num_threads(timing.threads)
    with MemoryMeter() as meter:
        recognizer = open_model(name, dtype=DTYPES[timing.dtype])
        audio = audio_for(timing, recognizer.sampling_rate, recognizer.window_seconds)
        latency = measure_speed(recognizer, audio, timing.repeats)
    numbers = cost_of(recognizer, name)
    return ModelNumbers(**(vars(numbers) | {"latency": latency, "peak_memory": meter.peak}))


def audio_for(timing: Timing, rate: int, seconds: float) -> NDArray[np.float32]:
    if timing.audio is None:
        noise = np.random.default_rng(0).standard_normal(int(rate * seconds))
        return (0.1 * noise).astype(np.float32)
    return next(iter(open_data(DataConfig(timing.audio), sampling_rate=rate))).audio


def compared(visits: Sequence[ModelNumbers], first: Sequence[ModelNumbers]) -> SideBySide:
    """The median visit, and the medians of per-round ratios against the first model."""
    latencies, held_to = ([latency_of(visit) for visit in each] for each in (visits, first))
    middle = sorted(visits, key=lambda visit: latency_of(visit).total)[len(visits) // 2]
    pairs = list(zip(held_to, latencies, strict=True))
    return SideBySide(
        numbers=middle,
        encoder_speedup=statistics.median(before.encoder / after.encoder for before, after in pairs),
        flops_ratio=first[0].encoder_flops / visits[0].encoder_flops,
        total_speedup=statistics.median(before.total / after.total for before, after in pairs),
    )


def latency_of(numbers: ModelNumbers) -> LatencyReport:
    assert numbers.latency is not None
    return numbers.latency
