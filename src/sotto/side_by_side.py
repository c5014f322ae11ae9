"""Models measured side by side (`sotto benchmark`): each in a process of its own, in turn, with pauses."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from sotto.checkpoint import DTYPES
from sotto.data import DataConfig, open_data
from sotto.measurement import TOKENS, measure_pipeline, measure_speed
from sotto.metrics.speed import LatencyReport, MemoryMeter
from sotto.opening import check_dtype, cost_of, import_runtime, is_on_cpu, open_model
from sotto.progress import track
from sotto.report.numbers import ModelNumbers

Found = TypeVar("Found")

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
    tokens: int = TOKENS
    """decoded of the clip, or as many as the decoder has places for"""
    device: str | None = None
    """that torch computes on; a GPU where there is one and none is named"""


@dataclass(frozen=True)
class SideBySide:
    """One model's numbers, and its encoder's speed against the first model's: the median of per-round ratios."""

    numbers: ModelNumbers
    encoder_speedup: float
    flops_ratio: float
    total_speedup: float


def benchmark(names: Sequence[str], timing: Timing) -> list[SideBySide]:
    """Measure each of the checkpoints `names` in turn, round after round; the first is what the others are held to.

    All run on the CPU where one of them is an export that can run nowhere else. Raises SottoError, before any is
    timed, where a precision is asked for that an export does not have.
    """
    for name in names:
        check_dtype(name, DTYPES[timing.dtype])
    if any(map(is_on_cpu, names)):
        timing = replace(timing, device="cpu")
    visits = in_turn([partial(visit, name, timing) for name in names], timing.rounds)
    return [compared(each, visits[0]) for each in visits]


def in_turn(calls: Sequence[Callable[[], Found]], rounds: int) -> list[list[Found]]:
    """What each call gives, round after round: every time in a process of its own, with a pause after it."""
    found: list[list[Found]] = [[] for _ in calls]
    schedule = [number for _ in range(rounds) for number in range(len(calls))]
    for number in track(schedule, "measuring"):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            found[number].append(process.submit(calls[number]).result())
        time.sleep(PAUSE_SECONDS)
    return found


def visit(name: str, timing: Timing) -> ModelNumbers:
    """Cost, latency, time of loading and peak memory of one checkpoint; runs in its own process."""
    if timing.threads is not None:
        torch.set_num_threads(timing.threads)
    import_runtime(name)
    with MemoryMeter() as meter:
        start = time.perf_counter()
        recognizer = open_model(name, device=timing.device, dtype=DTYPES[timing.dtype])
        load_seconds = time.perf_counter() - start
        audio = audio_for(timing, recognizer.sampling_rate, recognizer.window_seconds)
        latency = measure_speed(recognizer, audio, timing.repeats, tokens=timing.tokens)
    pipeline_seconds = measure_pipeline(recognizer, audio, timing.repeats, timing.tokens)  # not in its memory
    return replace(
        cost_of(recognizer, name),
        latency=latency,
        peak_memory=meter.peak,
        memory_increase=meter.increase,
        load_seconds=load_seconds,
        pipeline_seconds=pipeline_seconds,
    )


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
