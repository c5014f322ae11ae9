"""Narrower heads and factored linears at the same FLOPs: the time of an encoder of a true shape, with random weights.

    python benchmarks/head_speed.py --shape base --channels 48 32

For every head dimension also the rank, the same for all six linears of a layer, that leaves as many FLOPs. Encoders
take turns in each runtime that parts can be timed in, written as exports are.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

from results_file import write_results
from shapes import factor_at_random, random_whisper
from sotto.calibration import places
from sotto.checkpoint import Recognizer
from sotto.exports.runtimes import RUNTIMES, Runtime, seconds_of
from sotto.metrics.cost import encoder_flops
from sotto.surgery import layers_of, narrow_heads


def narrowed(shape: str, channels: int) -> Recognizer:
    recognizer = random_whisper(shape, decoder_layers=1)
    for stack, index in list(layers_of(recognizer.model)):
        if stack.name == "encoder":
            narrow_heads(recognizer.model, stack, index, stack.attentions[0], channels)
    return recognizer


def factored(shape: str, rank: int) -> Recognizer:
    recognizer = random_whisper(shape, decoder_layers=1)
    for stack, index, linear in list(places(recognizer, ("encoder",))):
        factor_at_random(recognizer, stack, index, linear, rank)
    return recognizer


def rank_for(shape: str, flops: int) -> int:
    """The multiple of 8 that leaves about that many FLOPs, which grow evenly with the rank."""
    few, more = (encoder_flops(factored(shape, rank).model) for rank in (8, 16))
    return 8 + 8 * round((flops - few) / (more - few))


def seconds_in(runtime: Runtime, models: Mapping[str, Recognizer], rounds: int) -> dict[str, float]:
    """Medians of the encoders over one window, which take turns; a first round is not counted."""
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        runs = {name: runtime.encoder_run(runtime.prepared(each), Path(scratch)) for name, each in models.items()}
        for _ in range(rounds + 1):
            for name, run in runs.items():
                seconds.setdefault(name, []).append(seconds_of(run))
    return {name: statistics.median(each[1:]) for name, each in seconds.items()}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="base")
    parser.add_argument("--channels", type=int, nargs="+", default=[48, 32])
    parser.add_argument("--runtimes", nargs="+", default=list(RUNTIMES), choices=RUNTIMES)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    models = {"dense": random_whisper(arguments.shape, decoder_layers=1)}
    for channels in arguments.channels:
        models[f"heads of {channels} channels"] = narrower = narrowed(arguments.shape, channels)
        rank = rank_for(arguments.shape, encoder_flops(narrower.model))
        models[f"rank {rank}"] = factored(arguments.shape, rank)
    found = {name: seconds_in(RUNTIMES[name], models, arguments.rounds) for name in arguments.runtimes}
    flops = {name: encoder_flops(recognizer.model) for name, recognizer in models.items()}
    rows = []
    for name in models:
        times = {runtime: seconds[name] for runtime, seconds in found.items()}
        rows.append({"model": name, "encoder_flops": flops[name], "seconds": times})
        shares = [f"{100 * flops[name] / flops['dense']:.0f} %"]
        shares += [f"{1000 * own:.0f} ms ({100 * own / found[key]['dense']:.0f} %)" for key, own in times.items()]
        print(f"| {' | '.join([name, *shares])} |")
    values = {"threads": arguments.threads, "rounds": arguments.rounds, "rows": rows}
    print(write_results(f"head-speed-{arguments.shape}", values))


if __name__ == "__main__":
    main()
