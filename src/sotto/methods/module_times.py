"""How long a model takes, the whole and its modules, by how many of their units the modules have."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from sotto.checkpoint import Recognizer
from sotto.families import evaluating
from sotto.measurement import TOKENS
from sotto.methods.gated_modules import GatedModule

SHARES = (0.125, 0.25, 0.5, 0.75, 1.0)  # of a module's units, at which it is timed
ROUNDS = 3
REPEATS = 7  # of a timed run at least,
ENOUGH = 0.5  # and as many as take so many seconds: short runs vary more


@dataclass(frozen=True)
class Times:
    """Seconds of a run, and of every module in it."""

    whole: float
    modules: tuple[float, ...]


def timed_in_turns(
    recognizer: Recognizer, gated: Sequence[GatedModule], length: float, threads: int | None
) -> dict[float, Times]:
    """Medians for every share of units, which take turns: what else the machine does then slows all of them."""
    with on_threads(threads):
        rounds = [{share: timed(recognizer, gated, share, length) for share in SHARES} for _ in range(ROUNDS)]
    return {share: middle([each[share] for each in rounds]) for share in SHARES}


def middle(times: Sequence[Times]) -> Times:
    modules = zip(*(each.modules for each in times), strict=True)
    return Times(statistics.median(each.whole for each in times), tuple(statistics.median(own) for own in modules))


def timed(recognizer: Recognizer, gated: Sequence[GatedModule], share: float, length: float) -> Times:
    """Medians of runs over audio of that length, where modules have that share of units."""
    narrowed = recognizer.copy()
    for each in gated:
        if each.has_units:
            each.keep(narrowed.model, range(units_at(share, each.units)))
    whole = whole_seconds(narrowed, length)  # without clocks, which take time themselves
    clocks = [Clock(narrowed.model, each.parts[0], each.parts[-1]) for each in gated]
    whole_seconds(narrowed, length)
    return Times(whole, tuple(clock.seconds() for clock in clocks))


@contextmanager
def on_threads(count: int | None) -> Iterator[None]:
    """Run torch on so many threads, or as it does."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def units_at(share: float, units: int) -> int:
    return max(1, round(share * units))


@torch.no_grad()
def whole_seconds(recognizer: Recognizer, length: float) -> float:
    """Median seconds of repeated runs over audio of that length, features and model: what a user waits for."""
    model = recognizer.model
    silence = np.zeros(round(length * recognizer.sampling_rate), dtype=np.float32)
    tokens = torch.zeros(1, tokens_of(model), dtype=torch.long, device=model.device)
    beside = {"decoder_input_ids": tokens} if model.config.is_encoder_decoder else {}
    totals: list[float] = []
    with evaluating(model):
        while len(totals) <= REPEATS or sum(totals) < ENOUGH:
            start = time.perf_counter()
            model(**recognizer.family.inputs([silence]), **beside)
            synchronize(model)
            totals.append(time.perf_counter() - start)
    return statistics.median(totals[1:])


class Clock:
    """Takes the time from before one part of a model to after another, in every run, and never has a GPU wait."""

    def __init__(self, model: nn.Module, first: str, last: str) -> None:
        self.spans: list[tuple[Any, Any]] = []
        self.model = model
        model.get_submodule(first).register_forward_pre_hook(self.start)
        model.get_submodule(last).register_forward_hook(self.stop)

    def start(self, *_: Any) -> None:
        self.started = moment(self.model)

    def stop(self, *_: Any) -> None:
        self.spans.append((self.started, moment(self.model)))

    def seconds(self) -> float:
        """The median over all runs but the first, which have to be over."""
        return statistics.median(seconds_between(start, end) for start, end in self.spans[1:])


def moment(model: nn.Module) -> Any:
    """Now, or on a GPU when its queue of work comes to here."""
    if not next(model.parameters()).is_cuda:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def seconds_between(start: Any, end: Any) -> float:
    return float(end - start if isinstance(start, float) else start.elapsed_time(end) / 1000)


def synchronize(model: nn.Module) -> None:
    if next(model.parameters()).is_cuda:
        torch.cuda.synchronize()


def tokens_of(model: Any) -> int:
    return min(TOKENS, int(getattr(model.config, "max_target_positions", TOKENS)))
