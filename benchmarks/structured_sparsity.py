"""WER against the share of parameters pruned, for sparsity after TSPAR and what it has to be better than.

    python benchmarks/structured_sparsity.py --model benchmarks/reference/NAME --train CORPUS/.../train \\
        --validation CORPUS/.../validation --test CORPUS/.../test --language en --normalizer english \\
        --steps 600 --folder runs/sparsity-NAME --name NAME

Every way trains for the same number of steps from the same model: without a penalty (`dense`), with the sparse group
lasso at each of `--lambdas`, or in rounds of iterative magnitude pruning. Then the trained models are pruned at once:
by magnitude, or by the statistics of their weights at each pair of `--thresholds`. `SGL, recovered` prunes half-way;
`SGL, distilled` then has the model as it was teach the pruned one, layer by layer. `structured magnitude` takes a share
of the encoder's heads and neurons out before its training.
WER is on the test clips, with paired differences from the dense fine-tuned model and 95 % intervals. What was trained
and measured is kept in `--folder`, so that a second call goes on, and calls with some of the `--ways` and values share
the work. `--seeds` repeats the trainings at the lambda named by `--main`; at those named by `--searched` thresholds
are also searched for.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from pruning_bench import Bench, Made, line_of, opened, parser_for, printed, row_of
from results_file import write_results
from sotto.checkpoint import Recognizer
from sotto.methods import (
    AdaptivePruning,
    HoldZeros,
    LayerwiseDistillation,
    MagnitudePruning,
    SparseGroupLasso,
    StepContext,
    StructuredMagnitude,
    methods,
)
from sotto.methods.removal import remove_idle

IMP_ROUNDS = 4
OWN_SETTINGS = ("encoder_only",)
RECOVERIES = ("recovered", "distilled")
WAYS = (
    "one-shot",
    "IMP, global",
    "IMP, layer",
    "structured magnitude",
    "SGL",
    *(f"SGL, {each}" for each in RECOVERIES),
)
DENSE = "dense"


@dataclass(frozen=True)
class Case:
    """A row: a model that was trained, and steps that prune it at once."""

    way: str
    name: str
    """of the file that keeps what was measured"""
    start: Callable[[], Recognizer]
    steps: Sequence[Any] = ()
    labels: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Lasso:
    """A training with the sparse group lasso: the same lambda for elements and groups, in every stack there is."""

    weight: float
    seed: int
    groups: str
    form: Any
    encoder_only: bool

    @property
    def name(self) -> str:
        return f"sgl-{self.form}-{self.groups.replace('/', '-')}-{self.weight:g}-{self.seed}"

    @property
    def labels(self) -> dict[str, Any]:
        return {"lambda": self.weight, "seed": self.seed, "groups": self.groups, "form": self.form}

    @property
    def objective(self) -> SparseGroupLasso:
        decoder = 0.0 if self.encoder_only else self.weight
        return SparseGroupLasso(
            encoder_element=self.weight,
            encoder_group=self.weight,
            decoder_element=decoder,
            decoder_group=decoder,
            form=self.form,
            **kinds(self.groups),
        )


@dataclass(frozen=True)
class Thresholds:
    """Of both passes of adaptive pruning: `ELEMENT/GROUP` or `ELEMENT/GROUP/DECODER_GROUP` on the command line."""

    element: float
    group: float
    decoder_group: float | None = None
    """that of the decoder, where it has one of its own"""

    @property
    def name(self) -> str:
        return "-".join(f"{value:g}" for value in self.values.values())

    @property
    def values(self) -> dict[str, float]:
        return {key: value for key, value in asdict(self).items() if value is not None}

    def steps(self, groups: str) -> list[AdaptivePruning]:
        both = AdaptivePruning(element=self.element, group=self.group, **kinds(groups))
        if self.decoder_group is None:
            return [both]
        return [replace(both, stacks=("encoder",)), replace(both, group=self.decoder_group, stacks=("decoder",))]


def thresholds_of(words: str) -> Thresholds:
    element, group, *decoder_group = (float(word) for word in words.split("/"))
    return Thresholds(element, group, *decoder_group)


def kinds(groups: str) -> dict[str, Any]:
    """`column/neuron` -> the groups of attention and of feed-forward networks."""
    attention, feed_forward = groups.split("/")
    return {"attention": attention, "feed_forward": feed_forward}


def lassos(arguments: argparse.Namespace) -> Iterator[Lasso]:
    """Every lambda once; the main one with every seed, and in every kind of groups."""
    for weight in arguments.lambdas:
        is_main = weight == arguments.main
        for seed in arguments.seeds if is_main else arguments.seeds[:1]:
            for groups in arguments.groups if is_main and seed == arguments.seeds[0] else arguments.groups[:1]:
                yield Lasso(weight, seed, groups, arguments.form, arguments.encoder_only)


def cases(bench: Bench, arguments: argparse.Namespace) -> Iterator[Case]:
    """All that is asked for but the dense model."""
    groups = arguments.groups[0]
    if "one-shot" in arguments.ways:
        dense = partial(bench.trained, "dense-0", bench.fine_tuning(0))
        name = f"adaptive-{groups.replace('/', '-')}"
        yield from by_magnitude("one-shot magnitude", "one-shot", dense, arguments)
        yield from by_statistics("adaptive thresholds without SGL", name, dense, arguments, groups)
        steps = [AdaptivePruning(**kinds(groups))]
        yield Case("thresholds by search without SGL", f"{name}-search", dense, steps)
    for scope in ("global", "layer"):
        for share in arguments.shares if f"IMP, {scope}" in arguments.ways else ():
            rounds = MagnitudePruning(share, scope, IMP_ROUNDS, bench.fine_tuning(0), remove=False)
            name = f"imp-{scope}-{share:g}"
            trained = partial(bench.trained, name, rounds)
            yield Case(f"IMP, {scope}", f"{name}-measured", trained, labels={"share": share})
    for share in arguments.shares if "structured magnitude" in arguments.ways else ():
        gone = StructuredMagnitude(heads=share, neurons=share, stacks=("encoder",))
        name = f"structured-{share:g}"
        trained = partial(bench.trained, name, gone, bench.fine_tuning(0))
        yield Case("structured magnitude", f"{name}-measured", trained, labels={"share": share})
    for recovery in RECOVERIES:
        for lasso in lassos(arguments) if f"SGL, {recovery}" in arguments.ways else ():
            yield from recovered(bench, lasso, arguments, recovery)
    for lasso in lassos(arguments) if "SGL" in arguments.ways else ():
        trained = partial(bench.trained, lasso.name, bench.fine_tuning(lasso.seed, lasso.objective))
        yield from by_magnitude("SGL, magnitude", lasso.name, trained, arguments, lasso.labels)
        yield from by_statistics("TSPAR", lasso.name, trained, arguments, lasso.groups, lasso.labels)
        if lasso.weight in arguments.searched:
            steps = [AdaptivePruning(**kinds(lasso.groups))]
            yield Case("TSPAR, thresholds by search", f"{lasso.name}-search", trained, steps, lasso.labels)


def recovered(bench: Bench, lasso: Lasso, arguments: argparse.Namespace, recovery: str) -> Iterator[Case]:
    """Half of the steps with the penalty, thresholds, then the other half on clips drawn anew, with the zeros held."""
    half = bench.training.steps // 2
    penalized = bench.fine_tuning(lasso.seed, lasso.objective, steps=half)
    terms = [HoldZeros(), *([LayerwiseDistillation(bench.model)] if recovery == "distilled" else [])]
    healed = bench.fine_tuning(lasso.seed + 1, *terms, steps=bench.training.steps - half)
    for thresholds in arguments.thresholds:
        name = f"{lasso.name}-{recovery}-{thresholds.name}"
        trained = partial(bench.trained, name, penalized, *thresholds.steps(lasso.groups), healed)
        yield Case(f"TSPAR, {recovery}", f"{name}-measured", trained, labels=lasso.labels | thresholds.values)


def by_magnitude(
    way: str, name: str, start: Callable[[], Recognizer], arguments: argparse.Namespace, labels: Any = ()
) -> Iterator[Case]:
    for share in arguments.shares:
        yield Case(way, f"{name}-{share:g}", start, [MagnitudePruning(share)], dict(labels) | {"share": share})


def by_statistics(
    way: str, name: str, start: Callable[[], Recognizer], arguments: argparse.Namespace, groups: str, labels: Any = ()
) -> Iterator[Case]:
    for thresholds in arguments.thresholds:
        labelled = dict(labels) | thresholds.values
        yield Case(way, f"{name}-by-{thresholds.name}", start, thresholds.steps(groups), labelled)


def made(bench: Bench, case: Case) -> Made:
    """A search is bounded by the dense fine-tuned model's WER on the validation clips."""
    recognizer = case.start()
    if not case.steps:
        remove_idle(recognizer.model)
    context = StepContext(bench.folder)
    if any(step.needs for step in case.steps):
        accepted = bench.validation_wer(bench.trained("dense-0", bench.fine_tuning(0)))
        context = StepContext(bench.folder, validation_wer=bench.validation_wer, accepted_wer=accepted)
    return recognizer, [note for step in case.steps for note in methods.handler(step)(recognizer, step, context)]


def rows(bench: Bench, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The dense model is measured last, so that calls side by side, which all need it, train their own meanwhile."""
    wanted = [case for case in cases(bench, arguments) if bench.wanted(case.name)]
    found = [(case, bench.measured(case.name, partial(made, bench, case))) for case in wanted]
    dense = bench.measured(DENSE, lambda: (bench.trained("dense-0", bench.fine_tuning(0)), ()))
    yield row_of(bench, DENSE, dense, dense)
    for case, own in found:
        yield row_of(bench, case.way, own, dense) | case.labels


def line(row: dict[str, Any]) -> str:
    labels = ("lambda", "seed", "groups", "element", "group", "decoder_group", "share")
    settings = ", ".join(f"{key} {row[key]}" for key in labels if key in row)
    return line_of(row, settings, *(f"{100 * row[key]:.1f} %" for key in ("pruned", "removed", "flops")))


def main() -> None:
    parser = parser_for(__doc__)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--lambdas", type=float, nargs="*", default=[0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000])
    parser.add_argument("--main", type=float, help="the lambda that is repeated with other seeds and groups")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--searched", type=float, nargs="*", default=[], help="lambdas whose thresholds are searched for"
    )
    parser.add_argument("--form", default="subgradient")
    parser.add_argument("--shares", type=float, nargs="*", default=[0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    default = [Thresholds(element, -1.5) for element in (0.1, 0.2, 0.3, 0.45, 0.6, 0.8)]
    parser.add_argument(
        "--thresholds", type=thresholds_of, nargs="*", default=default, metavar="ELEMENT/GROUP[/DECODER_GROUP]"
    )
    parser.add_argument(
        "--groups", nargs="+", default=["column/neuron"], help="of attention/feed-forward networks; the first for all"
    )
    parser.add_argument("--encoder-only", action="store_true", help="for a CTC model")
    parser.add_argument("--memory", action="store_true", help="measure peak memory too")
    arguments = parser.parse_args()
    bench, settings = opened(arguments, OWN_SETTINGS, arguments.memory)
    settings["thresholds"] = [thresholds.values for thresholds in arguments.thresholds]
    found = printed(rows(bench, arguments), line)
    print(write_results(f"structured-sparsity-{arguments.name}", {"settings": settings, "rows": found}))


if __name__ == "__main__":
    main()
