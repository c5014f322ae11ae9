"""How long factors of every rank take in each runtime, and to which multiple a rank may be rounded up for nothing.

    python benchmarks/rank_times.py --shape base

The linears of an encoder layer of that shape, over the rows of one window: whole, and as two factors of every multiple
of 8 up to the rank at which they have as many weights. All of a linear take turns; medians count. `rounded_up` is, for
each multiple, the median over ranks between of the time at the next multiple as a share of the time at the rank: at 1
and below the larger rank costs nothing.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import torch

from results_file import write_results
from shapes import SHAPES
from sotto.exports.runtimes import RUNTIMES, Run, Runtime, median_seconds
from sotto.methods.timed_linears import LinearShape, linear_of

STEP = 8
MULTIPLES = (16, 32, 64)
POSITIONS = 1500


def linear_shapes(name: str) -> list[LinearShape]:
    width = SHAPES[name][0]
    return [
        LinearShape(POSITIONS, inputs, outputs)
        for inputs, outputs in ((width, width), (width, 4 * width), (4 * width, width))
    ]


def ranks_of(shape: LinearShape) -> range:
    return range(STEP, shape.inputs * shape.outputs // (shape.inputs + shape.outputs) + 1, STEP)


@torch.no_grad()
def times(shape: LinearShape, runtime: Runtime) -> dict[int | None, float]:
    """Seconds by rank; of the linear as it is under None."""
    heard = torch.randn(1, shape.rows, shape.inputs)
    with tempfile.TemporaryDirectory() as scratch:
        runs: dict[int | None, Run] = {
            rank: runtime.module_run(linear_of(shape, rank).eval(), heard, Path(scratch))
            for rank in (None, *ranks_of(shape))
        }
        _, seconds = median_seconds(runs[None], [runs])
    return seconds


def rounded_up(seconds: dict[int, float], multiple: int) -> float:
    """Time at the next multiple as a share of that at the rank: the median over the ranks that are none."""
    pairs = [(rank, -(-rank // multiple) * multiple) for rank in seconds if rank % multiple]
    return median(seconds[after] / seconds[rank] for rank, after in pairs if after in seconds)


def row(shape: LinearShape, name: str) -> dict[str, Any]:
    seconds = times(shape, RUNTIMES[name])
    whole = seconds.pop(None)
    by_rank = {rank: own for rank, own in seconds.items() if rank is not None}
    faster = [rank for rank, own in by_rank.items() if own < whole]
    return {
        "runtime": name,
        "inputs": shape.inputs,
        "outputs": shape.outputs,
        "whole": whole,
        "seconds": by_rank,
        "rounded_up": {multiple: rounded_up(by_rank, multiple) for multiple in MULTIPLES},
        "largest_faster_rank": max(faster, default=None),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="base", choices=SHAPES)
    parser.add_argument("--runtimes", nargs="+", default=list(RUNTIMES), choices=RUNTIMES)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    for name in arguments.runtimes:
        for shape in linear_shapes(arguments.shape):
            rows.append(row(shape, name))
            shown = {key: value for key, value in rows[-1].items() if key != "seconds"}
            print(shown, flush=True)
    print(write_results(f"rank-times-{arguments.shape}", {"threads": arguments.threads, "rows": rows}))


if __name__ == "__main__":
    main()
