"""Streaming second moments of activations: what calibration keeps instead of the activations."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.distributed

BLOCKS = 4


class Moments:
    """Count, mean and covariance of rows of `width` numbers, over all rows added and, after `reduce`, all processes.

    Products are formed in the rows' precision (at least float32) around a shift close to the mean, so that a large
    mean does not drown small variances, and summed in float64. Only the upper blocks are formed: a covariance is
    symmetric, and this leaves out three eighths of the multiplications.
    """

    def __init__(self, width: int, device: torch.device) -> None:
        self.count = 0
        self.shift = torch.zeros(width, dtype=torch.float64, device=device)
        self.total = torch.zeros(width, dtype=torch.float64, device=device)
        self.products = torch.zeros(width, width, dtype=torch.float64, device=device)

    def add(self, rows: torch.Tensor) -> None:
        """Add `rows` (..., width)."""
        rows = rows.detach().reshape(-1, rows.shape[-1])
        rows = rows if rows.dtype == torch.float64 else rows.float()
        if self.count == 0:
            self.shift = rows.mean(0).double()
        rows = rows - self.shift.to(rows.dtype)
        self.count += len(rows)
        self.total += rows.sum(0)
        width = rows.shape[1]
        edges = [width * block // BLOCKS for block in range(BLOCKS + 1)]
        for start, end in pairwise(edges):
            self.products[start:end, start:] += rows[:, start:end].T @ rows[:, start:]

    def reduce(self) -> None:
        """Sum over all processes of a distributed run, each of which saw its share of the rows."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return
        self.move_shift(torch.zeros_like(self.shift))
        count = torch.tensor([float(self.count)], dtype=torch.float64, device=self.total.device)
        for tensor in (count, self.total, self.products):
            torch.distributed.all_reduce(tensor)
        self.count = round(count.item())

    def move_shift(self, shift: torch.Tensor) -> None:
        """Express the sums around another shift (float64)."""
        step = self.shift - shift
        cross = torch.outer(step, self.total)
        self.products += cross + cross.T + self.count * torch.outer(step, step)
        self.total = self.total + self.count * step
        self.shift = shift

    @property
    def mean(self) -> torch.Tensor:
        """(width,) float64."""
        return self.shift + self.total / max(self.count, 1)

    @property
    def covariance(self) -> torch.Tensor:
        """(width, width) float64: the mean of (x - mean)(x - mean)^T."""
        count = max(self.count, 1)
        upper = torch.triu(self.products) / count
        full = upper + torch.triu(upper, 1).T
        offset = self.total / count
        return full - torch.outer(offset, offset)
