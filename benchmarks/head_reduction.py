"""Narrower heads and factored linears at the same encoder FLOPs, or the same time: WER, and how far the model moves.

    python benchmarks/head_reduction.py --model benchmarks/reference/NAME --calibration CORPUS/... --test CORPUS/... \\
        --language en --normalizer english --shares 0.95 0.88 0.8 --name NAME
    python benchmarks/head_reduction.py ... --shares --times 0.9 0.8 --runtimes torch onnx-int8 --name NAME-time

At each share of the encoder's FLOPs: `head_reduction` alone, `low_rank` alone, and half of the saving by the one and
the rest by the other; before them one head dimension for all layers, three quarters and a half of what it was. At each
share of its time in a runtime, as measured on this machine: either alone, with the share that was then found, encoders
in turn; a budget that cannot be met says so. Differences are paired over the same clips, with 95 % intervals; the
divergence is from the base, over test windows.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from typing import Any

from low_rank_pareto import Bench, difference, signed
from results_file import write_results
from sotto.checkpoint import Recognizer, load
from sotto.data import DataConfig, open_data
from sotto.decoding import Decoding
from sotto.errors import SottoError
from sotto.exports.runtimes import RUNTIMES, RuntimeName
from sotto.methods import HeadReduction, LowRank, StepContext, methods
from sotto.methods.divergence import divergence, transcripts_of
from sotto.metrics.errors import ErrorReport, compare
from sotto.report.formats import rate
from sotto.text import get_normalizer
from time_budget import ratios

WINDOWS = 32


def compressed(bench: Bench, *steps: Any) -> Recognizer:
    recognizer = bench.base.copy()
    clips = open_data(bench.calibration, sampling_rate=recognizer.sampling_rate)
    for step in steps:
        methods.handler(step)(recognizer, step, StepContext(Path(), calibration=clips))
    return recognizer


def of_flops(bench: Bench, shares: list[float], multiple: int) -> Iterator[tuple[str, Recognizer]]:
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


def of_time(bench: Bench, times: list[float], runtime: RuntimeName, multiple: int) -> Iterator[tuple[str, Any]]:
    """What a budget leaves, or the SottoError that refuses it."""
    for share in times:
        for name, step in (
            ("heads", HeadReduction(time=share, runtime=runtime, multiple=multiple)),
            ("low rank", LowRank(time=share, runtime=runtime, rank_multiple=multiple)),
        ):
            try:
                found: Any = compressed(bench, step)
            except SottoError as error:
                found = error
            yield f"{name}, {share:.0%} of the time in {runtime}", found


@dataclass(frozen=True)
class Base:
    """The base's errors and transcripts, to which all rows are held."""

    bench: Bench
    before: ErrorReport
    transcripts: Any

    def row(self, name: str, recognizer: Recognizer) -> dict[str, Any]:
        report = self.bench.errors_of(recognizer)
        parameters, flops = self.bench.sizes_of(recognizer)
        return {
            "way": name,
            "encoder_parameters": parameters,
            "encoder_flops": flops,
            "divergence": divergence(recognizer, self.bench.base, self.transcripts),
            "wer": report.wer,
            "against_dense": difference(compare(self.before, report)),
        }

    def timed_row(self, name: str, found: Any, runtime: RuntimeName, rounds: int) -> dict[str, Any]:
        """With the share of the base's time that was found, its median and middle half; or why there is none."""
        if isinstance(found, SottoError):
            return {"way": name, "refused": str(found)}
        lower, median, upper = quantiles(ratios(self.bench.base, found, RUNTIMES[runtime], rounds), n=4)
        return self.row(name, found) | {"time": {"found": median, "quarters": [lower, upper]}}


def rows(base: Base, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    if arguments.shares:
        for name, recognizer in of_flops(base.bench, arguments.shares, arguments.multiple):
            yield base.row(name, recognizer)
    for runtime in arguments.runtimes:
        for name, found in of_time(base.bench, arguments.times, runtime, arguments.multiple):
            yield base.timed_row(name, found, runtime, arguments.rounds)


def main() -> None:
    arguments = parsed()
    model = load(arguments.model)
    model.language = arguments.language
    bench = Bench(
        model,
        DataConfig(arguments.calibration, samples=arguments.samples),
        DataConfig(arguments.test, samples=arguments.clips),
        Decoding(language=arguments.language, batch_size=16),
        get_normalizer(arguments.normalizer),
    )
    heard = open_data(bench.test, sampling_rate=model.sampling_rate)
    transcripts = transcripts_of(model, heard, WINDOWS, "transcripts of the base")
    before = bench.errors_of(model)
    found = []
    for row in rows(Base(bench, before, transcripts), arguments):
        found.append(row)
        print(markdown(row), flush=True)
    data = {"model": Path(arguments.model).name, "test": "/".join(Path(arguments.test).parts[-2:])}
    definition = {"clips": before.clips, "normalizer": before.normalizer, "wer": before.wer}
    print(write_results(f"head-reduction-{arguments.name}", {**data, **definition, "rows": found}))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--samples", type=int, default=64, help="calibration clips to draw")
    parser.add_argument("--test", required=True)
    parser.add_argument("--clips", type=int, help="test clips to draw")
    parser.add_argument("--language", default="en")
    parser.add_argument("--normalizer", default="basic")
    parser.add_argument("--shares", type=float, nargs="*", default=[0.95, 0.88, 0.8], help="of FLOPs")
    parser.add_argument("--times", type=float, nargs="*", default=[], help="shares of the time that is taken")
    parser.add_argument("--runtimes", nargs="*", default=["torch"], choices=RUNTIMES, help="that time is taken in")
    parser.add_argument("--rounds", type=int, default=15, help="of timing what was found")
    parser.add_argument("--multiple", type=int, default=8)
    parser.add_argument("--name", required=True, help="of the file in results/")
    return parser.parse_args()


def markdown(row: dict[str, Any]) -> str:
    """As a row of a table in the docs."""
    if "refused" in row:
        return f"| {row['way']} | {row['refused']} |"
    sizes = [f"{100 * row[key]:.0f} %" for key in ("encoder_parameters", "encoder_flops")]
    if "time" in row:
        sizes.append(f"{100 * row['time']['found']:.0f} %")
    cells = [row["way"], *sizes, f"{row['divergence']:.2g}", rate(row["wer"]), signed(row["against_dense"])]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
