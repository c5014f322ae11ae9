"""WER against encoder parameters for every way of choosing ranks, on the demo model and strings of digits.

    python benchmarks/low_rank_pareto.py --calibration CORPUS/... --test runs/digit-strings

Thresholds are run first; every other way gets the encoder size that they led to as its budget, so that rows of one
size compare. Differences are paired over the same clips, with 95 % intervals.
"""

from __future__ import annotations

import argparse
import copy
from dataclasses import replace
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
from sotto.text import get_normalizer

DEMO = DEMO_RECIPE.parent
THRESHOLDS = [(0.999, 0.999), (0.99, 0.999), (0.99, 0.995), (0.98, 0.98), (0.95, 0.95), (0.9, 0.9)]
DECODING = Decoding(language="en", batch_size=16)
NORMALIZER = get_normalizer("basic")


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


def compressed(base: Recognizer, config: LowRank, calibration: str) -> Recognizer:
    recognizer = copy.deepcopy(base)
    clips = open_data(DataConfig(calibration), sampling_rate=base.sampling_rate)
    methods.handler(config)(recognizer, config, StepContext(Path(), calibration=clips))
    return recognizer


def errors_of(recognizer: Recognizer, test: str) -> ErrorReport:
    clips = open_data(DataConfig(test), sampling_rate=recognizer.sampling_rate)
    return evaluate(recognizer, clips, DECODING, NORMALIZER)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(DEMO / "model"))
    parser.add_argument("--calibration", default=str(DEMO / "clips" / "calibration"))
    parser.add_argument("--test", default=str(DEMO / "clips" / "test"))
    parser.add_argument("--multiple", type=int, default=8)
    arguments = parser.parse_args()
    base = load(arguments.model)
    dense, dense_flops = count_parameters(base.model).encoder, encoder_flops(base.model)
    before = errors_of(base, arguments.test)
    rows: list[dict[str, Any]] = [row_of("dense", 1.0, 1.0, before, None, None)]
    for attention, mlp in THRESHOLDS:
        config = LowRank(attention=attention, mlp=mlp, rank_multiple=arguments.multiple)
        reports: dict[str, ErrorReport] = {}
        share = 1.0
        for name, way in {f"thresholds {attention:g}/{mlp:g}": config, **ways(arguments.multiple)}.items():
            asked = way if way is config else replace(way, parameters=share)
            recognizer = compressed(base, asked, arguments.calibration)
            size = count_parameters(recognizer.model).encoder / dense
            share = size if way is config else share
            reports[name] = errors_of(recognizer, arguments.test)
            flops = encoder_flops(recognizer.model) / dense_flops
            against = None if way is config else compare(next(iter(reports.values())), reports[name])
            rows.append(row_of(name, size, flops, reports[name], compare(before, reports[name]), against))
            Console().print(describe(rows[-1]))
    show(rows)
    print("\n".join(markdown(rows)))
    values = {"clips": before.clips, "normalizer": before.normalizer, "decoding": DECODING.describe(), "rows": rows}
    print(write_results("low-rank-pareto-digits", values))


def row_of(name: str, size: float, flops: float, report: ErrorReport, base: Any, thresholds: Any) -> dict[str, Any]:
    return {
        "way": name,
        "encoder_parameters": size,
        "encoder_flops": flops,
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
