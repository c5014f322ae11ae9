"""The report of a run: one HTML page that holds all it needs, and the same numbers as JSON."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import groupby
from pathlib import Path

import jiwer
from jinja2 import Environment, StrictUndefined

from sotto.configuration import to_plain
from sotto.errors import SottoError
from sotto.metrics.errors import ClipErrors, Comparison
from sotto.report import formats, table
from sotto.report.numbers import LayerNumbers, ModelNumbers, RunNumbers

VERSION = 1
"""of the layout of report.json"""
WORST_CLIPS = 10
CHART_WIDTH, CHART_HEIGHT = 640, 300
CHART_LEFT, CHART_RIGHT, CHART_TOP, CHART_BOTTOM = 62, 616, 16, 250
MARKER = 22
"""units of the chart that a marker takes"""


@dataclass(frozen=True)
class Piece:
    """Words of a reference or hypothesis in a row, and how they differ: equal, substitute, delete or insert."""

    text: str
    change: str


@dataclass(frozen=True)
class WorstClip:
    """A clip of the final model beside what was said; `base_edits` is None where the base did not hear it."""

    errors: ClipErrors
    reference: tuple[Piece, ...]
    hypothesis: tuple[Piece, ...]
    base_edits: int | None


@dataclass(frozen=True)
class Bar:
    """One linear: its rank (or "whole"), out of what, as text and as the length of a bar from 0 to 1."""

    text: str
    of: int
    length: float
    shape: str


@dataclass(frozen=True)
class Ranks:
    """One stack: a row of bars for each layer, with None where a layer lacks the linear."""

    stack: str
    linears: tuple[str, ...]
    layers: tuple[tuple[int, tuple[Bar | None, ...]], ...]


@dataclass(frozen=True)
class Tick:
    at: float
    label: str


@dataclass(frozen=True)
class Point:
    """A model in the chart, in units of the chart; `step` is its place in the run, the base being 0."""

    step: int
    name: str
    x: float
    y: float
    low: float
    high: float
    parameters: str
    wer: str


@dataclass(frozen=True)
class Chart:
    """WER against encoder parameters."""

    points: tuple[Point, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


def write_report(numbers: RunNumbers, folder: Path) -> Path:
    """Write `report.json` and `report.html` into `folder`, which is made if need be; returns the path of the page.

    Each file is put in its place whole. Raises SottoError where the run has no model or the folder cannot be written.
    """
    page = render(numbers)
    data = json.dumps({"version": VERSION, **to_plain(numbers)}, ensure_ascii=False, indent=1)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "report.json", f"{data}\n")
        write_whole(folder / "report.html", page)
    except OSError as error:
        raise SottoError(f"{folder}: the report cannot be written ({error.strerror}); choose another folder") from error
    return folder / "report.html"


def write_whole(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        # A clip whose file name is no UTF-8 has lone surrogates in it; JSON reads the escape back as it was.
        partial.write_bytes(text.encode("utf-8", "backslashreplace"))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def render(numbers: RunNumbers) -> str:
    """The page. Raises SottoError where there is no model."""
    base, final = table.ends(numbers)
    groups = table.groups(numbers)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    source = files("sotto.report").joinpath("report.html").read_text(encoding="utf-8")
    return environment.from_string(source).render(
        numbers=numbers,
        base=base,
        final=final,
        summary=table.summary(numbers),
        verdict=verdict(final.comparison),
        groups=groups,
        longest_detail=max(len(cell.detail) for group in groups for row in group.rows for cell in row.cells),
        parentheses=table.PARENTHESES,
        error_basis=table.error_basis(numbers),
        flops_bases=table.flops_bases(numbers),
        speed_basis=table.speed_basis(numbers),
        duration=formats.duration,
        chart=chart(numbers.models),
        frame={"width": CHART_WIDTH, "height": CHART_HEIGHT, "left": CHART_LEFT, "right": CHART_RIGHT}
        | {"top": CHART_TOP, "bottom": CHART_BOTTOM},
        exports=table.exports(numbers),
        export_labels=table.EXPORT_LABELS,
        ranks=ranks(final.layers),
        worst=worst_clips(base, final),
    )


def verdict(comparison: Comparison | None) -> str:
    """What the paired interval of the WER says."""
    if comparison is None:
        return ""
    if comparison.wer_interval.low > 0:
        return "The interval lies above 0: on clips like these the result makes more errors than its base."
    if comparison.wer_interval.high < 0:
        return "The interval lies below 0: on clips like these the result makes fewer errors than its base."
    return "The interval holds 0: these clips do not tell the two apart."


def worst_clips(base: ModelNumbers, final: ModelNumbers) -> tuple[WorstClip, ...]:
    if final.errors is None:
        return ()
    heard = {clip.name: clip.word_edits for clip in base.errors.per_clip} if base.errors and base is not final else {}
    return tuple(
        WorstClip(clip, *differences(clip.reference, clip.hypothesis), heard.get(clip.name))
        for clip in final.errors.worst(WORST_CLIPS)
    )


def differences(reference: str, hypothesis: str) -> tuple[tuple[Piece, ...], tuple[Piece, ...]]:
    """Both texts in pieces, by the same alignment that the errors were counted with."""
    aligned = jiwer.process_words(reference, hypothesis)
    said, heard = aligned.references[0], aligned.hypotheses[0]
    chunks = aligned.alignments[0]
    spans = [(said[chunk.ref_start_idx : chunk.ref_end_idx], chunk.type) for chunk in chunks]
    heard_spans = [(heard[chunk.hyp_start_idx : chunk.hyp_end_idx], chunk.type) for chunk in chunks]
    return pieces(spans), pieces(heard_spans)


def pieces(spans: Sequence[tuple[list[str], str]]) -> tuple[Piece, ...]:
    return tuple(Piece(" ".join(words), change) for words, change in spans if words)


def ranks(layers: Sequence[LayerNumbers]) -> tuple[Ranks, ...]:
    """The stacks in which something is factored."""
    found = []
    for stack, members in groupby(layers, key=lambda linear: linear.stack):
        linears = list(members)
        if all(linear.rank is None for linear in linears):
            continue
        names = tuple(dict.fromkeys(linear.linear for linear in linears))
        rows = []
        for layer, of_layer in groupby(linears, key=lambda linear: linear.layer):
            bars = {linear.linear: bar(linear) for linear in of_layer}
            rows.append((layer, tuple(bars.get(name) for name in names)))
        found.append(Ranks(stack, names, tuple(rows)))
    return tuple(found)


def bar(linear: LayerNumbers) -> Bar:
    full = min(linear.inputs, linear.outputs)
    text, length = ("whole", 1.0) if linear.rank is None else (str(linear.rank), linear.rank / full)
    return Bar(text, full, length, f"{linear.inputs} × {linear.outputs}")


def chart(models: Sequence[ModelNumbers]) -> Chart | None:
    """None where fewer than two models have errors."""
    measured = [(step, model, model.errors) for step, model in enumerate(models) if model.errors]
    if len(measured) < 2:
        return None
    sizes = steps_of(0, max(model.parameters.encoder for _, model, _ in measured))
    lowest = min(errors.wer_interval.low for _, _, errors in measured)
    highest = max(errors.wer_interval.high for _, _, errors in measured)
    # The axis begins at 0 unless that would press the rates into a corner, or leave them no height at all.
    rates = steps_of(100 * lowest if highest / 2 < lowest < 0.99 * highest else 0, 100 * highest)

    def across(parameters: float) -> float:
        return place(parameters, sizes, CHART_LEFT, CHART_RIGHT)

    def height(fraction: float) -> float:
        return place(100 * fraction, rates, CHART_BOTTOM, CHART_TOP)

    places = side_by_side([across(model.parameters.encoder) for _, model, _ in measured])
    points = tuple(
        Point(
            step=step,
            name=model.name,
            x=x,
            y=height(errors.wer),
            low=height(errors.wer_interval.low),
            high=height(errors.wer_interval.high),
            parameters=formats.count(model.parameters.encoder),
            wer=f"{formats.rate(errors.wer)} ({formats.rate_interval(errors.wer_interval)})",
        )
        for (step, model, errors), x in zip(measured, places, strict=True)
    )
    return Chart(
        points,
        tuple(Tick(across(at), formats.count(round(at)).replace(".0", "")) for at in sizes),
        tuple(Tick(height(at / 100), f"{at:g} %") for at in rates),
    )


def steps_of(low: float, high: float) -> list[float]:
    """Round numbers in equal steps, about five, the first at or below `low`, the last at or above `high`."""
    span = high - low or 1.0
    power = 10.0 ** math.floor(math.log10(span / 5))
    step = next((power * times for times in (1, 2, 5) if power * times * 5 >= span), power * 10)
    return [round(index * step, 10) for index in range(math.floor(low / step), math.ceil((low + span) / step) + 1)]


def place(value: float, ticks: Sequence[float], start: float, end: float) -> float:
    return round(start + (end - start) * (value - ticks[0]) / (ticks[-1] - ticks[0]), 1)


def side_by_side(places: Sequence[float]) -> list[float]:
    """The places moved apart where markers would lie on each other: models of one size are common."""
    moved = list(places)
    order = sorted(range(len(places)), key=lambda index: (places[index], index))
    together: list[int] = []
    for index, following in zip(order, [*order[1:], None], strict=True):
        together.append(index)
        if following is not None and places[following] - places[index] < MARKER:
            continue
        middle = sum(places[each] for each in together) / len(together)
        for rank, each in enumerate(together):
            moved[each] = round(middle + (rank - (len(together) - 1) / 2) * MARKER, 1)
        together = []
    return moved
