"""What a model costs by which of its modules and units are there: parameters, FLOPs, or measured time."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from sotto.architectures import Attention, Convolution
from sotto.checkpoint import Recognizer
from sotto.errors import SottoError
from sotto.methods.gated_modules import GatedModule
from sotto.methods.module_times import Times, timed_in_turns, tokens_of, units_at
from sotto.metrics.cost import count_parameters, flops_by_module
from sotto.surgery import get_linear, layer_path

Constraint = Literal["parameters", "flops", "latency"]


def check_constraint(constraint: Constraint, seconds: float | None, threads: int | None) -> None:
    """Raises SottoError for a length or a number of threads that is none, or where nothing depends on it."""
    if seconds is not None and constraint == "parameters":
        raise SottoError("parameters are the same for audio of any length; leave out seconds")
    if seconds is not None and seconds <= 0:
        raise SottoError(f"seconds must be positive, found {seconds}")
    if threads is not None and constraint != "latency":
        raise SottoError(f"{constraint} are the same on any number of threads; leave out threads")
    if threads is not None and threads < 1:
        raise SottoError(f"threads must be at least 1, found {threads}")


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
    threads: int | None = None
    """that time is on, where it was named"""

    def share(self, expected: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        """What is left of the whole, for every module how likely it is to be there and how many units it then has."""
        pairs = zip(self.modules, expected, strict=True)
        return (torch.stack([there * cost.at(units) for cost, (there, units) in pairs]).sum() + self.rest) / self.whole


def gate_costs(
    recognizer: Recognizer,
    gated: Sequence[GatedModule],
    constraint: Constraint,
    seconds: float | None = None,
    threads: int | None = None,
) -> GateCosts:
    """FLOPs and time are those of one pass over that much audio, for Whisper with 32 tokens at once beside it.

    Without `seconds` it is a window, without `threads` time is on as many as training has. Raises SottoError where
    seconds are given and the model pads all audio to its own length, or threads and it is on a GPU.
    """
    if seconds is not None and recognizer.family.frames(seconds) is None:
        raise SottoError(f"the model pads all audio to {recognizer.window_seconds:g} s; leave out seconds")
    if threads is not None and recognizer.model.device.type != "cpu":
        raise SottoError("the model's time is that on a GPU; leave out threads")
    length = recognizer.window_seconds if seconds is None else seconds
    if constraint == "parameters":
        modules = [parameter_cost(recognizer.model, each) for each in gated]
        whole = float(count_parameters(recognizer.model).total)
    elif constraint == "flops":
        modules, whole = flops_costs(recognizer, gated, length)
    else:
        modules, whole = latency_costs(gated, timed_in_turns(recognizer, gated, length, threads))
    full = sum(float(cost.at(torch.tensor(float(each.units)))) for cost, each in zip(modules, gated, strict=True))
    return GateCosts(tuple(modules), whole - full, whole, None if constraint == "parameters" else length, threads)


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


def latency_costs(gated: Sequence[GatedModule], found: Mapping[float, Times]) -> tuple[list[ModuleCost], float]:
    """From the times of models whose modules all have some share of their units, by that share.

    Modules of one shape have one table. What they take apart need not add up to what the whole model is faster by, so
    that at every share it is scaled to that. Modules whose units have no gates always have all of them, and one time,
    which is not scaled. More units never cost less: where they were measured to, that was noise, from which gates would
    learn.
    """
    whole = found[1.0].whole
    narrowed = [index for index, each in enumerate(gated) if each.has_units]
    rest = whole - sum(found[1.0].modules[index] for index in narrowed)
    tables: dict[Shape, dict[int, float]] = {}
    for share, times in found.items():
        # On a busy machine a model may seem faster than without its modules: then what they take apart has to do.
        apart = sum(times.modules[index] for index in narrowed)
        scale = (times.whole - rest) / apart if times.whole > rest and apart else 1.0
        for shape in {shape_of(each) for each in gated if each.has_units or share == 1.0}:
            own = [seconds for each, seconds in zip(gated, times.modules, strict=True) if shape_of(each) == shape]
            tables.setdefault(shape, {})[units_at(share, shape.units)] = scale * statistics.median(own)
    tables = {shape: table if len(table) > 1 else {0: 0.0, **table} for shape, table in tables.items()}
    costs = {shape: ModuleCost(tuple(table), tuple(accumulate(table.values(), max))) for shape, table in tables.items()}
    return [costs[shape_of(each)] for each in gated], whole


class Shape(NamedTuple):
    """What modules have in common that take the same time."""

    stack: str
    module: str
    units: int
    channels: int


def shape_of(gated: GatedModule) -> Shape:
    return Shape(gated.stack.name, gated.module.name, gated.units, gated.channels)
