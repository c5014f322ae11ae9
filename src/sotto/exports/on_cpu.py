"""A model of transformers' own class whose forward passes are another runtime's."""

from __future__ import annotations

import torch


class OnCpu:
    """What transformers asks of a model that has no weights of its own."""

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32
