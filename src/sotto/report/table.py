"""The numbers of a run side by side: the result in a sentence, the rows before/after, tables for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain, groupby, repeat
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from sotto.errors import SottoError
from sotto.metrics.errors import ErrorReport
from sotto.metrics.speed import LatencyReport
from sotto.report.formats import (
    count,
    decimal,
    flops,
    latency,
    points,
    points_interval,
    rate,
    rate_interval,
    ratio,
    share,
    size,
)
from sotto.report.numbers import LayerNumbers, ModelNumbers, RunNumbers

WIDTH = 100
"""columns of a terminal that the tables fit in"""
LABEL_WIDTH = 19
NOT_MEASURED = "–"
PARENTHESES = (
    "In parentheses: the 95 % interval of a rate, the share of the reference words for edits, and otherwise the "
    "comparison with the base."
)


@dataclass(frozen=True)
class Cell:
    """A number, and in smaller letters its interval or what part of the base's it is."""

    value: str
    detail: str = ""


@dataclass(frozen=True)
class Row:
    """One number of every model."""

    label: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Group:
    """Rows that belong together."""

    name: str
    rows: tuple[Row, ...]


Measure = Callable[[ModelNumbers, ModelNumbers], Cell | None]
"""(model, base) -> what stands in the table; None where it was not measured"""


def ends(numbers: RunNumbers) -> tuple[ModelNumbers, ModelNumbers]:
    """The base and the final model, one and the same where the run has no step. Raises SottoError without any."""
    if not numbers.models:
        raise SottoError(f"the run '{numbers.title}' has no model in its numbers; measure at least its base")
    return numbers.models[0], numbers.models[-1]


def summary(numbers: RunNumbers) -> str:
    """The result in one plain sentence. Raises SottoError where there is no model."""
    base, final = ends(numbers)
    if len(numbers.models) > 1:
        return f"{size_clause(base, final)}{window_clause(base, final)}; {error_clause(base.errors, final)}."
    total, encoder = base.parameters.total, base.parameters.encoder
    inside = "" if encoder == total else f", {count(encoder)} of them in the encoder"
    return f"The model has {count(total)} parameters{inside}; {rate_clause('its WER', base.errors)}."


def size_clause(base: ModelNumbers, final: ModelNumbers) -> str:
    """What became smaller, or larger. Bytes and zeros are the result where no parameter was taken out."""
    before, after = base.parameters, final.parameters
    parts = {"encoder": (after.encoder, before.encoder), "decoder": (after.decoder, before.decoder)}
    changed = [f"{name} has {share(*pair)} of its parameters" for name, pair in parts.items() if pair[0] != pair[1]]
    if changed:
        return f"The {' and the '.join(changed)}"
    clauses = []
    if base.bytes_on_disk and final.bytes_on_disk and differs(final.bytes_on_disk, base.bytes_on_disk):
        clauses.append(f"the weights take {share(final.bytes_on_disk, base.bytes_on_disk)} of their bytes on disk")
    is_quantized = any(linear.bits for linear in final.layers)  # rounding to zero is no pruning
    if differs(after.nonzero, before.nonzero) and not is_quantized:
        clauses.append(f"{share(after.nonzero, after.total)} of the parameters are not zero")
    clause = " and ".join(clauses) or "the model is as large as its base"
    return clause[0].upper() + clause[1:]


def window_clause(base: ModelNumbers, final: ModelNumbers) -> str:
    if base.window_seconds is None or final.window_seconds is None or base.window_seconds == final.window_seconds:
        return ""
    return f", with windows of {final.window_seconds:g} s instead of {base.window_seconds:g}"


def differs(after: int, before: int) -> bool:
    """By more than 1 %: a header in a file and a weight that happens to become 0 are not a result."""
    return abs(after - before) > 0.01 * before


def error_clause(before: ErrorReport | None, final: ModelNumbers) -> str:
    after = final.errors
    if before is None and after is None:
        return "WER was not measured"
    if before is None or after is None:
        return f"{rate_clause('the WER of the base', before)}, {rate_clause('that of the result', after)}"
    moved = f"went from {rate(before.wer)} to {rate(after.wer)}"
    if rate(before.wer) == rate(after.wer):
        moved = f"stayed at {rate(after.wer)}"
    if final.comparison is None:
        return f"WER {moved} ({points(after.wer - before.wer)} points)"
    change, interval = points(final.comparison.wer_difference), points_interval(final.comparison.wer_interval)
    return f"WER {moved} ({change} points, 95 % interval {interval})"


def rate_clause(name: str, errors: ErrorReport | None) -> str:
    if errors is None:
        return f"{name} was not measured"
    return f"{name} is {rate(errors.wer)} (95 % interval {rate_interval(errors.wer_interval)} %)"


def groups(numbers: RunNumbers) -> tuple[Group, ...]:
    """The table before/after: one cell for each model in every row; rows without any number are left out."""
    base, _ = ends(numbers)
    found = []
    for name, measures in MEASURES.items():
        rows = []
        for label, measure in measures.items():
            cells = [measure(model, base) for model in numbers.models]
            if any(cell and cell.value for cell in cells):
                rows.append(Row(label, tuple(cell or Cell(NOT_MEASURED) for cell in cells)))
        if rows:
            found.append(Group(name, tuple(rows)))
    return tuple(found)


def exports(numbers: RunNumbers) -> tuple[Row, ...]:
    """A row for each export, with a cell for each of `EXPORT_LABELS`."""
    base, _ = ends(numbers)
    measures = {**MEASURES["Size"], **MEASURES["Errors"]}
    return tuple(
        Row(each.name, tuple(measures[label](each, base) or Cell(NOT_MEASURED) for label in EXPORT_LABELS))
        for each in numbers.exports
    )


def relative(
    number: Callable[[ModelNumbers], float | None],
    write: Callable[[Any], str],
    against: Callable[[float, float], str] = share,
) -> Measure:
    """A measure that is compared with the base's. What neither of the two has any of counts as not measured."""

    def measure(model: ModelNumbers, base: ModelNumbers) -> Cell | None:
        own, before = number(model), number(base)
        if own is None or (own == 0 and not before):
            return None
        return Cell(write(own), against(own, before) if before and model is not base else "")

    return measure


def error_rate(model: ModelNumbers, kind: str) -> Cell | None:
    """`kind`: wer or cer, with its interval."""
    if model.errors is None:
        return None
    return Cell(rate(getattr(model.errors, kind)), rate_interval(getattr(model.errors, f"{kind}_interval")))


def difference(model: ModelNumbers, base: ModelNumbers, kind: str) -> Cell | None:
    """`kind`: wer or cer, against the base's, with the paired interval where there is a comparison."""
    if model is base:
        return Cell("")
    if model.comparison is not None:
        change = getattr(model.comparison, f"{kind}_difference")
        interval = points_interval(getattr(model.comparison, f"{kind}_interval"))
        return Cell(f"{points(change)} points", interval)
    if model.errors is None or base.errors is None:
        return None
    return Cell(f"{points(getattr(model.errors, kind) - getattr(base.errors, kind))} points")


def edits(model: ModelNumbers, kind: str) -> Cell | None:
    """`kind`: substitutions, deletions or insertions, and their share of the reference words."""
    if model.errors is None:
        return None
    number: int = getattr(model.errors, kind)
    return Cell(str(number), rate(number / model.errors.reference_words))


def repetition(model: ModelNumbers) -> Cell | None:
    if model.errors is None:
        return None
    looped = sum(clip.repeated for clip in model.errors.per_clip)
    return Cell(rate(model.errors.repetition_rate), f"{looped} clips" if looped != 1 else "1 clip")


def stage(name: str) -> Measure:
    """Seconds of one stage of a `LatencyReport`."""
    return relative(lambda model: getattr(model.latency, name) if model.latency else None, latency)


MEASURES: Mapping[str, Mapping[str, Measure]] = {
    "Size": {
        "Parameters": relative(lambda model: model.parameters.total, count),
        "Non-zero parameters": relative(lambda model: model.parameters.nonzero, count),
        "Encoder parameters": relative(lambda model: model.parameters.encoder, count),
        "Decoder parameters": relative(lambda model: model.parameters.decoder, count),
        "Weights on disk": relative(lambda model: model.bytes_on_disk, size),
        "Peak memory": relative(lambda model: model.peak_memory, size),
    },
    "Errors": {
        "WER": lambda model, _: error_rate(model, "wer"),
        "WER against base": lambda model, base: difference(model, base, "wer"),
        "CER": lambda model, _: error_rate(model, "cer"),
        "CER against base": lambda model, base: difference(model, base, "cer"),
        "Substitutions": lambda model, _: edits(model, "substitutions"),
        "Deletions": lambda model, _: edits(model, "deletions"),
        "Insertions": lambda model, _: edits(model, "insertions"),
        "Looping hypotheses": lambda model, _: repetition(model),
    },
    "Work and speed": {
        "Encoder FLOPs": relative(lambda model: model.encoder_flops, flops),
        "Decoder FLOPs": relative(lambda model: model.decoder_flops, flops),
        "Feature latency": stage("features"),
        "Encoder latency": stage("encoder"),
        "Decoder latency": stage("decoder"),
        "Total latency": stage("total"),
        "RTFx": relative(lambda model: model.latency.real_time_factor if model.latency else None, decimal, ratio),
    },
}
"""group -> label -> how to get the number; in the order of the table"""
EXPORT_LABELS = ("Weights on disk", "WER", "WER against base", "CER")


def error_basis(numbers: RunNumbers) -> tuple[str, ...]:
    """What the error rates stand on: one sentence, or one for each model where they differ."""

    def basis(errors: ErrorReport) -> str:
        return (
            f"{errors.clips} clips, {errors.reference_words} words and {errors.reference_characters} characters, "
            f"after the normalizer {errors.normalizer}"
        )

    return one_or_each((model.name, basis(model.errors)) for model in numbers.models if model.errors)


def speed_basis(numbers: RunNumbers) -> tuple[str, ...]:
    """How the speed was measured: one sentence, or one for each model where they differ."""

    def basis(report: LatencyReport) -> str:
        return (
            f"median of {report.repeats} runs after {report.warmup} to warm up, batch of {report.batch} × "
            f"{report.audio_seconds:.1f} s of audio, {report.tokens} tokens, {report.device}, {report.dtype}, "
            f"{report.threads} threads"
        )

    return one_or_each((model.name, basis(model.latency)) for model in numbers.models if model.latency)


def one_or_each(sentences: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    named = list(sentences)
    different = dict.fromkeys(sentence for _, sentence in named)
    return tuple(different) if len(different) <= 1 else tuple(f"{name}: {sentence}" for name, sentence in named)


def table(numbers: RunNumbers) -> Table:
    """The models side by side, up to four of them in 100 columns. Raises SottoError where there is no model."""
    found = groups(numbers)
    # A column has a space on either side, and so has the table.
    room = (WIDTH - LABEL_WIDTH - 4) // len(numbers.models) - 2
    shown = framed(numbers.title, legend(numbers))
    shown.add_column("", max_width=LABEL_WIDTH)
    for model in numbers.models:
        shown.add_column(Text(broken(model.name, room)), justify="right", overflow="fold")
    for group in found:
        for row in group.rows:
            fits = all(len(f"{cell.value} ({cell.detail})") <= room for cell in row.cells)
            shown.add_row(row.label, *(joined(cell, " " if fits else "\n") for cell in row.cells))
        shown.add_section()
    return shown


def export_table(numbers: RunNumbers) -> Table:
    """The exports of the last model, one below the other. Raises SottoError where there is no model."""
    shown = framed("Exports", PARENTHESES)
    shown.add_column("Export", no_wrap=True)
    for label in EXPORT_LABELS:
        shown.add_column(label, justify="right")
    for row in exports(numbers):
        shown.add_row(row.label, *(joined(cell, "\n") for cell in row.cells))
    return shown


def framed(title: str, caption: str) -> Table:
    """An empty table; `Text` keeps the brackets of a title from being read as markup."""
    shown = Table(title=Text(title), caption=Text(caption), box=box.SIMPLE_HEAD)
    shown.title_style, shown.caption_style = "bold", "dim"
    shown.title_justify = shown.caption_justify = "left"
    return shown


def joined(cell: Cell, between: str) -> Text:
    return Text.assemble(cell.value, (f"{between}({cell.detail})", "dim") if cell.detail else "")


def broken(name: str, room: int) -> str:
    """A name that is too long for its column goes on below its underscores."""
    return name if len(name) <= room else name.replace("_", "_\n")


def legend(numbers: RunNumbers) -> str:
    lines = [PARENTHESES]
    lines += [f"WER and CER of the corpus: {basis}; {numbers.decoding}." for basis in error_basis(numbers)]
    lines += [f"FLOPs: {basis}." for basis in flops_bases(numbers)]
    lines += [f"Latency: {basis}." for basis in speed_basis(numbers)]
    return "\n".join(lines)


def flops_bases(numbers: RunNumbers) -> tuple[str, ...]:
    """What the FLOPs are of: one sentence, or one for each model where they differ."""
    return one_or_each((model.name, flops_basis(model)) for model in numbers.models)


def flops_basis(model: ModelNumbers) -> str:
    """What audio and how many tokens the FLOPs are of."""
    window = "one window" if model.window_seconds is None else f"one window of {model.window_seconds:g} s"
    if model.decoder_tokens == 0:
        return f"of {window}, though the model takes audio of any length"
    return f"the encoder's of {window}, the decoder's of {model.decoder_tokens} tokens"


def layer_table(model: ModelNumbers) -> Table:
    """Every linear of a model, stack by stack, and all that is none of them."""
    shown = framed(model.name, f"FLOPs: {flops_basis(model)}.")
    shown.add_column("Layer")
    shown.add_column("Linear", overflow="fold")
    for heading in ("Shape", "Rank", "Parameters", "FLOPs", "Share"):
        shown.add_column(heading, justify="right")
    parameters, work = model.parameters.total, model.encoder_flops + model.decoder_flops

    def total(name: str, part: str, own: int, own_work: int) -> None:
        shown.add_row(name, part, "", "", count(own), flops(own_work), rate(own / parameters), style="bold")

    for stack, linears in groupby(model.layers, key=lambda linear: linear.stack):
        inside = list(linears)
        for layer, of_layer in groupby(inside, key=lambda linear: linear.layer):
            for linear, name in zip(of_layer, chain([f"{stack} {layer}"], repeat("")), strict=False):
                shown.add_row(name, *linear_cells(linear, parameters))
        shown.add_section()
        total(stack, "all linears", *sums(inside))
        shown.add_section()
    own, own_work = sums(model.layers)
    total("model", "all else", parameters - own, work - own_work)
    total("model", "", parameters, work)
    return shown


def linear_cells(linear: LayerNumbers, parameters: int) -> tuple[Text | str, ...]:
    return (
        Text(linear.linear),
        f"{linear.inputs} × {linear.outputs}",
        form(linear),
        count(linear.parameters),
        flops(linear.flops),
        rate(linear.parameters / parameters),
    )


def form(linear: LayerNumbers) -> str:
    """The rank where it is factored, the bits where it is quantized."""
    rank = "" if linear.rank is None else str(linear.rank)
    bits = "" if linear.bits is None else f"{linear.bits} bits"
    return ", ".join(part for part in (rank, bits) if part) or "whole"


def sums(linears: Iterable[LayerNumbers]) -> tuple[int, int]:
    """Parameters and FLOPs of all of them."""
    each = list(linears)
    return sum(linear.parameters for linear in each), sum(linear.flops for linear in each)
