"""Weights as whole numbers and scales: symmetric, uniform, without a zero point.

After the fake quantization of Whisper-KDQ's code (Shao et al., 2023, arXiv:2305.10788), which takes the largest weight
with its sign as the scale of a matrix; here it is the largest absolute weight, so that no code is out of range.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import torch

Scales = Literal["tensor", "channel", "block"]
Library = Literal["torch", "torchao"]
"""What takes the products."""

BLOCK = 32  # inputs that share a scale, where scales are by block
LEAST_SCALE = 2.0**-24  # the smallest number above zero in half precision
EXACT_INPUTS = 1024  # so many products of codes add up to less than 2^24: single precision has every whole number there


def largest_code(bits: int) -> int:
    """The largest code; the smallest is its negative, so that zero is in the middle."""
    return int(2 ** (bits - 1) - 1)


def blocks_of(inputs: int) -> int:
    """How many blocks the `inputs` of an output make."""
    return -(-inputs // BLOCK)


def scale_of(weight: torch.Tensor, bits: int, scales: Scales) -> torch.Tensor:
    """(outputs, blocks): the largest absolute weight of each block divided by the largest code.

    For `tensor` every output has the same one, for `channel` one of its own. Scales are rounded to half precision, so
    that a checkpoint of that precision has the very weights that were measured.
    """
    outputs, inputs = weight.shape
    absolute = weight.detach().abs().float()
    if scales == "tensor":
        largest = absolute.max().expand(outputs, 1)
    else:
        width = BLOCK if scales == "block" else inputs
        filled = torch.nn.functional.pad(absolute, (0, -inputs % width))
        largest = filled.view(outputs, -1, width).amax(2)
    return (largest / largest_code(bits)).clamp(min=LEAST_SCALE).half().to(weight.dtype)


def spread(scale: torch.Tensor, inputs: int) -> torch.Tensor:
    """Scales (outputs, blocks) as (outputs, inputs), or (outputs, 1) where each output has one."""
    return scale if scale.shape[1] == 1 else scale.repeat_interleave(BLOCK, 1)[:, :inputs]


def to_codes(weight: torch.Tensor, scale: torch.Tensor, bits: int) -> torch.Tensor:
    """(outputs, inputs) int8: the nearest multiples of the scales."""
    most = largest_code(bits)
    return (weight.detach().float() / spread(scale.float(), weight.shape[1])).round().clamp(-most, most).to(torch.int8)


def from_codes(codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """(outputs, inputs): the weights that codes and scales stand for."""
    outputs, inputs = codes.shape
    if scale.shape[1] > 1 and inputs % BLOCK == 0:  # faster than scales that are spread
        return (codes.to(scale.dtype).view(outputs, -1, BLOCK) * scale[:, :, None]).view(outputs, inputs)
    return codes.to(scale.dtype) * spread(scale, inputs)


def rounded(weight: torch.Tensor, bits: int, scales: Scales) -> torch.Tensor:
    """The weights as they will be, without a gradient."""
    scale = scale_of(weight, bits, scales)
    return from_codes(to_codes(weight, scale, bits), scale)


def rounding_error(weight: torch.Tensor, bits: int, scales: Scales) -> torch.Tensor:
    """What rounding changes, as a share of the weights' norm."""
    return relative_error(rounded(weight, bits, scales), weight.detach())


def relative_error(changed: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The norm of a change of weights, as a share of theirs."""
    size = torch.linalg.vector_norm(weight).clamp(min=1e-12)
    return torch.div(torch.linalg.vector_norm(changed - weight), size)


def fake_quantized(weight: torch.Tensor, bits: int, scales: Scales) -> torch.Tensor:
    """The weights as they will be, with the gradient of the weights as they are (straight-through estimator)."""
    return weight + (rounded(weight, bits, scales) - weight).detach()


def pack_pairs(codes: torch.Tensor) -> torch.Tensor:
    """Codes of 4 bits (outputs, inputs) two in a byte, the first in the low bits: (outputs, half the inputs) uint8."""
    pairs = torch.nn.functional.pad(codes, (0, codes.shape[1] % 2)).view(codes.shape[0], -1, 2).to(torch.int16) & 15
    return (pairs[..., 0] | pairs[..., 1] << 4).to(torch.uint8)


def unpack_pairs(packed: torch.Tensor, inputs: int) -> torch.Tensor:
    """The inverse of `pack_pairs`: (outputs, inputs) int8."""
    pairs = packed.view(torch.int8)  # whose shift to the right keeps the sign
    return torch.stack((pairs << 4 >> 4, pairs >> 4), 2).flatten(1)[:, :inputs]


def floating_product(x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """`x` (..., inputs) times the weights of codes (outputs, inputs), in floats: (..., outputs).

    Sums are scaled where every output has one scale, which takes less time than scaling the weights; but not in half
    precision, whose largest number sums of codes pass.
    """
    if scale.shape[1] > 1 or x.dtype == torch.float16:
        return torch.nn.functional.linear(x, from_codes(codes, scale))
    sums = torch.nn.functional.linear(x, codes.to(x.dtype))
    return (sums * scale.t()).to(sums.dtype)


def int8_product(x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """`x` (..., inputs) times the weights of codes (outputs, inputs) with one scale an output: (..., outputs).

    Every row of `x` is rounded to 8 bits by its own largest absolute value, and the product is taken in whole numbers.
    """
    rows = x.reshape(-1, x.shape[-1]).float()
    own = rows.abs().amax(1, keepdim=True).clamp(min=1e-12) / largest_code(8)
    product = whole_product((rows / own).round().to(torch.int8), codes)
    return (product * own * scale.float().t()).to(x.dtype).view(*x.shape[:-1], len(codes))


def whole_product(rows: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """`rows` (n, inputs) times the transpose of `codes` (outputs, inputs), both int8: (n, outputs)."""
    if codes.shape[1] == 1:  # torch 2.13 gives other products on the CPU where there is one input only
        rows, codes = (torch.nn.functional.pad(each, (0, 1)) for each in (rows, codes))
    if not codes.is_meta and not adds_exactly():
        parts = zip(rows.float().split(EXACT_INPUTS, 1), codes.float().split(EXACT_INPUTS, 1), strict=True)
        return torch.stack([(part @ weights.t()).int() for part, weights in parts]).sum(0)
    return torch._int_mm(rows, codes.t())


@cache
def adds_exactly() -> bool:
    """Whether this CPU's products of whole numbers are exact. Without VNNI pairs of them are cut off at 16 bits."""
    largest = torch.full((16, 64), largest_code(8), dtype=torch.int8)
    return bool((torch._int_mm(largest, largest.t()) == 64 * largest_code(8) ** 2).all())
