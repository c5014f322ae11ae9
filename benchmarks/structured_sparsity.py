"""WER against the share of parameters pruned, for sparsity after TSPAR and what it has to be better than.

    python benchmarks/structured_sparsity.py --model benchmarks/reference/NAME --train CORPUS/.../train \\
        --validation CORPUS/.../validation --test CORPUS/.../test --language en --normalizer english \\
        --steps 600 --folder runs/sparsity-NAME --name NAME

Every way trains for the same number of steps from the same model: without a penalty (`dense`), with the sparse group
lasso at each of `--lambdas`, or in rounds of iterative magnitude pruning. Then the trained models are pruned at once:
by magnitude, or by the statistics of their weights at each of `--elements`. WER is on the test clips, with paired
differences from the dense fine-tuned model and 95 % intervals. What was trained is kept in `--folder`, so that a second
call goes on. `--seeds` repeats the trainings at the lambda named by `--main`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from pruning_bench import Bench, line_of, opened, parser_for, printed, row_of
from results_file import write_results
from sotto.checkpoint import Recognizer
from sotto.methods import AdaptivePruning, MagnitudePruning, SparseGroupLasso, StepContext, methods
from sotto.methods.removal import remove_idle
from sotto.metrics.errors import ErrorReport

IMP_ROUNDS = 4
OWN_SETTINGS = ("form", "attention", "feed_forward")


def lasso(weight: float, arguments: argparse.Namespace) -> SparseGroupLasso:
    """The same lambda for elements and groups, in every stack that the model has."""
    decoder = 0.0 if arguments.encoder_only else weight
    return SparseGroupLasso(
        encoder_element=weight,
        encoder_group=weight,
        decoder_element=decoder,
        decoder_group=decoder,
        attention=arguments.attention,
        feed_forward=arguments.feed_forward,
        form=arguments.form,
    )


def rows(bench: Bench, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    dense = bench.trained("dense-0", bench.fine_tuning(0))
    before = bench.errors_of(dense)
    yield row_of(bench, "dense", dense, dense, before, before)
    yield from pruned(bench, arguments, "one-shot magnitude", dense, dense, before, "magnitude")
    yield from pruned(bench, arguments, "adaptive thresholds without SGL", dense, dense, before, "adaptive")
    for scope in ("global", "layer"):
        for share in arguments.shares:
            step = MagnitudePruning(share, scope, IMP_ROUNDS, bench.fine_tuning(0), remove=False)
            recognizer = bench.trained(f"imp-{scope}-{share:g}", step)
            remove_idle(recognizer.model)
            yield row_of(bench, f"IMP, {scope}", recognizer, dense, bench.errors_of(recognizer), before)
    for weight in arguments.lambdas:
        for seed in range(arguments.seeds if weight == arguments.main else 1):
            penalized = bench.fine_tuning(seed, lasso(weight, arguments))
            recognizer = bench.trained(f"sgl-{weight:g}-{seed}", penalized)
            labels = {"lambda": weight, "seed": seed}
            for row in pruned(bench, arguments, "SGL, magnitude", recognizer, dense, before, "magnitude"):
                yield row | labels
            for row in pruned(bench, arguments, "TSPAR", recognizer, dense, before, "adaptive"):
                yield row | labels
            yield searched(bench, arguments, recognizer, dense, before) | labels


def pruned(
    bench: Bench,
    arguments: argparse.Namespace,
    way: str,
    trained: Recognizer,
    dense: Recognizer,
    before: ErrorReport,
    by: str,
) -> Iterator[dict[str, Any]]:
    """The trained model, pruned further and further without training."""
    settings = arguments.shares if by == "magnitude" else arguments.elements
    for setting in settings:
        recognizer = trained.copy()
        step: Any = MagnitudePruning(setting)
        if by == "adaptive":
            step = AdaptivePruning(
                element=setting,
                group=arguments.group,
                attention=arguments.attention,
                feed_forward=arguments.feed_forward,
            )
        methods.handler(step)(recognizer, step, StepContext(bench.folder))
        row = row_of(bench, way, recognizer, dense, bench.errors_of(recognizer), before)
        yield row | {"share" if by == "magnitude" else "element": setting}


def searched(
    bench: Bench, arguments: argparse.Namespace, trained: Recognizer, dense: Recognizer, before: ErrorReport
) -> dict[str, Any]:
    """Thresholds that the search finds on the validation clips, at no WER above the dense model's there."""
    recognizer = trained.copy()
    step = AdaptivePruning(attention=arguments.attention, feed_forward=arguments.feed_forward)
    accepted = bench.validation_wer(dense)
    context = replace(bench.context("search"), validation_wer=bench.validation_wer, accepted_wer=accepted)
    notes = methods.handler(step)(recognizer, step, context)
    row = row_of(bench, "TSPAR, thresholds by search", recognizer, dense, bench.errors_of(recognizer), before)
    return row | {"notes": notes}


def line(row: dict[str, Any]) -> str:
    settings = ", ".join(f"{key} {row[key]:g}" for key in ("lambda", "seed", "element", "share") if key in row)
    return line_of(row, settings, *(f"{100 * row[key]:.1f} %" for key in ("pruned", "removed", "flops")))


def main() -> None:
    parser = parser_for(__doc__)
    parser.add_argument("--lambdas", type=float, nargs="*", default=[0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000])
    parser.add_argument("--main", type=float, help="the lambda that is repeated with other seeds")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--form", default="subgradient")
    parser.add_argument("--shares", type=float, nargs="*", default=[0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    parser.add_argument("--elements", type=float, nargs="*", default=[0.1, 0.2, 0.3, 0.45, 0.6, 0.8])
    parser.add_argument("--group", type=float, default=-1.5)
    parser.add_argument("--attention", default="column")
    parser.add_argument("--feed-forward", default="neuron")
    parser.add_argument("--encoder-only", action="store_true", help="for a CTC model")
    parser.add_argument("--memory", action="store_true", help="measure peak memory too")
    arguments = parser.parse_args()
    bench, settings = opened(arguments, OWN_SETTINGS, arguments.memory)
    found = printed(rows(bench, arguments), line)
    print(write_results(f"structured-sparsity-{arguments.name}", {"settings": settings, "rows": found}))


if __name__ == "__main__":
    main()
