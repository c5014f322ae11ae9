"""What stays of a model whose gates are learnt: decided, folded into the weights, and taken out."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from sotto.architectures import Attention
from sotto.checkpoint import Recognizer
from sotto.distribution import found_by_main
from sotto.methods.gate_costs import Constraint, GateCosts
from sotto.methods.gated_modules import GatedModule, of_inputs
from sotto.methods.gates import Gates
from sotto.methods.module_times import ROUNDS, on_threads, whole_seconds

HALVINGS = 40
TOLERANCE = 0.01  # of the target, by which what is left may be less without a word


@dataclass(frozen=True)
class Decision:
    """The values of a module's gate and of those of its units (units,); zero is closed."""

    module: float
    units: torch.Tensor

    @property
    def kept(self) -> list[int]:
        return self.units.nonzero().flatten().tolist() if self.module else []


@torch.no_grad()
def decide(gates: Gates, costs: GateCosts, target: float) -> list[Decision]:
    """Soft values for gates that stay open, so that what is left costs `target` of the whole or just less.

    Decisions cost a little more or less than was expected of them, and training may have ended off its target. So all
    locations are moved by one number up to where they cross the target. Modules then stand as just before or just after
    it, and the locations of their units are moved on alone, or back; so then do heads, and neurons and channels, which
    cost least, fill what is left. Closed modules that still fit are opened again, the likeliest first.
    """
    most = 4 * gates.distribution.most

    def decided(modules: float, heads: float, others: float) -> list[Decision]:
        return [decision(gates, index, modules, heads, others) for index in range(len(gates.gated))]

    def fits(*shifts: float) -> bool:
        return share_of(decided(*shifts), costs) <= target

    def crossing(is_within: Callable[[float], bool]) -> tuple[float, float]:
        return around(is_within, -most, most)

    def heads_beside(modules: float) -> tuple[float, float]:
        return crossing(lambda units: fits(modules, units, units))

    found = [
        decided(modules, heads, crossing(partial(fits, modules, heads))[0])
        for modules in crossing(lambda shift: fits(shift, shift, shift))
        for heads in heads_beside(modules)
    ]
    best = max(found, key=lambda decisions: (share_of(decisions, costs) <= target, share_of(decisions, costs)))
    return opened_where_fitting(best, gates, costs, target)


def opened_where_fitting(
    decisions: Sequence[Decision], gates: Gates, costs: GateCosts, target: float
) -> list[Decision]:
    """`decisions`, and closed modules opened again, by their locations, as long as `target` is not passed."""
    found = list(decisions)
    if gates.of_modules is None:
        return found
    soft = gates.distribution.gates(gates.of_modules, 4 * gates.distribution.most).tolist()
    for index in gates.of_modules.argsort(descending=True, stable=True).tolist():
        if found[index].module == 0:
            opened = [*found[:index], replace(found[index], module=soft[index]), *found[index + 1 :]]
            found = opened if share_of(opened, costs) <= target else found
    return found


def around(is_within: Callable[[float], bool], low: float, high: float) -> tuple[float, float]:
    """Where a bound is crossed, by halving, given that smaller numbers are within: just before it and just after."""
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if is_within(middle) else (low, middle)
    return low, high


def decision(gates: Gates, index: int, modules: float, heads: float, others: float) -> Decision:
    """With the locations of modules, heads and other units moved by so much, where it is decided which are open."""
    of_module, of_units = gates.module(index), gates.units(index)
    distribution = gates.distribution
    module = 1.0 if of_module is None else float(distribution.gates(of_module, modules))
    if of_units is None:
        return Decision(module, torch.ones(gates.gated[index].units))
    shift = heads if isinstance(gates.gated[index].module, Attention) else others
    return Decision(module, distribution.gates(of_units, shift).cpu())


def least_share(gates: Gates, costs: GateCosts) -> float:
    """What is left where all that has a gate is closed."""
    closed = torch.zeros(())
    expected = []
    for index, gated in enumerate(gates.gated):
        can_close = gates.module(index) is not None or gates.units(index) is not None
        units = torch.tensor(float(gated.units))
        expected.append((closed, units) if can_close else (torch.ones(()), units))
    return float(costs.share(expected))


def share_of(decisions: Sequence[Decision], costs: GateCosts) -> float:
    kept = [torch.tensor(float(len(decision.kept))) for decision in decisions]
    return float(costs.share([((count > 0).float(), count) for count in kept]))


def left_notes(
    recognizer: Recognizer,
    before: Recognizer | None,
    left: float,
    costs: GateCosts,
    constraint: Constraint,
    target: float,
) -> list[str]:
    """How much is left of the cost, by `costs`; of time also what is measured of the pruned `recognizer`.

    `before` is the model before pruning, which then takes turns with it: the machine may be another one by now.
    """
    missed = ", and is missed by more than 1 %" if left < (1 - TOLERANCE) * target else ""
    aim = f"the target was {target:.1%}{missed}"
    if costs.length is None:
        return [f"{left:.1%} of the {constraint} are left; {aim}"]
    of_what = f"{left:.1%} of the {constraint} of {costs.length:g} s"
    if constraint == "flops":
        return [f"{of_what} are left; {aim}"]
    assert before is not None
    dense, length = before, costs.length
    with on_threads(costs.threads):
        measured = found_by_main(lambda: time_left(recognizer, dense, length))
        threads = torch.get_num_threads()
    return [
        f"{of_what} are expected to be left, from times of its modules; {aim}",
        f"the whole pruned model was measured to take {measured:.1%} of the latency before, threads: {threads}",
    ]


def time_left(pruned: Recognizer, dense: Recognizer, length: float) -> float:
    """Time of the one as a share of the other's, the median of rounds."""
    return statistics.median(whole_seconds(pruned, length) / whole_seconds(dense, length) for _ in range(ROUNDS))


@torch.no_grad()
def carry_out(model: Any, gated: Sequence[GatedModule], decisions: Sequence[Decision]) -> None:
    """Fold the values of open gates into the last parts of their modules, and take out what is closed."""
    for each, decision in zip(gated, decisions, strict=True):
        outward = model.get_submodule(each.outward)
        values = of_inputs(decision.units, each).to(outward.weight) * decision.module
        outward.weight *= values.view(1, -1, *[1] * (outward.weight.ndim - 2))
        if outward.bias is not None:
            outward.bias *= decision.module
    for each, decision in zip(gated, decisions, strict=True):
        each.keep(model, decision.kept)
