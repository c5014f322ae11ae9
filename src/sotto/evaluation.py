"""One or two checkpoints on the same clips (`sotto evaluate`), and their tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from sotto.data import DataConfig, open_data
from sotto.decoding import Decoding
from sotto.distribution import processes
from sotto.measurement import evaluate, skipped_lines
from sotto.metrics.errors import Comparison, ErrorReport, compare
from sotto.metrics.speed import machine
from sotto.opening import open_model, runtime_of
from sotto.report.formats import points, points_interval, rate, rate_interval
from sotto.text import Normalizer


@dataclass(frozen=True)
class EvaluationResult:
    """Error reports by checkpoint, in the order asked; with two of them the comparison, first minus second.

    `decodings` says by checkpoint what computed it, and how it decoded.
    """

    reports: dict[str, ErrorReport]
    comparison: Comparison | None
    decodings: dict[str, str]
    skipped: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it, with the machine."""
        return {
            "models": {
                name: {**report.to_dict(), "decoding": self.decodings[name]} for name, report in self.reports.items()
            },
            "comparison": self.comparison.to_dict() if self.comparison else None,
            "skipped": list(self.skipped),
            "machine": machine(),
        }


def evaluate_models(
    names: Sequence[str], data: DataConfig, decoding: Decoding, normalizer: Normalizer
) -> EvaluationResult:
    """Measure each checkpoint on `data`; the first is compared against the second where there are two."""
    reports: dict[str, ErrorReport] = {}
    decodings: dict[str, str] = {}
    skipped: dict[str, None] = {}
    for name in names:
        recognizer = open_model(name, device=processes().device)
        source = open_data(data, sampling_rate=recognizer.sampling_rate)
        reports[name] = evaluate(recognizer, source, decoding, normalizer)
        decodings[name] = f"{runtime_of(name)}, {decoding.describe()}"
        skipped |= dict.fromkeys(skipped_lines(source))
    ordered = list(reports.values())
    comparison = compare(ordered[1], ordered[0]) if len(ordered) == 2 else None
    return EvaluationResult(reports, comparison, decodings, tuple(skipped))


def evaluation_table(result: EvaluationResult) -> Table:
    """Rates with their intervals, a column a checkpoint; the definition stands below."""
    first = next(iter(result.reports.values()))
    caption = f"corpus level, {first.clips} clips, 95 % intervals over clips; {first.normalizer}"
    table = Table(caption=caption, caption_justify="left")
    table.add_column("")
    for name in result.reports:
        table.add_column(name, overflow="fold")
    reports = list(result.reports.values())
    table.add_row("WER", *(f"{rate(each.wer)}  ({rate_interval(each.wer_interval)})" for each in reports))
    table.add_row("CER", *(f"{rate(each.cer)}  ({rate_interval(each.cer_interval)})" for each in reports))
    table.add_row(
        "substitutions, deletions, insertions",
        *(f"{each.substitutions}, {each.deletions}, {each.insertions} of {each.reference_words}" for each in reports),
    )
    table.add_row("decoding", *result.decodings.values())
    table.add_row("clips with a repetition loop", *(rate(each.repetition_rate) for each in reports))
    if result.comparison is not None:
        difference = result.comparison
        table.add_row(
            "WER difference, paired",
            f"{points(difference.wer_difference)}  ({points_interval(difference.wer_interval)})",
        )
    return table


def worst_table(result: EvaluationResult, count: int) -> Table:
    """The clips of the first checkpoint that add most errors."""
    name, report = next(iter(result.reports.items()))
    table = Table(title=f"worst clips of {name}", show_lines=True)
    for heading in ("clip", "reference", "hypothesis", "errors"):
        table.add_column(heading, overflow="fold")
    for clip in report.worst(count):
        table.add_row(clip.name, clip.reference, clip.hypothesis, str(clip.word_edits))
    return table
