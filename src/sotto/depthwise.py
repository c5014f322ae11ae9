"""Depthwise convolutions in fp32 beside everything else in bf16."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def depthwise_in_fp32(model: nn.Module) -> Iterator[None]:
    """Keep autocast out of the model's depthwise convolutions while they run on a CPU.

    torch 2.13 has no fast bf16 gradients for them there: it takes four times as long as in fp32.
    """
    found = [module for module in model.modules() if isinstance(module, nn.Conv1d | nn.Conv2d) and module.groups > 1]
    for module in found:
        module.forward = without_autocast(module.forward)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        for module in found:
            del module.forward


def without_autocast(forward: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    def in_fp32(hidden: torch.Tensor) -> torch.Tensor:
        if hidden.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return forward(hidden)
        with torch.autocast("cpu", enabled=False):
            return forward(hidden.float())

    return in_fp32
