"""What calibration costs beside the plain encoder forward, and what memory it takes, at true shapes.

    python benchmarks/calibration.py --shape large-v3 --clips 4 16
    python benchmarks/calibration.py --shape small --clips 4 16

Random weights, windows of 30 s of noise. The first windows are run plainly and while being listened to, in turn; the
ratio is the median of the per-window ratios. Each number of clips has a process of its own; memory is the resident
memory at its peak, less what was resident once the model was loaded and had run one window.
"""

from __future__ import annotations

import argparse
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
import psutil
import torch

from results_file import write_results
from shapes import random_whisper
from sotto.calibration import listening, prepare
from sotto.methods import LowRank
from sotto.methods.factoring import factor_at_once
from sotto.methods.rank_costs import encoder_costs
from sotto.methods.ranks import ranks_by_budget, relative_errors
from sotto.metrics.speed import MemoryMeter

COMPARED = 4  # windows that are run plainly too


@torch.inference_mode()
def measure(shape: str, clips: int, factor: bool) -> dict[str, Any]:
    """Seconds per phase and peak memory of one calibration over `clips` windows."""
    recognizer = random_whisper(shape, decoder_layers=1)
    encoder = recognizer.model.get_encoder()
    weights = sum(parameter.numel() * parameter.element_size() for parameter in encoder.parameters())
    noise = np.random.default_rng(0)
    family = recognizer.family
    family.encode(family.inputs([window(noise)]))
    loaded = psutil.Process().memory_info().rss
    plain, heard, extracting = [], [], []
    with MemoryMeter() as meter:
        calibration, listeners = prepare(recognizer, ("encoder",))
        for index in range(clips):
            extracting.append(timed(lambda: family.inputs([window(noise)])))
            inputs = family.inputs([window(noise)])
            if index < COMPARED:
                plain.append(timed(lambda inputs=inputs: family.encode(inputs)))
            with listening(listeners):
                heard.append(timed(lambda inputs=inputs: family.encode(inputs)))
    del listeners, inputs  # as after a calibration: the listeners would keep the moments
    phases = {}
    with MemoryMeter() as meter_of_all:
        if factor:
            start = time.perf_counter()
            principals = calibration.principals()
            phases["directions"] = time.perf_counter() - start
            start = time.perf_counter()
            config = LowRank(parameters=0.5, weighting="relative")
            ranks = ranks_by_budget(config, encoder_costs(recognizer, config, principals), relative_errors(principals))
            phases["ranks"] = time.perf_counter() - start
            start = time.perf_counter()
            factor_at_once(recognizer, config, ranks, principals)
            phases["factors"] = time.perf_counter() - start
    return {
        "clips": clips,
        "features_seconds": statistics.median(extracting),
        "plain_seconds": statistics.median(plain),
        "calibration_seconds": statistics.median(heard),
        "ratio": statistics.median(after / before for before, after in zip(plain, heard, strict=False)),
        "weights_bytes": weights,
        "peak_bytes_beyond_weights": meter.peak - loaded,
        "peak_bytes_to_the_end": max(meter.peak, meter_of_all.peak) - loaded,
        "phases_seconds": phases,
    }


def window(noise: np.random.Generator) -> np.ndarray[Any, np.dtype[np.float32]]:
    return (0.1 * noise.standard_normal(30 * 16_000)).astype(np.float32)


def timed(work: Any) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="small")
    parser.add_argument("--clips", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--factor", action="store_true", help="go on to directions and factors, and time them")
    arguments = parser.parse_args()
    rows = []
    for clips in arguments.clips:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            rows.append(process.submit(measure, arguments.shape, clips, arguments.factor).result())
        row = rows[-1]
        phases = "".join(f", {name} {seconds:.0f} s" for name, seconds in row["phases_seconds"].items())
        print(
            f"{arguments.shape}, {clips} clips: plain {row['plain_seconds']:.2f} s, calibrating "
            f"{row['calibration_seconds']:.2f} s a window, ratio {row['ratio']:.3f}, "
            f"{row['peak_bytes_beyond_weights'] / 1e9:.2f} GB beyond the weights, "
            f"{row['peak_bytes_to_the_end'] / 1e9:.2f} GB to the end" + phases
        )
    print(write_results(f"calibration-{arguments.shape}", {"shape": arguments.shape, "runs": rows}))


if __name__ == "__main__":
    main()
