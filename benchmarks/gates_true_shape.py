"""Memory and time of learnt gates at the shape of Parakeet-CTC-0.6B, with random weights in bf16.

    python benchmarks/gates_true_shape.py --seconds 8 --steps 2

Gates are attached, trained for a few optimiser steps with layerwise distillation, decided to half of the parameters,
and what is closed is taken out. After every stage: its time, and the most memory that the process has held so far.
Weights, gradients and AdamW's two moments are all bf16 here; in fp32, as training has them, they take twice as much.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from results_file import write_results
from sotto.checkpoint import Recognizer
from sotto.examples import Example
from sotto.methods import L0Pruning, LayerwiseDistillation
from sotto.methods.gate_costs import GateCosts, gate_costs
from sotto.methods.gate_decisions import carry_out, decide
from sotto.methods.gated_modules import KINDS, GatedModule, gated_modules
from sotto.methods.gates import Gates
from sotto.methods.hard_concrete import HardConcrete
from sotto.methods.l0_pruning import L0Objective
from sotto.metrics.cost import count_parameters
from sotto.new_models.parakeet import NewParakeet, build
from sotto.objectives import Setting, objectives
from sotto.speech_trainer import TrainedModel
from sotto.training import Training

SHAPE = NewParakeet(hidden_size=1024, layers=24, attention_heads=8, vocabulary=1024)
TARGET = 0.5


@contextmanager
def stage(name: str, found: list[dict[str, Any]]) -> Iterator[None]:
    start = time.perf_counter()
    yield
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found.append({"stage": name, "seconds": time.perf_counter() - start, "peak_memory": peak})
    print(f"{name}: {found[-1]['seconds']:.1f} s, most memory so far {peak / 1e9:.2f} GB", flush=True)


@dataclass(frozen=True)
class Parts:
    recognizer: Recognizer
    gated: list[GatedModule]
    costs: GateCosts
    gates: Gates


def with_gates(recognizer: Recognizer, config: L0Pruning) -> Parts:
    gated = list(gated_modules(recognizer.model, ["encoder"], KINDS))
    gates = Gates(gated, HardConcrete(), config.open_share, with_modules=True)
    return Parts(recognizer, gated, gate_costs(recognizer, gated, config.constraint), gates)


def words(count: int, rng: np.random.Generator) -> str:
    return " ".join("".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), 4)) for _ in range(count))


@contextmanager
def learning(parts: Parts, config: L0Pruning, audio: np.ndarray) -> Iterator[Callable[[], None]]:
    """An optimiser step on one clip, with gates and teacher attached meanwhile."""
    family, model = parts.recognizer.family, parts.recognizer.model
    objective = L0Objective(parts.gates, parts.costs, config)
    distillation = LayerwiseDistillation()
    taught = objectives.handler(distillation)(distillation, Setting(family))
    trained = TrainedModel(family, [objective, taught], 0.0).train()
    own = [
        {"params": group.parameters, "lr": group.learning_rate, "maximize": group.maximize}
        for group in objective.parameter_groups()
    ]
    optimizer = torch.optim.AdamW([{"params": list(model.parameters()), "lr": 1e-5}, *own], foreach=False)
    batch = family.collator("en")([Example(audio, "some words", "en", None)])
    done = 0

    def step() -> None:
        nonlocal done
        with torch.autocast("cpu", torch.bfloat16):
            trained(**batch)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        done += 1
        objective.after_step(model, done, 1e-5)

    with objective.attached(model), taught.attached(model):
        yield step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8.0, help="of the one clip of a step")
    parser.add_argument("--steps", type=int, default=2)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    config = L0Pruning(Training(steps=arguments.steps, keep="last"), target=TARGET, target_warmup=0.0)
    found: list[dict[str, Any]] = []
    with stage("model", found):
        recognizer = Recognizer(*build(SHAPE, [words(2000, rng)], 0, None))
        recognizer.model.to(torch.bfloat16)
    before = count_parameters(recognizer.model).total
    with stage("gates", found):
        parts = with_gates(recognizer, config)
    audio = rng.normal(0, 0.1, int(arguments.seconds * 16_000)).astype(np.float32)
    with ExitStack() as attached:
        with stage("teacher and optimiser", found):
            step = attached.enter_context(learning(parts, config, audio))
        for number in range(1, arguments.steps + 1):
            with stage(f"optimiser step {number}", found):
                step()
    del step
    with stage("decision and removal", found):
        carry_out(recognizer.model, parts.gated, decide(parts.gates, parts.costs, TARGET))
    after = count_parameters(recognizer.model).total
    print(f"{before:,} parameters before, {after:,} after: {after / before:.2%}")
    settings = vars(arguments) | {"threads": torch.get_num_threads()}
    counts = {"before": before, "after": after}
    print(write_results("gates-true-shape", {"settings": settings, "parameters": counts, "stages": found}))


if __name__ == "__main__":
    main()
