"""WER, size and speed of learnt gates with layerwise distillation, and of what they have to be better than.

    python benchmarks/conformer_pruning.py --model benchmarks/reference/NAME --train CORPUS/.../train \\
        --validation CORPUS/.../validation --test CORPUS/.../test --language en --normalizer english \\
        --steps 600 --recovery 300 --folder runs/pruning-NAME --name NAME

Every way is given the same number of training steps in all, and ends with the same recovery: gates train for `--steps`
and recover for `--recovery`; those that start in the order of Taylor importance the other way round, at a quarter of
the rate; what is pruned at once recovers for both together. What the model has learnt before is not counted: "smaller
from nothing" has these steps alone, with random weights. WER is on the test clips, with paired differences from the
dense model after as much training, and 95 % intervals; `beyond` is what a way's WER is above that of the first way with
the same target, paired too; their sizes may differ. Latency is that of models of the same shapes, the median of visits
that take turns. What was trained and measured is kept in `--folder`, so that a second call goes on, and calls with some
of the `--ways` and targets can share the work.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import ParakeetForCTC

from pruning_bench import Bench, Made, difference, line_of, opened, parser_for, printed, row_of
from results_file import write_results
from sotto.architectures import set_setting
from sotto.auto_classes import classes_of, sotto_config
from sotto.checkpoint import Recognizer
from sotto.methods import (
    FineTuning,
    ImportancePruning,
    L0Pruning,
    LayerDropping,
    LayerwiseDistillation,
    MagnitudePruning,
)
from sotto.metrics.cost import count_parameters
from sotto.new_models.parakeet import scale_start
from sotto.side_by_side import SideBySide, Timing, benchmark
from sotto.surgery import get_linear, linears_of

BOUND_THREADS = 2  # that a bound on latency is of, whatever threads rows are timed on
OWN_SETTINGS = ("recovery", "gate_rate", "seed")


@dataclass(frozen=True)
class Way:
    """Steps that prune a model to a target, and what is then done to let it recover."""

    prune: Callable[[float], list[Any]]
    recovery: FineTuning | None
    """None where it is a part of the pruning"""
    start: Callable[[], Recognizer] | None = None
    """gives what is pruned, where that is not the model"""


def ways(bench: Bench, arguments: argparse.Namespace, base: Recognizer) -> dict[str, Way]:
    """All that are compared."""
    layers = base.architecture.stacks[0].dimensions(base.model.config).layers
    linears = sum(get_linear(base.model, *place).weight.numel() for place in linears_of(base.model))
    of_linears = count_parameters(base.model).total / linears  # zeros are in linears only, but counted over all
    short, whole = arguments.recovery, arguments.steps + arguments.recovery
    distilled = LayerwiseDistillation(bench.model)
    seed = arguments.seed
    gated, alone = bench.fine_tuning(seed).training, bench.fine_tuning(seed, steps=whole)
    taught = bench.fine_tuning(seed, distilled, steps=whole)
    after, after_taught = bench.fine_tuning(seed + 1, steps=short), bench.fine_tuning(seed + 1, distilled, steps=short)

    def gates(*terms: Any, **changes: Any) -> Callable[[float], list[Any]]:
        return lambda target: [
            L0Pruning(gated, terms, target=target, gate_rate=arguments.gate_rate, **bench.learnt, **changes)
        ]

    def taylor(target: float, **cost: Any) -> list[Any]:
        return [ImportancePruning(target, **cost, by="taylor", transcripts=bench.transcripts)]

    time: dict[str, Any] = {"constraint": "latency", "threads": BOUND_THREADS}
    few = replace(
        gated, steps=short, warmup_steps=short // 20, evaluate_every=short
    )  # what is known need not be learnt
    after_few = bench.fine_tuning(seed + 1, distilled, steps=arguments.steps)

    def from_taylor(target: float, **cost: Any) -> list[Any]:
        start: dict[str, Any] = {"start": "taylor", "gate_rate": arguments.gate_rate / 4, **bench.learnt}
        return [L0Pruning(few, (LayerwiseDistillation(),), target=target, **cost, **start)]

    found = {
        "L0 from Taylor and distillation": Way(from_taylor, after_few),
        "L0 from Taylor and distillation, latency": Way(partial(from_taylor, **time), after_few),
        "L0 from Taylor and distillation, flops": Way(partial(from_taylor, constraint="flops"), after_few),
        "L0 and distillation": Way(gates(LayerwiseDistillation()), after_taught),
        "L0 without distillation": Way(gates(), after),
        "L0 and distillation, modules only": Way(gates(LayerwiseDistillation(), gates=("modules",)), after_taught),
        "L0 and distillation, latency": Way(gates(LayerwiseDistillation(), **time), after_taught),
        "magnitude": Way(lambda target: [ImportancePruning(target)], alone),
        "magnitude and distillation": Way(lambda target: [ImportancePruning(target)], taught),
        "Taylor": Way(taylor, alone),
        "Taylor and distillation": Way(taylor, taught),
        "Taylor and distillation, latency": Way(partial(taylor, **time), taught),
        "layer dropping": Way(lambda target: [LayerDropping(encoder=max(1, round(layers * target)))], alone),
        "unstructured magnitude": Way(
            lambda target: [MagnitudePruning((1 - target) * of_linears, rounds=2, recovery=alone)], None
        ),
    }
    if isinstance(base.model, ParakeetForCTC):
        found["smaller from nothing"] = Way(
            lambda target: [ImportancePruning(target)], alone, partial(untrained, bench)
        )
    return found


def rows(bench: Bench, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    all_ways = ways(bench, arguments, bench.base())
    unknown = set(arguments.ways) - set(all_ways)
    if unknown:
        raise SystemExit(f"unknown ways: {', '.join(sorted(unknown))}; known: {', '.join(all_ways)}")
    found = []
    for target in arguments.targets:
        for name in arguments.ways or all_ways:
            folder = f"{name.replace(', ', '-').replace(' ', '-').lower()}-{target:g}"
            make = partial(pruned, bench, folder, all_ways[name], target)
            if bench.wanted(f"{folder}-measured"):
                found.append((name, target, bench.measured(f"{folder}-measured", make)))
    whole = bench.fine_tuning(arguments.seed, steps=arguments.steps + arguments.recovery)
    dense = bench.measured("dense-measured", lambda: (bench.trained("dense", whole), ()))
    yield row_of(bench, "dense", dense, dense) | {"structure": dense.structure}
    first = next(iter(all_ways))
    held_to = {target: own for name, target, own in found if name == first}
    for name, target, own in found:
        row = row_of(bench, name, own, dense) | {"target": target, "structure": own.structure}
        ours = held_to.get(target, own)
        if ours is not own:
            row["beyond"] = difference(ours.errors(bench.normalizer), own.errors(bench.normalizer))
        yield row


def pruned(bench: Bench, folder: str, way: Way, target: float) -> Made:
    steps = [*way.prune(target), *([way.recovery] if way.recovery is not None else [])]
    return bench.trained(folder, *steps, start=way.start), bench.notes_of(folder)


def untrained(bench: Bench) -> Recognizer:
    """The model as it would be before any training; narrowed, it is a smaller one."""
    found = bench.base()
    torch.manual_seed(0)
    fresh = ParakeetForCTC(found.model.config)
    scale_start(fresh, found.model.config.encoder_config.num_hidden_layers)
    found.model.load_state_dict(fresh.state_dict())
    return found


def speeds(bench: Bench, found: list[dict[str, Any]], timing: Timing) -> list[SideBySide]:
    """Latency over a window, of models of the rows' shapes against the dense one; rows of one shape share a model."""
    shapes = [json.dumps(row["structure"]) for row in found]
    with tempfile.TemporaryDirectory() as scratch:
        folders = {
            shape: str(shaped(bench, json.loads(shape), Path(scratch) / str(index)))
            for index, shape in enumerate(dict.fromkeys(shapes))
        }
        timed = dict(zip(folders, benchmark(list(folders.values()), timing), strict=True))
        return [timed[shape] for shape in shapes]


def shaped(bench: Bench, structure: dict[str, Any], folder: Path) -> Path:
    """A checkpoint of the shapes of a record, with random weights: time does not depend on what they are."""
    base = bench.base()
    config = sotto_config(base.model.config)
    config.sotto = structure
    for stack in base.architecture.stacks:
        set_setting(config, stack.layer_count, len(structure["stacks"][stack.name]["layers"]))
    torch.manual_seed(0)
    model: Any = classes_of(config).model(config)
    return Recognizer(model.eval(), base.processor).save(folder, dtype="float32")


def line(row: dict[str, Any]) -> str:
    target = f"{row['target']:.0%}" if "target" in row else ""
    return line_of(row, target, f"{100 * (1 - row['removed']):.1f} %", f"{100 * row['flops']:.1f} %")


def main() -> None:
    parser = parser_for(__doc__)
    parser.add_argument("--recovery", type=int, default=300)
    parser.add_argument("--gate-rate", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0, help="of the trainings; another one needs another folder")
    parser.add_argument("--targets", type=float, nargs="*", default=[0.7, 0.5, 0.4, 0.3], help="shares that are left")
    parser.add_argument("--ways", nargs="*", default=[], help="names of rows; all of them if not given")
    parser.add_argument("--rounds", type=int, default=3, help="of timing; none: 0")
    parser.add_argument("--threads", type=int, default=2, help="that rows are timed on")
    arguments = parser.parse_args()
    bench, settings = opened(arguments, OWN_SETTINGS)
    found = printed(rows(bench, arguments), line)
    timed = speeds(bench, found, Timing(rounds=arguments.rounds, threads=arguments.threads)) if arguments.rounds else []
    for row, speed in zip(found, timed, strict=bool(timed)):
        latency = speed.numbers.latency
        assert latency is not None
        rate = latency.real_time_factor
        row |= {"latency": latency.total, "real_time_factor": rate, "speedup": speed.total_speedup}
        print(f"{line(row)} {1000 * latency.total:.1f} ms, RTFx {rate:.1f}, {speed.total_speedup:.2f}x", flush=True)
    print(write_results(f"conformer-pruning-{arguments.name}", {"settings": settings, "rows": found}))


if __name__ == "__main__":
    main()
