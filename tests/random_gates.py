"""Gates that were never trained, and what they leave of a model."""

from typing import Any

import torch

from sotto.checkpoint import Recognizer
from sotto.methods.gate_costs import gate_costs
from sotto.methods.gate_decisions import carry_out, decide
from sotto.methods.gated_modules import KINDS, GatedModule, gated_modules
from sotto.methods.gates import Gates
from sotto.methods.hard_concrete import HardConcrete

STACKS = ("encoder", "decoder")


def modules_of(found: Recognizer, kinds: Any = KINDS) -> list[GatedModule]:
    return list(gated_modules(found.model, STACKS, kinds))


def random_gates(found: Recognizer, seed: int = 0, kinds: Any = KINDS) -> Gates:
    gates = Gates(modules_of(found, kinds), HardConcrete(), 0.9, "modules" in kinds)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for location in gates.parameters():
            location.normal_(1.0, 2.0, generator=generator)
    gates.clamp()
    return gates


def prune_at_random(found: Recognizer, target: float, seed: int = 0) -> None:
    """Leave `target` of the parameters, as l0_pruning does after training."""
    gates = random_gates(found, seed)
    carry_out(found.model, gates.gated, decide(gates, gate_costs(found, gates.gated, "parameters"), target))
