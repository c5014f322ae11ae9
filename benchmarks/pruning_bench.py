"""What benchmarks of pruning share: a model and its clips, how it is trained and measured, and rows of results."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sotto.augmentation import Augmentation
from sotto.checkpoint import Recognizer, load
from sotto.data import ClipSource, DataConfig, open_data
from sotto.decoding import Decoding
from sotto.measurement import evaluate, measure_cost
from sotto.methods import FineTuning, StepContext, methods
from sotto.metrics.errors import ErrorReport, Interval, compare, measure_errors
from sotto.report.formats import points, rate
from sotto.side_by_side import Timing, visit
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
)
"""The settings that what is trained depends on, in every benchmark."""


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
    beside: tuple[Normalizer, ...]
    """by which the error rates are taken too, of the same transcripts"""
    memory: bool
    """whether each row has the peak memory of a process that loads and runs its model, which takes seconds a row"""

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
        """The model, or what `start` gives, after steps that train; from disk where that is done."""
        folder = self.folder / name / "model"
        if not folder.is_dir():
            recognizer = (start or self.base)()
            for number, step in enumerate(steps):
                methods.handler(step)(recognizer, step, self.context(f"{name}/{number}"))
            recognizer.save(folder, dtype="float32", packed=False)
        found = load(folder)
        found.language = self.language
        return found

    @property
    def learnt(self) -> dict[str, Any]:
        """How every training hears and writes its clips."""
        return {"augmentation": Augmentation(speed=(0.9, 1.0, 1.1)), "transcripts": self.transcripts}

    def fine_tuning(self, seed: int, *terms: Any, steps: int | None = None) -> FineTuning:
        """The last weights are kept, since the best by WER are those on which a penalty has worked least."""
        steps = steps or self.training.steps
        training = replace(self.training, seed=seed, steps=steps, evaluate_every=steps)
        return FineTuning(training, objectives=terms, **self.learnt)

    def errors_of(self, recognizer: Recognizer) -> ErrorReport:
        """Errors on the test clips in the texts as they are, from which those by any normalizer are found."""
        return self.measured(recognizer, self.test, get_normalizer("none"))

    def validation_wer(self, recognizer: Recognizer) -> float:
        return self.measured(recognizer, self.validation, self.normalizer).wer

    def measured(self, recognizer: Recognizer, clips: DataConfig, normalizer: Normalizer) -> ErrorReport:
        decoding = Decoding(language=self.language, batch_size=16)
        return evaluate(recognizer, self.source(clips), decoding, normalizer)


def row_of(
    bench: Bench, way: str, recognizer: Recognizer, dense: Recognizer, report: ErrorReport, before: ErrorReport
) -> dict[str, Any]:
    """Parameters that are zero or gone, parameters that are gone, FLOPs and bytes, as shares of the dense model's.

    `report` and `before` are of the model and the dense one, as `Bench.errors_of` gives them.
    """
    saved = recognizer.save(bench.folder / "measured", dtype="float16", packed=True)
    own = measure_cost(replace(recognizer, folder=saved), way)
    whole = measure_cost(dense, "dense")
    compared = before if recognizer is not dense else None
    return {
        "way": way,
        "pruned": 1 - own.parameters.nonzero / whole.parameters.total,
        "removed": 1 - own.parameters.total / whole.parameters.total,
        "flops": (own.encoder_flops + own.decoder_flops) / (whole.encoder_flops + whole.decoder_flops),
        "bytes": own.bytes_on_disk,
        "peak_memory": visit(str(saved), Timing(repeats=1)).peak_memory if bench.memory else None,
        **rates(report, compared, bench.normalizer),
        "beside": {normalizer.name: rates(report, compared, normalizer) for normalizer in bench.beside},
    }


def rates(raw: ErrorReport, raw_before: ErrorReport | None, normalizer: Normalizer) -> dict[str, Any]:
    """Error rates after `normalizer`, and what they are above those before, with 95 % intervals."""
    before = read_by(raw_before, normalizer) if raw_before is not None else None
    return error_rates(read_by(raw, normalizer), before)


def error_rates(report: ErrorReport, before: ErrorReport | None) -> dict[str, Any]:
    """Error rates, and what they are above those before, with 95 % intervals."""
    against = None
    if before is not None:
        difference = compare(before, report)
        against = {
            "wer": difference.wer_difference,
            "interval": ends(difference.wer_interval),
            "cer": difference.cer_difference,
            "cer_interval": ends(difference.cer_interval),
        }
    return {
        "wer": report.wer,
        "wer_interval": ends(report.wer_interval),
        "cer": report.cer,
        "cer_interval": ends(report.cer_interval),
        "against_dense": against,
    }


def ends(interval: Interval) -> list[float]:
    return [interval.low, interval.high]


def read_by(raw: ErrorReport, normalizer: Normalizer) -> ErrorReport:
    """The errors that are left of texts as they are, once both have gone through `normalizer`."""
    clips = raw.per_clip
    names, references, hypotheses = zip(*((each.name, each.reference, each.hypothesis) for each in clips), strict=True)
    return measure_errors(names, references, hypotheses, normalizer)


def check_folder(folder: Path, settings: dict[str, Any]) -> None:
    """Raises SystemExit where `folder` holds models that were trained in another way."""
    folder.mkdir(parents=True, exist_ok=True)
    path, text = folder / "settings.json", json.dumps(settings, indent=1)
    if path.is_file() and path.read_text() != text:
        raise SystemExit(f"{folder} holds models trained with other settings; name another folder")
    path.write_text(text)


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
        DataConfig(arguments.validation),
        DataConfig(arguments.test, samples=arguments.test_samples),
        arguments.language,
        get_normalizer(arguments.normalizer),
        training,
        arguments.folder,
        arguments.transcripts,
        tuple(get_normalizer(name) for name in arguments.beside),
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
