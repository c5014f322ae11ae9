"""What `runtimes.py` puts side by side: variants of a model as each runtime takes them, and what visits found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import whisper_cpp
from runtime_variants import Change
from sotto.checkpoint import Recognizer, load
from sotto.data import Clip
from sotto.errors import SottoError
from sotto.exports.capability import FEWER_LAYERS, ORDER, Outcome, changes_of, outcome
from sotto.exports.exporting import export_on
from sotto.measurement import measure_cost
from sotto.report.formats import latency, size
from sotto.report.numbers import ModelNumbers
from sotto.side_by_side import Timing, latency_of, visit


@dataclass(frozen=True)
class Runtime:
    """torch, one of Sotto's targets, or whisper.cpp; and in which precision."""

    to: str
    precision: str

    @property
    def name(self) -> str:
        return f"{self.to}-{self.precision}"


RUNTIMES = (
    Runtime("torch", "float32"),
    Runtime("torch", "bfloat16"),
    Runtime("onnx", "float32"),
    Runtime("onnx", "int8"),
    Runtime("openvino", "float32"),
    Runtime("openvino", "float16"),
    Runtime("openvino", "bfloat16"),
    Runtime("openvino", "int8"),
    Runtime("openvino", "int8-calibrated"),
    Runtime("sherpa-onnx", "float32"),
    Runtime("sherpa-onnx", "int8"),
    Runtime("ctranslate2", "float32"),
    Runtime("ctranslate2", "int8"),
    Runtime("whisper.cpp", "q8_0"),
)
PLAIN = RUNTIMES[0]
"""what all others are held to, where the model is dense; a variant is made of what is saved for it"""


@dataclass
class Row:
    """A variant in a runtime: where it lies, and what every round found."""

    variant: str
    runtime: Runtime
    place: Path
    visits: list[ModelNumbers] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.variant} {self.runtime.name}"

    @property
    def dtype(self) -> str:
        """In which it is called."""
        return self.runtime.precision if self.runtime.to == "torch" else "float32"

    def visit(self, timing: Timing, dense: ModelNumbers) -> Callable[[], ModelNumbers]:
        """What measures it, in a process of its own."""
        if self.runtime.to == "whisper.cpp":
            return partial(whisper_cpp.visit, str(self.place), timing, dense)
        return partial(visit, str(self.place), replace(timing, dtype=self.dtype))

    def middle(self, of: Callable[[ModelNumbers], float]) -> float:
        return median(of(numbers) for numbers in self.visits)

    def against(self, other: Row, of: Callable[[ModelNumbers], float]) -> float:
        """How many times as fast: the median over rounds, so that a machine that slows down slows both."""
        pairs = zip(self.visits, other.visits, strict=True)
        return median(of(after) / of(before) for before, after in pairs)


def written(
    base: Recognizer,
    variants: Mapping[str, Change],
    runtimes: Sequence[Runtime],
    folder: Path,
    clips: Sequence[Clip],
) -> Iterator[Row]:
    """All rows, by runtime, dense first; what `folder` holds already is taken as it is.

    One that its runtime gains nothing from is left out; so is, with the reason printed, one that its proof refuses.
    Where that is the dense one, there is nothing to hold the others to.
    """
    models = {name: saved(base, change, folder / name) for name, change in variants.items()}
    for runtime in runtimes:
        for variant, model in models.items():
            row = Row(variant, runtime, folder / variant / runtime.name)
            if gains_nothing(runtime, model):
                continue
            try:
                write(model, row, clips)
            except SottoError as error:
                print(f"{row.name}: {error}", flush=True)
                if variant == "dense":
                    break
                continue
            yield row


def saved(base: Recognizer, change: Change, folder: Path) -> Recognizer:
    """The variant, read from `folder` where an earlier run made it."""
    place = folder / PLAIN.name
    if not place.exists():
        change(base).save(place, PLAIN.precision)
    return replace(load(place, device="cpu"), language=base.language)


def gains_nothing(runtime: Runtime, model: Recognizer) -> bool:
    """whisper.cpp has the shapes of the base only, but for the number of layers."""
    changes = {change for change, _ in changes_of(model.structure)}
    if runtime.to == "whisper.cpp":
        return bool(changes - {FEWER_LAYERS})
    filled = [outcome(change, runtime.to) is Outcome.FILLED for change in changes if runtime.to in ORDER]
    return bool(filled) and all(filled)


def write(model: Recognizer, row: Row, clips: Sequence[Clip]) -> None:
    if row.place.exists():
        return
    if row.runtime.to == "torch":
        model.save(row.place, row.runtime.precision)
    elif row.runtime.to == "whisper.cpp":
        whisper_cpp.write_ggml(model, row.place)
    else:
        export_on(model, row.place, row.runtime.to, row.runtime.precision, clips)


def cost_of_dense(rows: Sequence[Row]) -> ModelNumbers:
    return measure_cost(load(dense_of(rows, PLAIN).place, device="cpu"), "dense")


def dense_of(rows: Sequence[Row], runtime: Runtime) -> Row:
    return next(row for row in rows if row.variant == "dense" and row.runtime == runtime)


def encoder_of(numbers: ModelNumbers) -> float:
    """Seconds."""
    return latency_of(numbers).encoder


def total_of(numbers: ModelNumbers) -> float:
    """Seconds."""
    return latency_of(numbers).total


def described(row: Row, rows: Sequence[Row]) -> dict[str, Any]:
    """A row as JSON takes it: medians, ratios, and every visit's own times.

    `realised` is the share of the encoder's saving in FLOPs that became time:
    (1 - t / t_dense) / (1 - FLOPs / FLOPs_dense), in the same runtime.
    """
    plain, own = dense_of(rows, PLAIN), dense_of(rows, row.runtime)
    numbers, flops = row.visits[0], row.visits[0].encoder_flops / own.visits[0].encoder_flops
    faster = row.against(own, encoder_of)
    return {
        "variant": row.variant,
        "runtime": row.runtime.name,
        "encoder_parameters": numbers.parameters.encoder,
        "encoder_flops": numbers.encoder_flops,
        "bytes": numbers.bytes_on_disk,
        "load_seconds": row.middle(lambda visit: visit.load_seconds or 0.0),
        "pipeline_seconds": row.middle(lambda visit: visit.pipeline_seconds or 0.0) or None,
        "peak_memory": row.middle(lambda visit: visit.peak_memory or 0),
        "memory_increase": row.middle(lambda visit: visit.memory_increase or 0),
        "encoder_seconds": row.middle(encoder_of),
        "tokens_per_second": row.middle(lambda visit: latency_of(visit).tokens / latency_of(visit).decoder),
        "total_seconds": row.middle(total_of),
        "real_time_factor": row.middle(lambda visit: latency_of(visit).real_time_factor),
        "encoder_against_torch": row.against(plain, encoder_of),
        "total_against_torch": row.against(plain, total_of),
        "encoder_against_dense": faster,
        "total_against_dense": row.against(own, total_of),
        "encoder_by_flops": 1 / flops,
        "realised": (1 - 1 / faster) / (1 - flops) if flops < 1 else None,
        "visits": [
            {"encoder": encoder_of(visit), "decoder": latency_of(visit).decoder, "total": total_of(visit)}
            for visit in row.visits
        ],
    }


COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "variant": lambda row: str(row["variant"]),
    "runtime": lambda row: str(row["runtime"]),
    "on disk": lambda row: size(row["bytes"]),
    "load": lambda row: latency(row["load_seconds"]),
    "memory, of it the model's": lambda row: f"{size(row['peak_memory'])}, {size(row['memory_increase'])}",
    "encoder": lambda row: latency(row["encoder_seconds"]),
    "tokens/s": lambda row: f"{row['tokens_per_second']:.0f}",
    "total": lambda row: latency(row["total_seconds"]),
    "RTFx": lambda row: f"{row['real_time_factor']:.1f}",
    "encoder, × torch": lambda row: f"{row['encoder_against_torch']:.2f}",
    "total, × torch": lambda row: f"{row['total_against_torch']:.2f}",
    "encoder, × own dense": lambda row: f"{row['encoder_against_dense']:.2f}",
    "by FLOPs": lambda row: f"{row['encoder_by_flops']:.2f}",
    "realised": lambda row: "" if row["realised"] is None else f"{100 * row['realised']:.0f} %",
}


def heading(columns: Sequence[str]) -> str:
    return f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}"


def line(row: dict[str, Any], columns: Mapping[str, Callable[[dict[str, Any]], str]]) -> str:
    return f"| {' | '.join(shown(row) for shown in columns.values())} |"
