"""Dense and low-rank Whisper at true shapes (random weights): the realised encoder speed-up beside the FLOP ratio.

    python benchmarks/encoder_speed.py --shapes tiny base small --fractions 0.5 0.33 0.25

Saves a dense model and one for each rank (a fraction of the width, on all six linears of every encoder layer), and
measures them with `sotto benchmark`: each in its own process, in turn.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from results_file import write_results
from shapes import factor_at_random, random_whisper
from sotto.calibration import places
from sotto.checkpoint import Recognizer
from sotto.configuration import to_plain
from sotto.methods.factoring import reduce_layer
from sotto.report.side_by_side import side_by_side_tables
from sotto.side_by_side import SideBySide, Timing, benchmark


def factored(shape: str, fraction: float) -> Recognizer:
    """Every linear of the encoder at rank `fraction` of the width, to a multiple of 16, with random factors."""
    recognizer = random_whisper(shape)
    rank = round(fraction * recognizer.model.config.d_model / 16) * 16
    for stack, index, linear in list(places(recognizer, ("encoder",))):
        factor_at_random(recognizer, stack, index, linear, rank)
    stack = recognizer.architecture.stack("encoder")
    for index in range(recognizer.model.config.encoder_layers):
        reduce_layer(recognizer, stack, index, recognizer.model.config.max_source_positions)
    return recognizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["tiny", "base", "small"])
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.5, 0.33, 0.25, 0.125])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()
    timing = Timing(arguments.rounds, arguments.repeats, dtype=arguments.dtype)
    results = {}
    for shape in arguments.shapes:
        with tempfile.TemporaryDirectory() as folder:
            names = [str(random_whisper(shape).save(Path(folder) / f"{shape}-dense"))]
            for fraction in arguments.fractions:
                names.append(str(factored(shape, fraction).save(Path(folder) / f"{shape}-{fraction:g}d")))
            rows = benchmark(names, timing)
        Console().print(*side_by_side_tables(rows))
        results[shape] = [plain_row(row) for row in rows]
        print(write_results(f"encoder-speed-{arguments.dtype}", {"timing": to_plain(timing), "shapes": results}))


def plain_row(row: SideBySide) -> dict[str, Any]:
    """A row as JSON takes it, without its layers and without the temporary folder."""
    numbers = replace(row.numbers, name=Path(row.numbers.name).name, layers=())
    plain: dict[str, Any] = to_plain(replace(row, numbers=numbers))
    return plain


if __name__ == "__main__":
    main()
