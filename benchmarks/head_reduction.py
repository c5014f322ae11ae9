"""Narrower heads and factored linears at the same encoder FLOPs: WER, and how far the model moves.

    python benchmarks/head_reduction.py --model benchmarks/reference/NAME --calibration CORPUS/... --test CORPUS/... \\
        --language en --normalizer english --shares 0.95 0.88 0.8 --name NAME

At each share of the encoder's FLOPs: `head_reduction` alone, `low_rank` alone, and half of the saving by the one and
the rest by the other; before them one head dimension for all layers, three quarters and a half of what it was.
Differences are paired over the same clips, with 95 % intervals; the divergence is from the base, over test windows.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from low_rank_pareto import Bench, difference, signed
from results_file import write_results
from sotto.checkpoint import Recognizer, load
from sotto.data import DataConfig, open_data
from sotto.decoding import Decoding
from sotto.methods import HeadReduction, LowRank, StepContext, methods
from sotto.methods.divergence import divergence, transcripts_of
from sotto.metrics.errors import compare
from sotto.report.formats import rate
from sotto.text import get_normalizer

WINDOWS = 32


def compressed(bench: Bench, *steps: Any) -> Recognizer:
    recognizer = bench.base.copy()
    clips = open_data(bench.calibration, sampling_rate=recognizer.sampling_rate)
    for step in steps:
        methods.handler(step)(recognizer, step, StepContext(Path(), calibration=clips))
    return recognizer


def ways(bench: Bench, shares: list[float], multiple: int) -> Iterator[tuple[str, Recognizer]]:
    (stack,) = (stack for stack in bench.base.architecture.stacks if stack.name == "encoder")
    head_dim = stack.dimensions(bench.base.model.config).head_dim
    for channels in (3 * head_dim // 4, head_dim // 2):
        yield f"heads of {channels} channels", compressed(bench, HeadReduction(head_dim=channels))
    for share in shares:
        yield f"heads, {share:.0%}", compressed(bench, HeadReduction(flops=share, multiple=multiple))
        yield f"low rank, {share:.0%}", compressed(bench, LowRank(flops=share, rank_multiple=multiple))
        half = HeadReduction(flops=(1 + share) / 2, multiple=multiple)
        reached = bench.sizes_of(compressed(bench, half))[1]
        both = (half, LowRank(flops=share / reached, rank_multiple=multiple))
        yield f"heads, then low rank, {share:.0%}", compressed(bench, *both)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--samples", type=int, default=64, help="calibration clips to draw")
    parser.add_argument("--test", required=True)
    parser.add_argument("--clips", type=int, help="test clips to draw")
    parser.add_argument("--language", default="en")
    parser.add_argument("--normalizer", default="basic")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.95, 0.88, 0.8])
    parser.add_argument("--multiple", type=int, default=8)
    parser.add_argument("--name", required=True, help="of the file in results/")
    arguments = parser.parse_args()
    base = load(arguments.model)
    base.language = arguments.language
    bench = Bench(
        base,
        DataConfig(arguments.calibration, samples=arguments.samples),
        DataConfig(arguments.test, samples=arguments.clips),
        Decoding(language=arguments.language, batch_size=16),
        get_normalizer(arguments.normalizer),
    )
    before = bench.errors_of(base)
    heard = open_data(bench.test, sampling_rate=base.sampling_rate)
    transcripts = transcripts_of(base, heard, WINDOWS, "transcripts of the base")
    rows = []
    for name, recognizer in ways(bench, arguments.shares, arguments.multiple):
        report = bench.errors_of(recognizer)
        parameters, flops = bench.sizes_of(recognizer)
        rows.append(
            {
                "way": name,
                "encoder_parameters": parameters,
                "encoder_flops": flops,
                "divergence": divergence(recognizer, base, transcripts),
                "wer": report.wer,
                "against_dense": difference(compare(before, report)),
            }
        )
        print(markdown(rows[-1]), flush=True)
    data = {"model": Path(arguments.model).name, "test": "/".join(Path(arguments.test).parts[-2:])}
    definition = {"clips": before.clips, "normalizer": before.normalizer, "wer": before.wer}
    print(write_results(f"head-reduction-{arguments.name}", {**data, **definition, "rows": rows}))


def markdown(row: dict[str, Any]) -> str:
    """As a row of a table in the docs."""
    sizes = [f"{100 * row[key]:.0f} %" for key in ("encoder_parameters", "encoder_flops")]
    cells = [row["way"], *sizes, f"{row['divergence']:.2g}", rate(row["wer"]), signed(row["against_dense"])]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
