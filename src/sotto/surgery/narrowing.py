"""A linear with some of its channels, in place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from sotto.errors import SottoError
from sotto.layers import FactoredLinear
from sotto.surgery.places import Linear


def narrow_outputs(linear: Linear, rows: Sequence[int]) -> None:
    """Keep the output channels `rows` of a linear, in place."""
    last = linear.second if isinstance(linear, FactoredLinear) else linear
    index = torch.as_tensor(list(rows), device=last.weight.device)
    last.weight = nn.Parameter(last.weight.detach()[index], last.weight.requires_grad)
    if last.bias is not None:
        last.bias = nn.Parameter(last.bias.detach()[index], last.bias.requires_grad)
    last.out_features = len(rows)


def narrow_inputs(linear: Linear, columns: Sequence[int]) -> None:
    """Keep the input channels `columns` of a linear, in place."""
    first = linear.first if isinstance(linear, FactoredLinear) else linear
    index = torch.as_tensor(list(columns), device=first.weight.device)
    first.weight = nn.Parameter(first.weight.detach()[:, index], first.weight.requires_grad)
    first.in_features = len(columns)


def check_positions(positions: Sequence[int], count: int, what: str) -> None:
    ordered = list(positions)
    if not ordered or ordered != sorted(set(ordered)) or ordered[0] < 0 or ordered[-1] >= count:
        raise SottoError(f"{what}: {ordered} is not an ascending choice out of {count}")
