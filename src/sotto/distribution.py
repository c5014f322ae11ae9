"""The processes of a distributed run, as `accelerate launch` or `torchrun` starts them."""

from __future__ import annotations

import torch
from accelerate import PartialState


def processes() -> PartialState:
    """Which process this is, out of how many; joins them at the first call.

    Without the word `cpu`, accelerate takes a machine that has no GPU for a single process, whatever the launcher says.
    """
    return PartialState(cpu=not torch.cuda.is_available())
