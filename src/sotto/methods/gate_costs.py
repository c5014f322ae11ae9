"""What a model costs by which of its modules and units are there: parameters, FLOPs, or measured time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import nn

from sotto.architectures import Attention, Convolution
from sotto.checkpoint import Recognizer
from sotto.errors import SottoError
from sotto.families import evaluating
from sotto.methods.gated_modules import GatedModule
from sotto.metrics.cost import count_parameters, flops_by_module
from sotto.surgery import get_linear, layer_path

Constraint = Literal["parameters", "flops", "latency"]
SHARES = (0.125, 0.25, 0.5, 0.75, 1.0)  # of a module's units, at which it is timed
REPEATS = 7
TOKENS = 32  # that Whisper's decoder sees beside a window


def check_seconds(seconds: float | None, constraint: Constraint) -> None:
    """Raises SottoError for a length that is none, or where nothing depends on it."""
    if seconds is None:
        return
    if constraint == "parameters":
        raise SottoError("parameters are the same for audio of any length; leave out seconds")
    if seconds <= 0:
        raise SottoError(f"seconds must be positive, found {seconds}")


@dataclass(frozen=True)
class ModuleCost:
    """The cost of a module that is there, by how many units it has: straight lines between `widths` (ascending)."""

    widths: tuple[float, ...]
    costs: tuple[float, ...]

    def at(self, width: torch.Tensor) -> torch.Tensor:
        """Differentiable in `width`. A module of fewer units than the first width costs what it does there."""
        width = width.clamp(min=self.widths[0])
        line = min(max(int(np.searchsorted(self.widths, float(width.detach()), side="right")), 1), len(self.widths) - 1)
        low, high = self.widths[line - 1], self.widths[line]
        slope = (self.costs[line] - self.costs[line - 1]) / (high - low)
        return self.costs[line - 1] + slope * (width - low)


@dataclass(frozen=True)
class GateCosts:
    """`modules`: one for every gated module; `rest`: what everything else costs."""

    modules: tuple[ModuleCost, ...]
    rest: float
    whole: float
    length: float | None = None
    """seconds of audio that FLOPs and time are of"""

    def share(self, expected: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        """What is left of the whole, for every module how likely it is to be there and how many units it then has."""
        pairs = zip(self.modules, expected, strict=True)
        return (torch.stack([there * cost.at(units) for cost, (there, units) in pairs]).sum() + self.rest) / self.whole


def gate_costs(
    recognizer: Recognizer, gated: Sequence[GatedModule], constraint: Constraint, seconds: float | None = None
) -> GateCosts:
    """FLOPs and time are those of one pass over that much audio, for Whisper with 32 tokens at once beside it.

    Without `seconds` it is a window. Raises SottoError where they are given and the model pads all audio to its own.
    """
    if seconds is not None and recognizer.family.frames(seconds) is None:
        raise SottoError(f"the model pads all audio to {recognizer.window_seconds:g} s; leave out seconds")
    length = recognizer.window_seconds if seconds is None else seconds
    if constraint == "parameters":
        modules = [parameter_cost(recognizer.model, each) for each in gated]
        whole = float(count_parameters(recognizer.model).total)
    elif constraint == "flops":
        modules, whole = flops_costs(recognizer, gated, length)
    else:
        modules, whole = latency_costs(recognizer, gated, length)
    full = sum(float(cost.at(torch.tensor(float(each.units)))) for cost, each in zip(modules, gated, strict=True))
    return GateCosts(tuple(modules), whole - full, whole, None if constraint == "parameters" else length)


def parameter_cost(model: Any, gated: GatedModule) -> ModuleCost:
    parts = [model.get_submodule(path) for path in gated.parts]
    whole = sum(parameter.numel() for part in parts for parameter in part.parameters())
    return ModuleCost((0.0, gated.units), (whole - gated.units * unit_parameters(model, gated), whole))


def unit_parameters(model: Any, gated: GatedModule) -> int:
    """Parameters that go with one unit."""
    module, stack, layer = gated.module, gated.stack, gated.layer
    outward: int = gated.channels * model.get_submodule(gated.outward).weight.shape[0]
    if isinstance(module, Convolution):
        inner = [model.get_submodule(layer_path(stack, layer, f"{module.name}.{part}")) for part in module.parts[:3]]
        weights: int = sum(parameter.numel() for part in inner for parameter in part.parameters())
        return outward + weights // gated.units
    inward = module.inward if isinstance(module, Attention) else (module.up,)
    linears = [get_linear(model, stack, layer, name) for name in inward]
    rows = sum(linear.in_features + (linear.bias is not None) for linear in linears)
    biases = len(module.head_biases) if isinstance(module, Attention) else 0
    return outward + gated.channels * (rows + biases)


def flops_costs(recognizer: Recognizer, gated: Sequence[GatedModule], length: float) -> tuple[list[ModuleCost], float]:
    """Every product of a module has its units on one side, so that its FLOPs are proportional to them."""
    counts = flops_by_module(recognizer.model, recognizer.family.frames(length), tokens_of(recognizer.model))
    costs = [sum(counts[path] for path in each.parts) for each in gated]
    return [ModuleCost((0.0, each.units), (0.0, cost)) for each, cost in zip(gated, costs, strict=True)], counts[""]


def tokens_of(model: Any) -> int:
    return min(TOKENS, int(getattr(model.config, "max_target_positions", TOKENS)))


def latency_costs(
    recognizer: Recognizer, gated: Sequence[GatedModule], length: float
) -> tuple[list[ModuleCost], float]:
    """Medians over repeated runs of models whose modules all have some share of their units.

    Modules of one shape have one table. In it, more units never cost less: where they were measured to, that was noise,
    from which gates would learn.
    """
    tables: dict[Shape, dict[int, float]] = {}
    for share in SHARES:
        times = timed(recognizer, gated, share, length)
        for shape in {shape_of(each) for each in gated}:
            own = [found for each, found in zip(gated, times, strict=True) if shape_of(each) == shape]
            tables.setdefault(shape, {})[units_at(share, shape.units)] = statistics.median(own)
    tables = {shape: table if len(table) > 1 else {0: 0.0, **table} for shape, table in tables.items()}
    costs = {shape: ModuleCost(tuple(table), tuple(accumulate(table.values(), max))) for shape, table in tables.items()}
    return [costs[shape_of(each)] for each in gated], whole_seconds(recognizer, length)


class Shape(NamedTuple):
    """What modules have in common that take the same time."""

    stack: str
    module: str
    units: int
    channels: int


def shape_of(gated: GatedModule) -> Shape:
    return Shape(gated.stack.name, gated.module.name, gated.units, gated.channels)


def units_at(share: float, units: int) -> int:
    return max(1, round(share * units))


def timed(recognizer: Recognizer, gated: Sequence[GatedModule], share: float, length: float) -> list[float]:
    """Median seconds of every module in runs over audio of that length, where modules have that share of units."""
    narrowed = recognizer.copy()
    for each in gated:
        if each.has_units:
            each.keep(narrowed.model, range(units_at(share, each.units)))
    clocks = [Clock(narrowed.model, each.parts[0], each.parts[-1]) for each in gated]
    whole_seconds(narrowed, length)  # is not kept: clocks take time themselves
    return [clock.seconds() for clock in clocks]


@torch.no_grad()
def whole_seconds(recognizer: Recognizer, length: float) -> float:
    """Median seconds of repeated runs over audio of that length."""
    model = recognizer.model
    silence = np.zeros(round(length * recognizer.sampling_rate), dtype=np.float32)
    inputs = recognizer.family.inputs([silence])
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.zeros(1, tokens_of(model), dtype=torch.long, device=model.device)
    totals = []
    with evaluating(model):
        for _ in range(REPEATS + 1):
            start = time.perf_counter()
            model(**inputs)
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
