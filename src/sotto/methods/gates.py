"""Hard concrete gates on the modules of a model and on their units (Louizos et al., 2018; Xia et al., 2022, CoFi).

A module's gate multiplies what it adds to the residual stream; a unit's gate what it hands to the module's last part.
Behind batch norm and activation, that is: before them, the norm would move zeros somewhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

from sotto.methods.gated_modules import GatedModule, of_inputs
from sotto.methods.hard_concrete import HardConcrete


class Gates(nn.Module):
    """The locations of all gates, in the order of `gated`: one a module, and one a unit where units have gates."""

    def __init__(
        self, gated: Sequence[GatedModule], distribution: HardConcrete, open_share: float, with_modules: bool
    ) -> None:
        """`open_share`: how likely it is at first that a unit of a network or convolution is heard; others are open."""
        super().__init__()
        self.gated = tuple(gated)
        self.distribution = distribution
        most, first = distribution.most, distribution.location_for(open_share)
        self.of_modules = nn.Parameter(torch.full((len(self.gated),), most)) if with_modules else None
        self.of_units = nn.ParameterList(
            torch.full((each.units,), most if each.channels > 1 else first) for each in self.gated if each.has_units
        )
        numbers = iter(range(len(self.of_units)))
        self.place = [next(numbers) if each.has_units else None for each in self.gated]

    def units(self, index: int) -> torch.Tensor | None:
        """Locations (units,) of the gates within a module, where there are any."""
        place = self.place[index]
        return None if place is None else self.of_units[place]

    def module(self, index: int) -> torch.Tensor | None:
        """The location (1,) of a module's gate, where there is one."""
        return None if self.of_modules is None else self.of_modules[index : index + 1]

    def expected(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """For every module, how likely it is to be there, and how many of its units are expected then."""
        found = []
        for index, gated in enumerate(self.gated):
            module, units = self.module(index), self.units(index)
            device = self.of_units[0].device if module is None and len(self.of_units) else None
            there = torch.ones((), device=device) if module is None else self.probability(module).squeeze()
            count = torch.full_like(there, gated.units) if units is None else self.probability(units).sum()
            found.append((there, count))
        return found

    def probability(self, location: torch.Tensor) -> torch.Tensor:
        return self.distribution.probability_open(location)

    @torch.no_grad()
    def clamp(self) -> None:
        for location in self.parameters():
            self.distribution.clamp(location)

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[None]:
        """While this lasts, the gates are in `model`: drawn anew for every pass in training, fixed otherwise."""

        def of(
            locations: Callable[[int], torch.Tensor | None],
            fixed: dict[int, torch.Tensor],
            index: int,
            is_training: bool,
        ) -> torch.Tensor | None:
            location = locations(index)
            if location is None:
                return None
            if is_training:
                fixed.clear()  # the step that follows moves the locations
                return self.distribution.sample(location)
            if index not in fixed:
                fixed[index] = self.distribution.gates(location)
            return fixed[index]

        with gated_by(model, self.gated, partial(of, self.module, {}), partial(of, self.units, {})):
            yield


Values = Callable[[int, bool], torch.Tensor | None]
"""What to multiply with, for the index of a module, and whether this is training."""


@contextmanager
def gated_by(model: nn.Module, gated: Sequence[GatedModule], of_module: Values, of_units: Values) -> Iterator[None]:
    """While this lasts, what every module says is multiplied by (1,), and what its units say by (units,)."""

    def before(index: int, outward: nn.Module, inputs: tuple[torch.Tensor]) -> torch.Tensor:
        values = of_units(index, outward.training)
        if values is None:
            return inputs[0]
        values = of_inputs(values, gated[index]).to(inputs[0].dtype)
        return inputs[0] * (values[:, None] if isinstance(outward, nn.Conv1d) else values)

    def after(index: int, outward: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        value = of_module(index, outward.training)
        return output if value is None else output * value.to(output.dtype)

    handles = []
    for index, each in enumerate(gated):
        outward = model.get_submodule(each.outward)
        handles.append(outward.register_forward_pre_hook(partial(before, index)))
        handles.append(outward.register_forward_hook(partial(after, index)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
