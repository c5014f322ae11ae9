"""Weights that are rounded in training layer by layer, those of the least distillation loss first.

Our reconstruction of what the abstract of Whisper-KDQ (Shao et al., 2023, arXiv:2305.10788, first version) says: that
quantization layers are selected by the distillation loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import reduce
from torch import nn

from sotto.architectures import Stack, architecture_of
from sotto.methods.quantization_aware import QuantizationAwareObjective

MEMORY = 0.95  # of the running mean of a layer's loss, from one batch to the next


class GuidedRounding(nn.Module):
    """Which layers of a model are rounded so far. A layer without a distillation loss of its own counts as one of 0."""

    running: torch.Tensor
    is_rounded: torch.Tensor

    def __init__(self, model: Any, aware: QuantizationAwareObjective, steps: int) -> None:
        super().__init__()
        self.aware, self.steps = aware, steps
        stacks = architecture_of(model.config).stacks
        paths = [
            (stack.name, f"{stack.layers}.{index}.")
            for stack in stacks
            for index in range(len(model.get_submodule(stack.layers)))
        ]
        self.layers = [(name, path) for name, path in paths if any(each.startswith(path) for each in aware.rounded)]
        # Kept in training checkpoints: a resumed run goes on with the same layers.
        self.register_buffer("running", torch.zeros(len(self.layers)))
        self.register_buffer("is_rounded", torch.zeros(len(self.layers), dtype=torch.bool))

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[None]:
        with self.aware.attached(model):
            self.switch(model)
            yield

    def switch(self, model: nn.Module) -> None:
        """Round the weights of the layers that are to be, and no others."""
        chosen = [path for (_, path), is_on in zip(self.layers, self.is_rounded.tolist(), strict=True) if is_on]
        self.aware.switch(model, tuple(chosen))

    def note(self, stack: Stack, losses: torch.Tensor) -> None:
        """Take the losses (layers,) of a batch into the running means."""
        own = torch.tensor([name == stack.name for name, _ in self.layers], device=losses.device)
        if int(own.sum()) == len(losses):
            self.running[own] = MEMORY * self.running[own] + (1 - MEMORY) * losses

    def after_step(self, model: nn.Module, step: int) -> None:
        """Let as many layers be rounded as are due after `step` steps; one that is rounded stays so."""
        due = math.ceil(len(self.layers) * min(step / self.steps, 1.0))
        missing = due - int(self.is_rounded.sum())
        if missing > 0:
            running = reduce(self.running, "mean")  # each process has heard other batches
            order = running.masked_fill(self.is_rounded, torch.inf).argsort(stable=True)
            self.is_rounded[order[:missing]] = True
        self.switch(model)
