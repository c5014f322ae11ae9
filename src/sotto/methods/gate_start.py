"""Where gates begin whose units' worth is known: in that order, and about the target already.

This is ours, and of no paper: gates that all begin alike spend most of a short training on finding out what a pass over
a few training clips tells.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sotto.methods.gate_costs import GateCosts
from sotto.methods.gate_decisions import around
from sotto.methods.gates import Gates

SLOPE = 20.0
"""how far the locations of the units that are worth least and most would be apart; both ends are almost decided"""
STILL_OPEN = 0.15
"""share of what closing units could save that is left at first, where the target would have nearly all of them closed:
with times, a module costs what an eighth of its units does, and only closing whole modules saves more"""


@torch.no_grad()
def start_in_order(gates: Gates, costs: GateCosts, worths: Sequence[torch.Tensor], target: float) -> None:
    """Set the locations of units by what they are `worth` (units,), one tensor for each module, all comparable.

    A location rises evenly with the share of all units' cost that is worth less, so that `target` is expected to be
    left of the whole cost, or what is left with `STILL_OPEN`. Locations of modules stay. In place.
    """
    places = places_of(gates, costs, worths)

    def begin(shift: float) -> float:
        for location, place in zip(gates.of_units, places, strict=True):
            location.copy_(SLOPE * place + shift)
        gates.clamp()
        return float(costs.share(gates.expected()))

    reach = SLOPE + gates.distribution.most
    closed = begin(-reach)
    aim = max(target, closed + STILL_OPEN * (1 - closed))
    begin(around(lambda shift: begin(shift) <= aim, -reach, reach)[0])


def places_of(gates: Gates, costs: GateCosts, worths: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """For each unit that has a gate, the share of the cost of all that have, of those that are worth less: 0 to 1."""
    chosen = [index for index, place in enumerate(gates.place) if place is not None]
    prices = [torch.full((gates.gated[i].units,), costs.modules[i].costs[-1] / gates.gated[i].units) for i in chosen]
    order = torch.cat([worths[index] for index in chosen]).argsort(stable=True)
    price = torch.cat(prices).double()
    spent = price[order].cumsum(0) - price[order]
    places = torch.empty_like(price).index_copy_(0, order, spent / price.sum())
    return list(places.split([len(each) for each in prices]))
