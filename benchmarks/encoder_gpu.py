"""Whisper large-v3's encoder on a GPU (random weights): dense against the ranks that LiteASR published.

    python benchmarks/encoder_gpu.py --batches 1 4 16 --repeats 20

The ranks are those of preset (c), "fast", as LiteASR's Figure 6 (Kamahori et al., 2025) draws them: to two decimals of
a linear's outputs, so they are taken to the nearest multiple of 16, or of 128, where tiles of products are full. Beside
them stands what narrows everything: half of all heads and neurons. Measured in bf16 as torch runs it (`eager`),
captured in a CUDA graph (`graph`), compiled, then captured (`compile`), and compiled with kernels for products that
are tried out and take in what follows (`autotune`). Attention is that of the first of cuDNN, Flash and torch's own
that runs. Models take turns; medians over `--rounds`. With `--wait FILE` all is compiled, and timed once that file is
there, when the GPU is idle. Without a GPU the script says so, and runs what needs none: one window, as torch runs it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from results_file import write_results
from shapes import factor_at_random, random_whisper
from sotto.checkpoint import Recognizer
from sotto.methods.factoring import reduce_layer
from sotto.methods.gated_modules import KINDS, gated_module
from sotto.metrics.cost import count_parameters
from sotto.surgery import get_linear

LINEARS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
FIGURE_6 = """
.03 .03 .04 .03 .06 .21   .05 .05 .10 .09 .04 .17   .04 .04 .12 .12 .03 .09   .04 .04 .15 .12 .04 .07
.05 .04 .16 .11 .04 .12   .04 .04 .15 .11 .04 .12   .06 .05 .24 .16 .04 .17   .07 .06 .20 .16 .05 .34
.07 .06 .23 .17 .06 .40   .07 .06 .23 .17 .06 .40   .05 .04 .23 .19 .06 .41   .06 .05 .25 .17 .06 .41
.05 .05 .28 .17 .07 .46   .05 .04 .23 .19 .08 .54   .06 .05 .35 .20 .09 .51   .04 .04 .34 .20 .07 .60
.05 .04 .21 .17 .08 .62   .07 .06 .29 .23 .09 .61   .06 .05 .24 .20 .10 .66   .06 .06 .33 .21 .10 .59
.07 .06 .34 .28 .08 .01   .09 .07 .35 .26 .13 .75   .11 .09 .42 .35 .12 .76   .10 .07 .36 .33 .14 .81
.14 .10 .44 .35 .15 .84   .14 .10 .46 .33 .15 .86   .15 .11 .49 .39 .17 .85   .15 .10 .47 .31 .18 .80
.16 .11 .46 .35 .18 .74   .21 .14 .44 .39 .19 .76   .21 .15 .44 .36 .17 .78   .21 .14 .34 .36 .16 .57
"""
"""Rank as a share of the outputs, by layer and, within it, by LINEARS."""
COMPILED = {"compile": None, "autotune": "max-autotune-no-cudagraphs"}
"""torch.compile's own name of a mode; graphs are captured here"""
ATTENTIONS = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
WHOLE_ABOVE = 0.80
"""Layers whose fc2 is above were left whole: their factors would be larger than the matrix."""


def ranks() -> Iterator[tuple[int, str, float]]:
    shares = [float(share) for share in FIGURE_6.split()]
    for number, share in enumerate(shares):
        yield number // len(LINEARS), LINEARS[number % len(LINEARS)], share


def fast(multiple: int = 16, reduced: bool = False) -> Recognizer:
    """The encoder at the published ranks, with random factors; `reduced`: attention in the rank where FLOPs say so."""
    recognizer = random_whisper("large-v3", decoder_layers=1)
    stack = recognizer.architecture.stack("encoder")
    for index, kind, share in ranks():
        linear = next(name for name in stack.linears() if name.endswith(kind))
        old = get_linear(recognizer.model, stack, index, linear)
        if share > WHOLE_ABOVE:
            continue
        factor_at_random(
            recognizer, stack, index, linear, max(1, round(share * old.out_features / multiple)) * multiple
        )
    if reduced:
        for index in range(recognizer.model.config.encoder_layers):
            reduce_layer(recognizer, stack, index, recognizer.model.config.max_source_positions)
    return recognizer


def halved() -> Recognizer:
    """Every second head, and half of the neurons."""
    recognizer = random_whisper("large-v3", decoder_layers=1)
    stack = recognizer.architecture.stack("encoder")
    for index in range(recognizer.model.config.encoder_layers):
        for gated in (gated_module(recognizer.model, stack, index, module, KINDS) for module in stack.modules):
            gated.keep(recognizer.model, range(0, gated.units, 2))
    return recognizer


BUILDERS: dict[str, Callable[[], Recognizer]] = {
    "dense": lambda: random_whisper("large-v3", decoder_layers=1),
    "fast": fast,
    "fast, multiples of 128": lambda: fast(multiple=128),
    "fast, reduced attention": lambda: fast(reduced=True),
    "half of heads and neurons": halved,
}


def as_run(encoder: nn.Module, features: torch.Tensor, mode: str) -> Callable[[], Any]:
    """The encoder on `features`, warmed up, ready to be timed."""

    def run() -> Any:
        with sdpa_kernel(ATTENTIONS, set_priority=True):
            return encoder(features).last_hidden_state

    if mode in COMPILED:
        encoder = torch.compile(encoder, dynamic=False, mode=COMPILED[mode])  # type: ignore[assignment]
    for _ in range(3):
        run()
    if mode == "eager":
        return run
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()

    def replay(held: Any = (encoder, features)) -> None:  # a graph does not keep what it reads
        graph.replay()

    return replay


def seconds(run: Callable[[], Any], repeats: int) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


@torch.inference_mode()
def measured(runs: dict[str, Callable[[], Any]], rounds: int, repeats: int) -> dict[str, float]:
    """Median seconds a pass by encoder, taking turns."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(seconds(run, repeats))
    return {name: statistics.median(found) for name, found in times.items()}


@torch.inference_mode()
def prepared(encoder: Any, mode: str, batch: int) -> Callable[[], Any]:
    bins, frames = encoder.config.num_mel_bins, 2 * encoder.config.max_source_positions
    return as_run(encoder, torch.randn(batch, bins, frames, device=encoder.device, dtype=torch.bfloat16), mode)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument(
        "--modes", nargs="+", choices=["eager", "graph", *COMPILED], default=["eager", "graph", "compile"]
    )
    parser.add_argument("--encoders", nargs="+", choices=BUILDERS, default=[*BUILDERS])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--wait", type=Path, help="a file, before which nothing is timed")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        print("no GPU here: one window, as torch runs it on the CPU", flush=True)
        arguments.modes, arguments.batches, arguments.repeats = ["eager"], [1], 1
    parameters, runs = {}, {}
    for name in arguments.encoders:
        recognizer = BUILDERS[name]()
        parameters[name] = count_parameters(recognizer.model).encoder
        encoder = recognizer.model.model.encoder.to(device, torch.bfloat16)
        for mode, batch in product(arguments.modes, arguments.batches):
            runs[mode, batch, name] = prepared(encoder, mode, batch)
            print(f"{mode}, {batch}, {name}: ready", flush=True)
    while arguments.wait is not None and not arguments.wait.exists():
        time.sleep(0.2)
    rows = []
    for mode, batch in product(arguments.modes, arguments.batches):
        times = measured(
            {name: runs[mode, batch, name] for name in arguments.encoders}, arguments.rounds, arguments.repeats
        )
        for name, each in times.items():
            speedup = times["dense"] / each if "dense" in times else None
            rows.append({"mode": mode, "batch": batch, "encoder": name, "seconds": each, "speedup": speedup})
            print(rows[-1], flush=True)
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
    print(
        write_results(
            "encoder-gpu" if device == "cuda" else "encoder-without-gpu",
            {"settings": settings, "parameters": parameters, "rows": rows},
        )
    )


if __name__ == "__main__":
    main()
