"""The hard concrete distribution (Louizos et al., 2018, arXiv:1712.01312): gates that are exactly 0 or 1 now and then.

A gate has one parameter, `location` (log alpha of the paper). All functions work element by element on tensors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class HardConcrete:
    """A concrete variable of `temperature`, stretched to (`low`, `high`) and clipped to [0, 1]."""

    temperature: float = 2 / 3
    low: float = -0.1
    high: float = 1.1
    sharpness: float = 0.8
    """what the location is multiplied by in deterministic gates, divided by the temperature (as CoFi does)"""
    least: float = math.log(0.01)
    most: float = math.log(100)
    """locations are kept between these, where gradients are not yet lost"""
    margin: float = 1e-6
    """uniform draws and probabilities stay this far from 0 and 1"""

    def sample(self, location: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Gates for one training step, differentiable in `location` (eq. 10 and 11)."""
        uniform = torch.rand(location.shape, generator=generator, device=location.device, dtype=location.dtype)
        uniform = uniform * (1 - 2 * self.margin) + self.margin
        concrete = torch.sigmoid((uniform.log() - (1 - uniform).log() + location) / self.temperature)
        return self.clipped(concrete)

    def probability_open(self, location: torch.Tensor) -> torch.Tensor:
        """The probability that a gate is not zero (eq. 12): what the expected size is made of."""
        shift = self.temperature * math.log(-self.low / self.high)
        return torch.sigmoid(location - shift).clamp(self.margin, 1 - self.margin)

    def gates(self, location: torch.Tensor, shift: float = 0.0) -> torch.Tensor:
        """Gates for use, as CoFi has them: as many are zero as are expected to be, the others keep a soft value.

        `location` (gates,); the expected number of zeros is rounded, and the lowest locations give them. How many they
        are, but no value of another, is that of locations moved by `shift`.
        """
        zeros = round(len(location) - self.probability_open(location + shift).sum().item())
        soft = torch.sigmoid(location * self.sharpness / self.temperature)
        if zeros:
            soft = soft.index_fill(0, location.argsort(stable=True)[:zeros], 0.0)
        return soft

    def location_for(self, open_share: float) -> float:
        """The location whose gate is open with that probability. Raises ValueError outside of (0, 1)."""
        if not 0 < open_share < 1:
            raise ValueError(f"a probability between 0 and 1 is needed, found {open_share}")
        shift = self.temperature * math.log(-self.low / self.high)
        return min(max(math.log(open_share / (1 - open_share)) + shift, self.least), self.most)

    @torch.no_grad()
    def clamp(self, location: torch.Tensor) -> None:
        """Keep the locations in their range. In place."""
        location.clamp_(self.least, self.most)

    def clipped(self, concrete: torch.Tensor) -> torch.Tensor:
        return (concrete * (self.high - self.low) + self.low).clamp(0, 1)
