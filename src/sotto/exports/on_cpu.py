"""A model of transformers' own class whose forward passes are another runtime's."""

from __future__ import annotations

import torch

from sotto.errors import SottoError


class OnCpu:
    """What transformers asks of a model that has no weights of its own."""

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32


def refuse_attentions(asked: bool | None) -> None:
    """Raises SottoError where attentions are asked for, which a runtime does not give."""
    if asked:
        raise SottoError("an exported model gives no attentions; times of words need the checkpoint")
