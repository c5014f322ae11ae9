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
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from results_file import write_results
from sotto.checkpoint import Recognizer
from sotto.examples import Example
from sotto.families import family_of
from sotto.methods import L0Pruning, LayerwiseDistillation
from sotto.methods.gate_costs import gate_costs
from sotto.methods.gate_decisions import carry_out, decide
from sotto.methods.gated_modules import KINDS, gated_modules
from sotto.methods.gates import Gates
from sotto.methods.hard_concrete import HardConcrete
from sotto.methods.l0_pruning import L0Objective
from sotto.metrics.cost import count_parameters
from sotto.new_models.parakeet import NewParakeet, build
from sotto.objectives import Setting, objectives
from sotto.training import TrainedModel, Training

SHAPE = NewParakeet(hidden_size=1024, layers=24, attention_heads=8, vocabulary=1024)
TARGET = 0.5


@contextmanager
def stage(name: str, found: list[dict[str, Any]]) -> Iterator[None]:
    start = time.perf_counter()
    yield
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found.append({"stage": name, "seconds": time.perf_counter() - start, "peak_memory": peak})
    print(f"{name}: {found[-1]['seconds']:.1f} s, most memory so far {peak / 1e9:.2f} GB", flush=True)


def words(count: int, rng: np.random.Generator) -> str:
    return " ".join("".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), 4)) for _ in range(count))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8.0, help="of the one clip of a step")
    parser.add_argument("--steps", type=int, default=2)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    found: list[dict[str, Any]] = []
    with stage("model", found):
        model, processor = build(SHAPE, [words(2000, rng)], seed=0)
        recognizer = Recognizer(model.to(torch.bfloat16), processor)
    before = count_parameters(model).total
    with stage("gates and teacher", found):
        gated = list(gated_modules(model, ["encoder"], KINDS))
        costs = gate_costs(recognizer, gated, "parameters")
        gates = Gates(gated, HardConcrete(), 0.9, with_modules=True)
        config = L0Pruning(Training(steps=arguments.steps, keep="last"), target=TARGET, target_warmup=0.0)
        family = family_of(model.config)(model, processor)
        distillation = LayerwiseDistillation()
        taught = objectives.handler(distillation)(distillation, Setting(family))
        trained = TrainedModel(family, [L0Objective(gates, costs, config), taught], 0.0).train()
    groups = [
        {"params": list(model.parameters()), "lr": 1e-5},
        {"params": list(gates.parameters()), "lr": config.gate_rate},
    ]
    optimizer = torch.optim.AdamW(groups, foreach=False)
    audio = rng.normal(0, 0.1, int(arguments.seconds * 16_000)).astype(np.float32)
    batch = family.collator("en")([Example(audio, words(8, rng), "en", None)])
    with trained.objectives[0].attached(model), taught.attached(model):
        for step in range(1, arguments.steps + 1):
            with stage(f"optimiser step {step}", found), torch.autocast("cpu", torch.bfloat16):
                trained(**batch)["loss"].backward()
                optimizer.step()
                optimizer.zero_grad()
                gates.clamp()
    del optimizer, trained, taught
    with stage("decision and removal", found):
        decisions = decide(gates, costs, TARGET)
        carry_out(model, gated, decisions)
    after = count_parameters(model).total
    print(f"{before:,} parameters before, {after:,} after: {after / before:.2%}")
    settings = vars(arguments) | {"threads": torch.get_num_threads()}
    print(
        write_results(
            "gates-true-shape",
            {"settings": settings, "parameters": {"before": before, "after": after}, "stages": found},
        )
    )


if __name__ == "__main__":
    main()
