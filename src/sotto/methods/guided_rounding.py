"""Weights that are rounded in training layer by layer, by default those of the least distillation loss first.

That is our reconstruction of what the abstract of Whisper-KDQ (Shao et al., 2023, arXiv:2305.10788, first version)
says: that quantization layers are selected by the distillation loss.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from accelerate.utils import reduce
from torch import nn

from sotto.architectures import architecture_of
from sotto.methods.quantization_aware import QuantizationAwareObjective

MEMORY = 0.95  # of the running mean of a layer's loss, from one step to the next

logger = logging.getLogger(__name__)

Order = Literal["loss", "greatest_loss", "depth"]

Layer = tuple[str, int]
"""(stack, index)."""


class GuidedRounding(nn.Module):
    """Which layers of a model are rounded so far. A layer without a distillation loss of its own counts as one of 0.

    What is rounded and in no layer, such as the table of tokens, is so from the start.
    """

    running: torch.Tensor
    shares: torch.Tensor
    """what the losses heard so far weigh in `running`, which starts at 0"""
    is_rounded: torch.Tensor

    def __init__(self, model: Any, aware: QuantizationAwareObjective, steps: int, order: Order) -> None:
        super().__init__()
        self.aware, self.steps, self.order = aware, steps, order
        paths = {
            (stack.name, index): f"{stack.layers}.{index}."
            for stack in architecture_of(model.config).stacks
            for index in range(len(model.get_submodule(stack.layers)))
        }
        self.paths = {
            layer: path for layer, path in paths.items() if any(each.startswith(path) for each in aware.rounded)
        }
        self.heard: dict[Layer, torch.Tensor] = {}
        # Kept in training checkpoints: a resumed run goes on with the same layers.
        self.register_buffer("running", torch.zeros(len(self.paths)))
        self.register_buffer("shares", torch.zeros(len(self.paths)))
        self.register_buffer("is_rounded", torch.zeros(len(self.paths), dtype=torch.bool))

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[None]:
        with self.aware.attached(model):
            # A checkpoint is read, or an average of some, while the model is in training already.
            hooks: Any = self
            loaded = hooks.register_load_state_dict_post_hook(lambda *_: self.switch(model))
            self.switch(model)
            try:
                yield
            finally:
                loaded.remove()
        if not self.is_rounded.all():
            logger.warning(
                "%d of %d layers were rounded when training ended; let rounded_over be less than its steps",
                self.is_rounded.sum(),
                len(self.paths),
            )

    def switch(self, model: nn.Module) -> None:
        """Round the weights of all layers but those whose turn has not come."""
        rounded = self.is_rounded.tolist()
        self.aware.switch(
            model, tuple(path for path, is_on in zip(self.paths.values(), rounded, strict=True) if not is_on)
        )

    def note(self, losses: Mapping[Layer, torch.Tensor]) -> None:
        """Take the losses of a batch, of the layers that had one."""
        self.heard |= {layer: loss.detach() for layer, loss in losses.items() if layer in self.paths}

    def after_step(self, model: nn.Module, step: int) -> None:
        """Let as many layers be rounded as are due after `step` steps; one that is rounded stays so.

        None is due before the first share of the steps is over: by then losses have been heard for as long.
        """
        due = len(self.paths) * min(step, self.steps) // self.steps
        if int(self.is_rounded.sum()) == len(self.paths):
            return
        self.take_in()
        missing = due - int(self.is_rounded.sum())
        if missing > 0:
            turns = self.ranks().masked_fill(self.is_rounded, torch.inf).argsort(stable=True)[:missing]
            self.is_rounded[turns] = True
            layers = list(self.paths)
            for place in turns.tolist():
                logger.info("after step %d: %s layer %d is rounded", step, *layers[place])
            self.switch(model)

    def ranks(self) -> torch.Tensor:
        """(layers,): those of the least come first. A layer without losses has 0 of them."""
        if self.order == "depth":
            return torch.arange(len(self.paths), dtype=self.running.dtype, device=self.running.device)
        return -self.means() if self.order == "greatest_loss" else self.means()

    def means(self) -> torch.Tensor:
        """(layers,): of the losses of every layer, the latest weighing most; 0 for one that had none."""
        return self.running / self.shares.clamp(min=1e-12)

    def take_in(self) -> None:
        """Bring the running means up to date with what all processes have heard since the last step."""
        losses, counts = torch.zeros_like(self.running), torch.zeros_like(self.running)
        for place, layer in enumerate(self.paths):
            if layer in self.heard:
                losses[place], counts[place] = self.heard[layer], 1.0
        losses, counts = reduce(losses, "sum"), reduce(counts, "sum")
        rate = (1 - MEMORY) * (counts > 0)
        self.running.lerp_(losses / counts.clamp(min=1.0), rate)
        self.shares.lerp_(torch.ones_like(rate), rate)
        self.heard = {}
