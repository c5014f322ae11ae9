"""WER against encoder parameters for every way of choosing ranks.

    python benchmarks/low_rank_pareto.py --test runs/digit-strings --name digits
    python benchmarks/low_rank_pareto.py --model benchmarks/reference/NAME --calibration CORPUS/... --test CORPUS/... \\
        --language en --normalizer english --shares 0.8 0.6 0.5 0.4 --name NAME

Without `--shares` thresholds are run first; every other way gets the encoder size that they led to as its budget, so
that rows of one size compare. With them, every way that takes a budget gets each share. Differences are paired over the
same clips, with 95 % intervals.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from results_file import write_results
from sotto.checkpoint import Recognizer, load
from sotto.data import DataConfig, open_data
from sotto.decoding import Decoding
from sotto.demo import DEMO_RECIPE
from sotto.measurement import evaluate
from sotto.methods import LowRank, StepContext, methods
from sotto.metrics.cost import count_parameters, encoder_flops
from sotto.metrics.errors import ErrorReport, compare
from sotto.report.formats import points, rate
from sotto.text import Normalizer, get_normalizer

DEMO = DEMO_RECIPE.parent
THRESHOLDS = [(0.999, 0.999), (0.99, 0.999), (0.99, 0.995), (0.98, 0.98), (0.95, 0.95), (0.9, 0.9)]


@dataclass(frozen=True)
class Bench:
    """The base, the clips, and how they are written down and compared."""

    base: Recognizer
    calibration: DataConfig
    test: DataConfig
    decoding: Decoding
    normalizer: Normalizer

    def compressed(self, config: LowRank) -> Recognizer:
        recognizer = self.base.copy()
        clips = open_data(self.calibration, sampling_rate=self.base.sampling_rate)
        methods.handler(config)(recognizer, config, StepContext(Path(), calibration=clips))
        return recognizer

    def errors_of(self, recognizer: Recognizer) -> ErrorReport:
        clips = open_data(self.test, sampling_rate=recognizer.sampling_rate)
        return evaluate(recognizer, clips, self.decoding, self.normalizer)

    def sizes_of(self, recognizer: Recognizer) -> tuple[float, float]:
        """Parameters and FLOPs of the encoder, as shares of the base's."""
        frames = self.base.family.window_frames
        flops = encoder_flops(recognizer.model, frames) / encoder_flops(self.base.model, frames)
        return count_parameters(recognizer.model).encoder / count_parameters(self.base.model).encoder, flops


def ways(multiple: int) -> dict[str, LowRank]:
    """The ways that take a budget; `parameters` is filled in."""
    budget = LowRank(parameters=0.5, rank_multiple=multiple)
    return {
        "budget": budget,
        "budget, sequential": replace(budget, sequential=True),
        "budget, relative": replace(budget, weighting="relative"),
        "budget, sensitivity": replace(budget, weighting="sensitivity"),
        "weight SVD, sensitivity ranks": replace(budget, weighting="sensitivity", basis="weights"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(DEMO / "model"))
    parser.add_argument("--calibration", default=str(DEMO / "clips" / "calibration"))
    parser.add_argument("--samples", type=int, help="calibration clips to draw")
    parser.add_argument("--test", default=str(DEMO / "clips" / "test"))
    parser.add_argument("--language", default="en")
    parser.add_argument("--normalizer", default="basic")
    parser.add_argument("--shares", type=float, nargs="*", default=[])
    parser.add_argument("--multiple", type=int, default=8)
    parser.add_argument("--name", required=True, help="of the file in results/")
    arguments = parser.parse_args()
    base = load(arguments.model)
    base.language = arguments.language
    bench = Bench(
        base,
        DataConfig(arguments.calibration, samples=arguments.samples),
        DataConfig(arguments.test),
        Decoding(language=arguments.language, batch_size=16),
        get_normalizer(arguments.normalizer),
    )
    before = bench.errors_of(bench.base)
    rows = [row_of("dense", (1.0, 1.0), before, None, None)]
    for row in by_shares(bench, before, arguments) if arguments.shares else by_thresholds(bench, before, arguments):
        rows.append(row)
        Console().print(describe(row))
    show(rows)
    print("\n".join(markdown(rows)))
    definition = {"clips": before.clips, "normalizer": before.normalizer, "decoding": bench.decoding.describe()}
    data = {"model": Path(arguments.model).name, "test": "/".join(Path(arguments.test).parts[-2:])}
    print(write_results(f"low-rank-pareto-{arguments.name}", {**data, **definition, "rows": rows}))


def by_thresholds(bench: Bench, before: ErrorReport, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Thresholds, and the other ways at the sizes that they led to."""
    for attention, mlp in THRESHOLDS:
        recognizer = bench.compressed(LowRank(attention=attention, mlp=mlp, rank_multiple=arguments.multiple))
        sizes, thresholds = bench.sizes_of(recognizer), bench.errors_of(recognizer)
        yield row_of(f"thresholds {attention:g}/{mlp:g}", sizes, thresholds, compare(before, thresholds), None)
        for name, way in ways(arguments.multiple).items():
            recognizer = bench.compressed(replace(way, parameters=sizes[0]))
            report = bench.errors_of(recognizer)
            against = compare(thresholds, report)
            yield row_of(name, bench.sizes_of(recognizer), report, compare(before, report), against)


def by_shares(bench: Bench, before: ErrorReport, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every way that takes a budget, at each share of the encoder."""
    for share in arguments.shares:
        measured: dict[str, ErrorReport] = {}
        for name, way in ways(arguments.multiple).items():
            recognizer = bench.compressed(replace(way, parameters=share))
            made = digest(recognizer)  # a budget alone takes the better one of the two weightings
            measured[made] = report = measured.get(made) or bench.errors_of(recognizer)
            yield row_of(name, bench.sizes_of(recognizer), report, compare(before, report), None)


def digest(recognizer: Recognizer) -> str:
    """The same for the same weights."""
    found = hashlib.sha256()
    for weight in recognizer.model.state_dict().values():
        found.update(weight.numpy().tobytes())
    return found.hexdigest()


def row_of(name: str, sizes: tuple[float, float], report: ErrorReport, base: Any, thresholds: Any) -> dict[str, Any]:
    return {
        "way": name,
        "encoder_parameters": sizes[0],
        "encoder_flops": sizes[1],
        "wer": report.wer,
        "wer_interval": [report.wer_interval.low, report.wer_interval.high],
        "against_dense": difference(base),
        "against_thresholds": difference(thresholds),
    }


def difference(comparison: Any) -> dict[str, Any] | None:
    if comparison is None:
        return None
    interval = comparison.wer_interval
    return {"wer": comparison.wer_difference, "interval": [interval.low, interval.high]}


def describe(row: dict[str, Any]) -> str:
    return f"{row['way']}: encoder {row['encoder_parameters']:.1%}, WER {row['wer']:.2%}"


def show(rows: list[dict[str, Any]]) -> None:
    table = Table(caption="differences in WER are paired, with 95 % intervals")
    for heading in ("way", "encoder", "FLOPs", "WER", "against dense", "against thresholds"):
        table.add_column(heading)
    for row in rows:
        shown = [signed(row[key]) for key in ("against_dense", "against_thresholds")]
        sizes = (f"{row['encoder_parameters']:.0%}", f"{row['encoder_flops']:.0%}", rate(row["wer"]))
        table.add_row(row["way"], *sizes, *shown)
    Console(width=120).print(table)


def markdown(rows: list[dict[str, Any]]) -> list[str]:
    """The same as rows of a table in the docs."""
    lines = []
    for row in rows:
        differences = [signed(row[key]) for key in ("against_dense", "against_thresholds")]
        sizes = [f"{100 * row[key]:.0f} %" for key in ("encoder_parameters", "encoder_flops")]
        lines.append(f"| {' | '.join([row['way'], *sizes, rate(row['wer']), *differences])} |")
    return lines


def signed(value: dict[str, Any] | None) -> str:
    if value is None:
        return ""
    low, high = (100 * edge for edge in value["interval"])
    return f"{points(value['wer'])} ({low:+.1f} to {high:+.1f})"


if __name__ == "__main__":
    main()
