"""What benchmarks of training methods share: a model and its clips, how it is trained and measured, rows of results.

What is trained and what is measured is kept in the benchmark's folder, so that a second call goes on, and several
processes can share the work: each is given some of the ways, and a last call with all of them puts the rows together,
or, with `--known`, those that there are.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from results_file import check_folder
from sotto.augmentation import Augmentation
from sotto.checkpoint import Recognizer, load
from sotto.data import ClipSource, DataConfig, open_data
from sotto.decoding import Decoding
from sotto.measurement import evaluate, measure_cost
from sotto.methods import FineTuning, StepContext, methods
from sotto.metrics.errors import ErrorReport, Interval, compare, measure_errors
from sotto.metrics.speed import machine
from sotto.report.formats import points, rate
from sotto.run_folder import write_text
from sotto.side_by_side import Timing, benchmark
from sotto.structure import to_json
from sotto.text import Normalizer, get_normalizer
from sotto.training import Training

TRAINED_BY = (
    "model",
    "train",
    "validation",
    "language",
    "normalizer",
    "steps",
    "batch_size",
    "learning_rate",
    "precision",
    "transcripts",
    "validation_samples",
)
"""The settings that what is trained depends on, in every benchmark."""


@dataclass(frozen=True)
class Measured:
    """Numbers of one model, and what it wrote."""

    parameters: int
    nonzero: int
    flops: int
    """of encoder and decoder over one window"""
    bytes: int
    peak_memory: int | None
    structure: dict[str, Any]
    """its record: the shapes of all that is left"""
    notes: Sequence[str]
    transcripts: Sequence[tuple[str, str, str]]
    """name, reference and hypothesis of every test clip, as they are"""
    machine: dict[str, Any]
    """that measured it: several may share the work"""

    def errors(self, normalizer: Normalizer, left_out: Collection[str] = ()) -> ErrorReport:
        """Over all clips but those that are left out, by their names."""
        kept = (clip for clip in self.transcripts if clip[0] not in left_out)
        names, references, hypotheses = zip(*kept, strict=True)
        return measure_errors(names, references, hypotheses, normalizer)

    def loops(self, normalizer: Normalizer) -> set[str]:
        """The clips of whose words some are said over and over: one of them can cost as much as a hundred others."""
        return {clip.name for clip in self.errors(normalizer).per_clip if clip.repeated}


Made = tuple[Recognizer, Sequence[str]]
"""A model, and notes of the steps that made it."""


@dataclass(frozen=True)
class Bench:
    """The model, its clips, and how it is trained and measured."""

    model: str
    train: DataConfig
    validation: DataConfig
    test: DataConfig
    language: str
    normalizer: Normalizer
    training: Training
    folder: Path
    transcripts: str
    """name of the normaliser that gives what is learnt of the training transcripts"""
    beside: tuple[Normalizer, ...] = ()
    """by which the error rates are taken too, of the same transcripts"""
    known: bool = False
    """whether only that is put together which the folder holds already"""
    memory: bool = False
    """whether the peak memory of a process that loads and runs a model is measured, which takes seconds for each"""

    def source(self, config: DataConfig) -> ClipSource:
        return open_data(config, sampling_rate=16_000)

    def context(self, name: str) -> StepContext:
        return StepContext(
            folder=self.folder / name / "work",
            train=(self.source(self.train),),
            validation=self.source(self.validation),
            language=self.language,
            normalizer=self.normalizer,
        )

    def base(self) -> Recognizer:
        found = load(self.model)
        found.language = self.language
        return found

    def trained(self, name: str, *steps: Any, start: Callable[[], Recognizer] | None = None) -> Recognizer:
        """The model, or what `start` gives, after steps that train; from disk where that is done.

        What the steps say of their work is kept beside it: `notes_of`.
        """
        folder = self.folder / name / "model"
        with self.alone(name):
            if not folder.is_dir():
                recognizer, notes = (start or self.base)(), []
                for number, step in enumerate(steps):
                    notes += methods.handler(step)(recognizer, step, self.context(f"{name}/{number}"))
                self.notes_place(name).parent.mkdir(exist_ok=True)
                write_text(self.notes_place(name), json.dumps(notes, ensure_ascii=False, indent=1))
                recognizer.save(folder, dtype="float32", packed=False)
        found = load(folder)
        found.language = self.language
        return found

    def notes_of(self, name: str) -> list[str]:
        """What the steps said that trained it; nothing of a model that was trained when it was not kept."""
        place = self.notes_place(name)
        return json.loads(place.read_text(encoding="utf-8")) if place.is_file() else []

    def notes_place(self, name: str) -> Path:
        return self.folder / name / "notes.json"

    def alone(self, name: str) -> FileLock:
        """Held by the one process that makes what has that name; the others wait for it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder / f"{name}.lock")

    def wanted(self, name: str) -> bool:
        """Whether what is measured under that name belongs to the rows."""
        return not self.known or self.place(name).is_file()

    def place(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def measured(self, name: str, make: Callable[[], Made]) -> Measured:
        """What `make` gives, measured; from disk where that is done on the same clips."""
        path = self.place(name)
        measured_on = asdict(self.test) | {"memory": self.memory}
        with self.alone(f"{name}.json"):
            if path.is_file():
                stored = json.loads(path.read_text(encoding="utf-8"))
                if stored.pop("measured_on") == measured_on:
                    return Measured(**stored)
            found = self.measure(*make())
            write_text(path, json.dumps({"measured_on": measured_on, **asdict(found)}))
        return found

    def measure(self, recognizer: Recognizer, notes: Sequence[str]) -> Measured:
        with tempfile.TemporaryDirectory() as scratch:
            saved = recognizer.save(Path(scratch) / "model", dtype="float16", packed=True)
            cost = measure_cost(replace(recognizer, folder=saved), str(saved))
            assert cost.bytes_on_disk is not None
            peak = benchmark([str(saved)], Timing(1, 1))[0].numbers.peak_memory if self.memory else None
        report = self.errors_of(recognizer, self.test, get_normalizer("none"))
        return Measured(
            cost.parameters.total,
            cost.parameters.nonzero,
            cost.encoder_flops + cost.decoder_flops,
            cost.bytes_on_disk,
            peak,
            to_json(recognizer.structure),
            notes,
            [(clip.name, clip.reference, clip.hypothesis) for clip in report.per_clip],
            machine(),
        )

    @property
    def learnt(self) -> dict[str, Any]:
        """How every training hears and writes its clips."""
        return {"augmentation": Augmentation(speed=(0.9, 1.0, 1.1)), "transcripts": self.transcripts}

    def fine_tuning(self, seed: int, *terms: Any, steps: int | None = None) -> FineTuning:
        """The last weights are kept, since the best by WER are those on which a penalty has worked least."""
        steps = steps or self.training.steps
        training = replace(self.training, seed=seed, steps=steps, evaluate_every=steps)
        return FineTuning(training, objectives=terms, **self.learnt)

    def validation_wer(self, recognizer: Recognizer) -> float:
        return self.errors_of(recognizer, self.validation, self.normalizer).wer

    def errors_of(self, recognizer: Recognizer, clips: DataConfig, normalizer: Normalizer) -> ErrorReport:
        decoding = Decoding(language=self.language, batch_size=16 if recognizer.model.device.type == "cpu" else 128)
        return evaluate(recognizer, self.source(clips), decoding, normalizer)


def row_of(bench: Bench, way: str, own: Measured, dense: Measured) -> dict[str, Any]:
    """Parameters that are zero or gone, parameters that are gone, and FLOPs, as shares of the dense model's."""
    return {
        "way": way,
        "pruned": 1 - own.nonzero / dense.parameters,
        "removed": 1 - own.parameters / dense.parameters,
        "flops": own.flops / dense.flops,
        "bytes": own.bytes,
        "peak_memory": own.peak_memory,
        **rates_of(bench, own, dense if own is not dense else None),
        "notes": list(own.notes),
        "machine": own.machine,
    }


def rates_of(bench: Bench, own: Measured, before: Measured | None) -> dict[str, Any]:
    """Error rates after the normalizer, and `beside` it after the others; the same of clips in which neither loops."""

    def rates_after(normalizer: Normalizer, left_out: Collection[str]) -> dict[str, Any]:
        earlier = before.errors(normalizer, left_out) if before is not None else None
        return error_rates(own.errors(normalizer, left_out), earlier)

    def rates(left_out: Collection[str] = ()) -> dict[str, Any]:
        beside = {each.name: rates_after(each, left_out) for each in bench.beside}
        return rates_after(bench.normalizer, left_out) | {"beside": beside}

    loops = [each.loops(bench.normalizer) for each in (own, before) if each is not None]
    aside = set[str]().union(*loops)
    return rates() | {
        "loops": len(loops[0]),
        "without_loops": rates(aside) if len(aside) < len(own.transcripts) else None,
    }


def error_rates(report: ErrorReport, before: ErrorReport | None) -> dict[str, Any]:
    """Error rates, and what they are above those before, with 95 % intervals."""
    return {
        "wer": report.wer,
        "wer_interval": ends(report.wer_interval),
        "cer": report.cer,
        "cer_interval": ends(report.cer_interval),
        "against_dense": difference(before, report) if before is not None else None,
    }


def difference(before: ErrorReport, after: ErrorReport) -> dict[str, Any]:
    """What the error rates are above those before, paired, with 95 % intervals."""
    found = compare(before, after)
    return {
        "wer": found.wer_difference,
        "interval": ends(found.wer_interval),
        "cer": found.cer_difference,
        "cer_interval": ends(found.cer_interval),
    }


def ends(interval: Interval) -> list[float]:
    return [interval.low, interval.high]


def parser_for(description: str | None) -> argparse.ArgumentParser:
    """The options that all have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "train", "validation", "test", "language", "normalizer", "name"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=3e-4, help="at its height")
    parser.add_argument("--transcripts", default="none", help="what the model writes: a normalizer for what it learns")
    parser.add_argument("--beside", nargs="*", default=[], help="normalizers by which the error rates are taken too")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--known", action="store_true", help="rows of what the folder holds: nothing is trained")
    parser.add_argument("--validation-samples", type=int, help="validation clips to draw")
    parser.add_argument("--test-samples", type=int, help="test clips to draw")
    return parser


def opened(
    arguments: argparse.Namespace, own_settings: Sequence[str], memory: bool = False
) -> tuple[Bench, dict[str, Any]]:
    """The bench, and all settings as they are written down.

    `own_settings` names those of one benchmark that what is trained depends on too.
    """
    training = Training(
        steps=arguments.steps,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        warmup_steps=arguments.steps // 20,
        evaluate_every=arguments.steps,
        keep="last",
        precision=arguments.precision,
    )
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
    check_folder(arguments.folder, {key: settings[key] for key in (*TRAINED_BY, *own_settings)})
    bench = Bench(
        arguments.model,
        DataConfig(arguments.train),
        DataConfig(arguments.validation, samples=arguments.validation_samples),
        DataConfig(arguments.test, samples=arguments.test_samples),
        arguments.language,
        get_normalizer(arguments.normalizer),
        training,
        arguments.folder,
        arguments.transcripts,
        tuple(get_normalizer(name) for name in arguments.beside),
        arguments.known,
        memory,
    )
    return bench, settings


def line_of(row: dict[str, Any], *cells: str) -> str:
    """A row of a table: the way, `cells`, bytes, WER, and its difference from the dense model."""
    size = f"{row['bytes'] / 1e6:.2f} MB"
    return f"| {' | '.join((row['way'], *cells, size, rate(row['wer']), change_of(row)))} |"


def change_of(row: dict[str, Any]) -> str:
    """The difference in WER with its interval, empty where there is none."""
    against = row["against_dense"]
    if against is None:
        return ""
    low, high = (100 * edge for edge in against["interval"])
    return f"{points(against['wer'])} ({low:+.1f} to {high:+.1f})"


def printed(rows: Iterable[dict[str, Any]], line: Callable[[dict[str, Any]], str]) -> list[dict[str, Any]]:
    """All rows, each printed once it is measured."""
    found = []
    for row in rows:
        found.append(row)
        print(line(row), flush=True)
    return found
