"""The time of a recogniser's encoder over a window on this machine, and of its linears by their rank."""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sotto.calibration import Place
from sotto.checkpoint import Recognizer
from sotto.distribution import found_by_main
from sotto.exports.runtimes import RUNTIMES, Run, RuntimeName, median_seconds, window_inputs
from sotto.families import evaluating
from sotto.layers import FactoredLinear
from sotto.methods.factoring import linear_at
from sotto.methods.rank_times import RankTimes, measured_ranks
from sotto.progress import track


@dataclass(frozen=True)
class LinearShape:
    """Of a linear, and how many rows it sees in one window."""

    rows: int
    inputs: int
    outputs: int


def linear_times(
    recognizer: Recognizer, places: Collection[Place], runtime: RuntimeName, multiple: int
) -> tuple[float, dict[Place, RankTimes]]:
    """Seconds of the encoder as it stands, and of every linear by rank. All processes go by what the main one measures.

    Linears of one shape are measured once.
    """
    shapes = shapes_of(recognizer, places)
    encoder, tables = found_by_main(lambda: measured(recognizer, set(shapes.values()), runtime, multiple))
    return encoder, {place: tables[shape] for place, shape in shapes.items()}


@torch.no_grad()
def shapes_of(recognizer: Recognizer, places: Collection[Place]) -> dict[Place, LinearShape]:
    found = {}

    def keep(place: Place) -> Any:
        def hook(module: nn.Linear | FactoredLinear, heard: tuple[torch.Tensor], _: torch.Tensor) -> None:
            rows = heard[0].numel() // module.in_features
            found[place] = LinearShape(rows, module.in_features, module.out_features)

        return hook

    handles = [linear_at(recognizer, place).register_forward_hook(keep(place)) for place in places]
    with evaluating(recognizer.model):
        recognizer.family.encode(window_inputs(recognizer))
    for handle in handles:
        handle.remove()
    return found


@torch.no_grad()
def measured(
    recognizer: Recognizer, shapes: Collection[LinearShape], name: RuntimeName, multiple: int
) -> tuple[float, dict[LinearShape, RankTimes]]:
    """Seconds of the encoder, and a table for each shape."""
    runtime = RUNTIMES[name]
    timed = runtime.prepared(recognizer)
    ranks = {shape: measured_ranks(shape.inputs, shape.outputs, multiple) for shape in shapes}
    with tempfile.TemporaryDirectory() as scratch:
        runs: list[dict[tuple[LinearShape, int | None], Run]] = []
        for shape in track(shapes, f"linears for {name}"):
            heard = torch.randn(1, shape.rows, shape.inputs).to(timed.model.device, timed.model.dtype)
            linears = {rank: linear_of(shape, rank).to(heard.device, heard.dtype) for rank in (None, *ranks[shape])}
            runs.append(
                {(shape, rank): runtime.module_run(each, heard, Path(scratch)) for rank, each in linears.items()}
            )
        encoder, seconds = median_seconds(runtime.encoder_run(timed, Path(scratch)), runs)
    tables = {
        shape: RankTimes(seconds[shape, None], own, tuple(seconds[shape, rank] for rank in own))
        for shape, own in ranks.items()
    }
    return encoder, tables


def linear_of(shape: LinearShape, rank: int | None) -> nn.Module:
    """With random weights."""
    if rank is None:
        return nn.Linear(shape.inputs, shape.outputs)
    return FactoredLinear(shape.inputs, rank, shape.outputs)
