"""A small student of a larger Whisper: guided distillation against what it has to be better than.

    python benchmarks/distillation.py --model benchmarks/reference/whisper-english-small \\
        --teacher benchmarks/reference/whisper-english --train CORPUS/.../train --validation CORPUS/.../validation \\
        --test CORPUS/.../validation --language en --normalizer english --steps 600 --folder runs/distilled --name NAME

Every way trains the same student for as many steps on the same clips. Each is measured with floating weights and with
8 bits (inputs and the table of tokens too); those that trained for other ones, or for the decoder's alone, also so. The
transcripts of Distil-Whisper are not filtered: a teacher that errs on most words would leave next to none.
Sizes are those of the file, by the rule of Whisper-KDQ, and, in the notes, when ideally packed.
Differences in WER are from the student fine-tuned without a teacher and stored in the same way, paired over the same
clips, with 95 % intervals. In the file there are also those from the same way in 16 bits (`against_16_bits`); from the
student as it was trained directly (`against_direct`; `fewer_errors` is their share): `--direct` where `--model` was cut
out of another one; and, of what saw its rounding in training, those from the same way rounded afterwards
(`against_rounded_afterwards`), where that comes before it. What was trained and measured is kept in `--folder`, so
that a second call goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial
from typing import Any

from pruning_bench import Bench, Made, Measured, difference, line_of, opened, parser_for, printed, rates_of
from results_file import write_results
from sotto.checkpoint import load
from sotto.methods import (
    DistilWhisper,
    GuidedDistillation,
    Quantization,
    QuantizationAware,
    StepContext,
    methods,
)
from sotto.metrics.published_sizes import whisper_kdq_bytes


def ways(teacher: str, steps: int) -> dict[str, tuple[Any, ...]]:
    """Name -> terms of the loss. With all of them the encoder is trained too: the student has heard the same clips."""
    guided = GuidedDistillation(teacher)
    four = QuantizationAware(bits=4, scales="block", embedding_bits=8)
    in_decoder = replace(four, stacks=("decoder",))
    by_weights = replace(guided, select_by="weight", loss_on="weight")
    as_the_code = QuantizationAware(scales="tensor", stacks=("decoder",))
    gradual = replace(guided, rounding=four, rounded_over=max(steps // 2, 1))
    gradual_decoder = replace(gradual, rounding=in_decoder)
    return {
        FINE_TUNED: (),
        "Distil-Whisper, weights of the paper": (DistilWhisper(teacher, "paper", freeze_encoder=False),),
        "Distil-Whisper, weights of the code": (DistilWhisper(teacher, "code", freeze_encoder=False),),
        "divergence alone": (replace(guided, layers=0.0),),
        "guided, static": (replace(guided, matching="static"),),
        "guided, free": (replace(guided, matching="free"),),
        "guided, monotone": (guided,),
        "guided, layers a hundred times as heavy": (replace(guided, layers=100.0),),
        BY_WEIGHTS: (by_weights,),
        "guided by weights, the decoder in 8 bits from the start (KDQ)": (by_weights, as_the_code),
        "guided, chosen by weights": (replace(guided, select_by="weight"),),
        "guided, chosen by quantization errors": (replace(guided, select_by="quantization_error"),),
        "guided, encoder and attention too": (
            replace(guided, stacks=("encoder", "decoder"), inside=("ffn", "attention")),
        ),
        "guided, most changed layers only": (replace(guided, distilled_layers=2),),
        "guided, 8 bits from the start": (guided, QuantizationAware(embedding_bits=8)),
        "guided, 4 bits from the start": (guided, four),
        "guided, 4 bits by distillation loss": (gradual,),
        "guided, 4 bits by depth": (replace(gradual, rounding_order="depth"),),
        "guided, the decoder rounded to 4 bits from the start": (guided, in_decoder),
        "guided, the decoder rounded to 4 bits by distillation loss": (gradual_decoder,),
        "guided, the decoder rounded to 4 bits by depth": (replace(gradual_decoder, rounding_order="depth"),),
        "guided, the decoder rounded to 4 bits by greatest loss": (
            replace(gradual_decoder, rounding_order="greatest_loss"),
        ),
    }


KINDS: dict[str, Quantization | None] = {
    "16 bits": None,
    "8 bits": Quantization(embedding_bits=8),
    "4 bits": Quantization(bits=4, scales="block", embedding_bits=8),
    "8 bits in the decoder": Quantization(scales="tensor", stacks=("decoder",), dynamic=False),
    "4 bits in the decoder": Quantization(bits=4, scales="block", stacks=("decoder",), embedding_bits=8),
}
FINE_TUNED = "fine-tuned only"
PLAIN = "guided, monotone"
BY_WEIGHTS = "guided by weights (KDQ)"
DIRECT = "student, trained directly"


def kinds_of(name: str) -> list[str]:
    """Kinds of weights that a way is measured with: last what it trained for, where it trained for any.

    By weights in all those that its partner, which sees its rounding, is held to.
    """
    if name in (FINE_TUNED, PLAIN):
        return list(KINDS)
    if name == BY_WEIGHTS:
        return ["16 bits", "8 bits", "8 bits in the decoder"]
    bits = "4 bits" if "4 bits" in name else "8 bits"
    own = f"{bits} in the decoder" if "decoder" in name else bits
    return list(dict.fromkeys(["16 bits", "8 bits", own]))


def rows(bench: Bench, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The teacher and the student as they are, and every way with every kind of weights."""

    def dense(name: str) -> Made:
        recognizer = load(name)
        recognizer.language = arguments.language
        return recognizer, ()

    teacher = bench.measured("teacher", partial(dense, arguments.teacher))
    yield row_of(bench, arguments.teacher, "teacher", "16 bits", teacher, None)
    direct = bench.measured(direct_file(bench, arguments.direct), partial(dense, arguments.direct))
    yield row_of(bench, arguments.direct, DIRECT, "16 bits", direct, None)

    @cache
    def fine_tuned(kind: str) -> Measured | None:
        if not bench.wanted(file_of(FINE_TUNED, kind)):
            return None
        return measured(bench, arguments, FINE_TUNED, kind)

    floating: dict[tuple[str, str], Measured] = {}
    for name in arguments.ways or ways(arguments.teacher, arguments.steps):
        found: dict[str, Measured] = {}
        for kind in kinds_of(name):
            if not bench.wanted(file_of(name, kind)):
                continue
            found[kind] = own = measured(bench, arguments, name, kind)
            before = fine_tuned(kind) if name != FINE_TUNED else None
            row = row_of(bench, bench.model, name, kind, own, before)
            row |= against(bench, own, direct, found.get("16 bits", own))
            if name in (PLAIN, BY_WEIGHTS):
                floating[name, kind] = own
            partner = floating.get((BY_WEIGHTS if "(KDQ)" in name else PLAIN, kind))
            if "bits" in name and kind == kinds_of(name)[-1] and partner is not None:
                afterwards = partner.errors(bench.normalizer)
                row["against_rounded_afterwards"] = difference(afterwards, own.errors(bench.normalizer))
            yield row


def against(bench: Bench, own: Measured, direct: Measured, floating: Measured) -> dict[str, Any]:
    """Differences, paired, from the student that was trained directly and from the same way in 16 bits."""
    report, of_direct = own.errors(bench.normalizer), direct.errors(bench.normalizer)
    fewer = 1 - report.wer / of_direct.wer if of_direct.wer else None
    found = {"against_direct": difference(of_direct, report) | {"fewer_errors": fewer}}
    if floating is not own:
        found["against_16_bits"] = difference(floating.errors(bench.normalizer), report)
    return found


def direct_file(bench: Bench, model: str) -> str:
    """Where that is kept which was measured of a model that was trained directly."""
    name = folder_of(DIRECT)
    return name if model == bench.model else f"{name}-{model.strip('/').replace('/', '-')}"


def folder_of(name: str) -> str:
    return name.replace(" ", "-").replace(",", "").replace("'", "").lower()


def file_of(name: str, kind: str) -> str:
    return f"{folder_of(name)}-{kind.replace(' ', '-')}"


def measured(bench: Bench, arguments: argparse.Namespace, name: str, kind: str) -> Measured:
    def make() -> Made:
        source = arguments.teacher if name.startswith("Distil-Whisper") else None
        terms = ways(arguments.teacher, arguments.steps)[name]
        recognizer = bench.trained(
            folder_of(name), replace(bench.fine_tuning(arguments.seed, *terms), transcripts_from=source)
        )
        quantization = KINDS[kind]
        if quantization is None:
            return recognizer, ()
        return recognizer, methods.handler(quantization)(recognizer, quantization, StepContext(bench.folder))

    return bench.measured(file_of(name, kind), make)


def row_of(bench: Bench, model: str, way: str, kind: str, own: Measured, before: Measured | None) -> dict[str, Any]:
    """`model` is one of the same shape, with floating weights."""
    sizes = {"parameters": own.parameters, "bytes": own.bytes, "bytes_by_rule": bytes_by_rule(model, kind)}
    return {
        "way": way,
        "kind": kind,
        **sizes,
        **rates_of(bench, own, before),
        "notes": list(own.notes),
        "machine": own.machine,
    }


@cache
def bytes_by_rule(model: str, kind: str) -> int | None:
    """As Whisper-KDQ counts them; its rule knows no other bits than these."""
    bits = {"16 bits": 16, "8 bits": 8}.get(kind)
    return whisper_kdq_bytes(load(model).model, bits) if bits is not None else None


def line(row: dict[str, Any]) -> str:
    return line_of(row, row["kind"], f"{row['parameters'] / 1e6:.2f}M")


def main() -> None:
    parser = parser_for(__doc__)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--direct", help="the student as it was trained directly; --model, where not given")
    parser.add_argument("--seed", type=int, default=0, help="of the trainings; another one needs another folder")
    parser.add_argument("--ways", nargs="*", choices=list(ways("", 1)), help="those to measure; all, where not given")
    arguments = parser.parse_args()
    arguments.direct = arguments.direct or arguments.model
    bench, settings = opened(arguments, ("teacher", "seed"))
    measured = printed(rows(bench, arguments), line)
    print(write_results(f"distillation-{arguments.name}", {"settings": settings, "rows": measured}))


if __name__ == "__main__":
    main()
