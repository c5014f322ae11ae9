"""A small student of a larger Whisper: guided distillation against what it has to be better than.

    python benchmarks/distillation.py --model benchmarks/reference/whisper-english-small \\
        --teacher benchmarks/reference/whisper-english --train CORPUS/.../train --validation CORPUS/.../validation \\
        --test CORPUS/.../validation --language en --normalizer english --steps 600 --folder runs/distilled --name NAME

Every way trains the same student for as many steps on the same clips. Each is measured with floating weights and with
8 bits (inputs and the table of tokens too); those that trained for 4 bits also with these. The transcripts of
Distil-Whisper are not filtered: a teacher that errs on most words would leave next to none.
Differences in WER are from the student fine-tuned without a teacher, paired over the same clips, with 95 % intervals.
What was trained is kept in `--folder`, so that a second call goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from pruning_bench import Bench, line_of, opened, parser_for, printed, rates
from results_file import write_results
from sotto.checkpoint import Recognizer, load
from sotto.methods import (
    DistilWhisper,
    GuidedDistillation,
    Quantization,
    QuantizationAware,
    StepContext,
    methods,
)
from sotto.metrics.cost import bytes_on_disk, count_parameters
from sotto.metrics.errors import ErrorReport


def ways(teacher: str, steps: int) -> dict[str, tuple[Any, ...]]:
    """Name -> terms of the loss. With all of them the encoder is trained too: the student has heard the same clips."""
    guided = GuidedDistillation(teacher)
    four = QuantizationAware(bits=4, scales="block", embedding_bits=8)
    return {
        "fine-tuned only": (),
        "Distil-Whisper, weights of the paper": (DistilWhisper(teacher, "paper", freeze_encoder=False),),
        "Distil-Whisper, weights of the code": (DistilWhisper(teacher, "code", freeze_encoder=False),),
        "divergence alone": (replace(guided, layers=0.0),),
        "guided, static": (replace(guided, matching="static"),),
        "guided, free": (replace(guided, matching="free"),),
        "guided, monotone": (guided,),
        "guided by weights (KDQ)": (replace(guided, select_by="weight", loss_on="weight"),),
        "guided, chosen by weights": (replace(guided, select_by="weight"),),
        "guided, chosen by quantization errors": (replace(guided, select_by="quantization_error"),),
        "guided, encoder and attention too": (
            replace(guided, stacks=("encoder", "decoder"), inside=("ffn", "attention")),
        ),
        "guided, most changed layers only": (replace(guided, distilled_layers=2),),
        "guided, 4 bits from the start": (guided, four),
        "guided, 4 bits by distillation loss": (replace(guided, rounding=four, rounded_over=max(steps // 2, 1)),),
    }


def stored_as(name: str) -> dict[str, Quantization | None]:
    """Kinds of weights that a way is measured with."""
    kinds: dict[str, Quantization | None] = {"16 bits": None, "8 bits": Quantization(embedding_bits=8)}
    if "4 bits" in name or name in ("fine-tuned only", "guided, monotone"):
        kinds["4 bits"] = Quantization(bits=4, scales="block", embedding_bits=8)
    return kinds


def rows(bench: Bench, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The teacher and the student as they are, and every way with every kind of weights."""
    found: dict[str, ErrorReport] = {}
    for name, recognizer in (("teacher", load(arguments.teacher)), ("student, trained directly", bench.base())):
        recognizer.language = arguments.language
        yield row_of(bench, name, "16 bits", recognizer, found)
    for name, terms in ways(arguments.teacher, arguments.steps).items():
        if name not in (arguments.ways or [name]):
            continue
        source = arguments.teacher if name.startswith("Distil-Whisper") else None
        step = replace(bench.fine_tuning(0, *terms), transcripts_from=source)
        trained = bench.trained(name.replace(" ", "-").replace(",", ""), step)
        for kind, quantization in stored_as(name).items():
            recognizer = trained.copy()
            if quantization is not None:
                methods.handler(quantization)(recognizer, quantization, StepContext(bench.folder))
            yield row_of(bench, name, kind, recognizer, found)


def row_of(bench: Bench, way: str, kind: str, recognizer: Recognizer, found: dict[str, ErrorReport]) -> dict[str, Any]:
    """`found` takes the errors of every kind of weights of the student that was fine-tuned only."""
    report = bench.errors_of(recognizer)
    before = found.get(kind)
    if way == "fine-tuned only":
        found[kind] = report
    folder = recognizer.save(bench.folder / "measured", dtype="float16")
    return {
        "way": way,
        "kind": kind,
        "parameters": count_parameters(recognizer.model).total,
        "bytes": bytes_on_disk(folder),
        **rates(report, before, bench.normalizer),
        "beside": {normalizer.name: rates(report, before, normalizer) for normalizer in bench.beside},
    }


def line(row: dict[str, Any]) -> str:
    return line_of(row, row["kind"], f"{row['parameters'] / 1e6:.2f}M")


def main() -> None:
    parser = parser_for(__doc__)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--ways", nargs="*", choices=list(ways("", 1)), help="those to measure; all, where not given")
    arguments = parser.parse_args()
    bench, settings = opened(arguments, ("teacher",))
    measured = printed(rows(bench, arguments), line)
    print(write_results(f"distillation-{arguments.name}", {"settings": settings, "rows": measured}))


if __name__ == "__main__":
    main()
