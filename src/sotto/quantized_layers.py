"""Linears and embeddings whose weights are stored as whole numbers and scales."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from sotto.quantization_math import (
    Library,
    blocks_of,
    floating_product,
    from_codes,
    int8_product,
    pack_pairs,
    unpack_pairs,
)
from sotto.torchao_products import check_torchao, torchao_product


class QuantizedWeight(nn.Module):
    """A matrix (outputs, inputs) in `bits` bits, with the scales (outputs, blocks) of its rows.

    `stored` is (outputs, inputs) int8, or with 4 bits (outputs, half of the inputs) uint8, two codes in a byte.
    """

    stored: torch.Tensor
    scale: torch.Tensor

    def __init__(
        self,
        inputs: int,
        outputs: int,
        bits: int,
        by_block: bool,
        library: Library = "torch",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if library == "torchao":
            check_torchao()
        self.inputs = inputs
        self.bits = bits
        self.library = library
        size, kind = (inputs, torch.int8) if bits == 8 else (-(-inputs // 2), torch.uint8)
        self.register_buffer("stored", torch.zeros(outputs, size, dtype=kind, device=device))
        self.register_buffer(
            "scale", torch.ones(outputs, blocks_of(inputs) if by_block else 1, dtype=dtype, device=device)
        )

    def store(self, codes: torch.Tensor, scale: torch.Tensor) -> None:
        """Take over codes (outputs, inputs) int8 and scales."""
        self.stored.copy_(codes if self.bits == 8 else pack_pairs(codes))
        self.scale.copy_(scale)

    @property
    def codes(self) -> torch.Tensor:
        """(outputs, inputs) int8."""
        return self.stored if self.bits == 8 else unpack_pairs(self.stored, self.inputs)

    @property
    def weight(self) -> torch.Tensor:
        """(outputs, inputs): what a plain layer would hold."""
        return from_codes(self.codes, self.scale)

    def product(self, x: torch.Tensor, bias: torch.Tensor | None, dynamic: bool) -> torch.Tensor:
        """`x` (..., inputs) times the weights, plus the bias: (..., outputs).

        Where `dynamic`, in whole numbers: where no gradient is asked for, and on the CPU or by torchao.
        """
        if x.requires_grad:
            return nn.functional.linear(x, self.weight, bias)
        product = self.product_without_gradient(x, dynamic)
        return product if bias is None else product + bias

    def product_without_gradient(self, x: torch.Tensor, dynamic: bool) -> torch.Tensor:
        """Without the bias. On the meta device, where FLOPs are counted, whatever torchao would do, it is Sotto's."""
        if self.library == "torchao" and not x.is_meta:
            return torchao_product(x, self.codes, self.scale, dynamic)
        if dynamic and x.device.type in ("cpu", "meta"):
            return int8_product(x, self.codes, self.scale)
        return floating_product(x, self.codes, self.scale)


class QuantizedLinear(QuantizedWeight):
    """A linear with quantized weights.

    `dynamic`: inputs are rounded to 8 bits too, row by row, and products are taken in whole numbers (`product` says
    where); else codes are made floating for every product. `columns` (kept,): the inputs that are heard, where
    that is some of them only.
    """

    columns: torch.Tensor | None

    def __init__(
        self,
        inputs: int,
        outputs: int,
        bits: int,
        by_block: bool,
        bias: bool,
        dynamic: bool,
        gathered: bool = False,
        library: Library = "torch",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(inputs, outputs, bits, by_block, library, device, dtype)
        self.in_features = inputs
        self.out_features = outputs
        self.dynamic = dynamic
        self.bias = nn.Parameter(torch.zeros(outputs, device=device, dtype=dtype)) if bias else None
        columns = torch.zeros(inputs, dtype=torch.int64, device=device) if gathered else None
        self.register_buffer("columns", columns)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.columns is not None:
            x = x.index_select(-1, self.columns)
        return self.product(x, self.bias, self.dynamic)


class QuantizedEmbedding(QuantizedWeight):
    """A table of tokens with quantized rows (tokens, width)."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        rows, scale = self.stored[tokens.flatten()], self.scale[tokens.flatten()]
        codes = rows if self.bits == 8 else unpack_pairs(rows, self.inputs)
        return from_codes(codes, scale).view(*tokens.shape, self.inputs)


class TiedHead(nn.Module):
    """An output head whose weights are those of a quantized embedding; nothing of it is stored twice."""

    def __init__(self, embedding: QuantizedEmbedding, dynamic: bool) -> None:
        super().__init__()
        self.embedding = (embedding,)  # in a tuple it is no submodule, which would be saved a second time
        self.dynamic = dynamic

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        (embedding,) = self.embedding
        return embedding.product(x, None, self.dynamic)


@contextmanager
def floating_products(model: nn.Module) -> Iterator[None]:
    """While this lasts, no inputs are rounded: equal models then compute the same to within the precision of floats.

    Rounded inputs fall on one step or the next by the smallest difference, such as that of a bias in half precision.
    """
    dynamic = [part for part in model.modules() if isinstance(part, QuantizedLinear | TiedHead) and part.dynamic]
    for part in dynamic:
        part.dynamic = False
    try:
        yield
    finally:
        for part in dynamic:
            part.dynamic = True
