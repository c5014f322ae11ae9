"""Narrower heads and factored linears at the same FLOPs: the time of an encoder of a true shape, with random weights.

    python benchmarks/head_speed.py --shape base --channels 48 32

For every head dimension also the rank, the same for all six linears of a layer, that leaves as many FLOPs. Encoders
run in torch and, exported to ONNX, in onnxruntime in floats and in whole numbers; they take turns. One thread.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from results_file import write_results
from shapes import factor_at_random, random_whisper
from sotto.calibration import places
from sotto.checkpoint import Recognizer
from sotto.exports.graphs import encoder_graph
from sotto.exports.onnx_models import OnnxGraph
from sotto.exports.precision import in_precision, write_graph
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


def runs_of(recognizer: Recognizer, features: torch.Tensor, folder: Path) -> dict[str, Callable[[], object]]:
    """What is timed, by the runtime's name."""
    encoder = recognizer.model.get_encoder()
    runs: dict[str, Callable[[], object]] = {"torch": lambda: encoder(features)}
    for precision in ("float32", "int8"):
        path = folder / f"{precision}.onnx"
        write_graph(in_precision(encoder_graph(recognizer.model), precision), path)
        graph = OnnxGraph(path)
        runs[f"onnx {precision}"] = partial(graph, {"input_features": features.numpy()})
    return runs


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="base")
    parser.add_argument("--channels", type=int, nargs="+", default=[48, 32])
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    models = {"dense": random_whisper(arguments.shape, decoder_layers=1)}
    for channels in arguments.channels:
        models[f"heads of {channels} channels"] = narrower = narrowed(arguments.shape, channels)
        rank = rank_for(arguments.shape, encoder_flops(narrower.model))
        models[f"rank {rank}"] = factored(arguments.shape, rank)
    config = models["dense"].model.config
    features = torch.randn(1, config.num_mel_bins, 2 * config.max_source_positions)
    seconds: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        runs: dict[tuple[str, str], Callable[[], object]] = {}
        for name, recognizer in models.items():
            (folder := Path(scratch) / name).mkdir()
            runs |= {(name, runtime): run for runtime, run in runs_of(recognizer, features, folder).items()}
        for _ in range(arguments.rounds + 1):
            for key, run in runs.items():
                start = time.perf_counter()
                run()
                seconds.setdefault(key, []).append(time.perf_counter() - start)
    dense = {runtime: statistics.median(each[1:]) for (of, runtime), each in seconds.items() if of == "dense"}
    all_flops = encoder_flops(models["dense"].model)
    rows = []
    for name, recognizer in models.items():
        times = {runtime: statistics.median(seconds[name, runtime][1:]) for runtime in dense}
        flops = encoder_flops(recognizer.model)
        rows.append({"model": name, "encoder_flops": flops, "seconds": times})
        shares = [f"{100 * flops / all_flops:.0f} %"]
        shares += [f"{value:.2f} s ({100 * value / dense[key]:.0f} %)" for key, value in times.items()]
        print(f"| {' | '.join([name, *shares])} |")
    print(write_results(f"head-speed-{arguments.shape}", {"threads": 1, "rounds": arguments.rounds, "rows": rows}))


if __name__ == "__main__":
    main()
