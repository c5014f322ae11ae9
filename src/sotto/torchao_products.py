"""Products of weights in whole numbers by torchao, where that is installed."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version

import torch
from packaging.version import Version

from sotto.errors import SottoError
from sotto.quantization_math import adds_exactly, floating_product, int8_product

LEAST_VERSION = "0.18"
GPU_MULTIPLE = 8  # CUDA multiplies whole numbers of such sizes only; torchao takes others to the CPU and back


@cache
def check_torchao() -> None:
    """Raises SottoError where torchao is not installed, or an older one. Every linear asks, so it is looked up once."""
    try:
        is_recent = Version(version("torchao")) >= Version(LEAST_VERSION)
    except PackageNotFoundError:
        is_recent = False
    if not is_recent:
        raise SottoError(f"products by torchao need torchao {LEAST_VERSION} or later; pip install 'sotto[torchao]'")


def torchao_product(x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, dynamic: bool) -> torch.Tensor:
    """`x` (..., inputs) times the weights of codes (outputs, inputs) with one scale an output: (..., outputs).

    In half precision it is computed in single: torchao's sums, before they are scaled, can pass the largest number of
    half. Products of whole numbers that torchao would get wrong or slow are Sotto's.
    """
    from torchao.quantization import Int8Tensor, PerRow
    from torchao.quantization.quantize_.workflows import QuantizeTensorToInt8Kwargs

    if dynamic and not multiplies_whole_numbers(codes):
        return int8_product(x, codes, scale) if codes.device.type == "cpu" else floating_product(x, codes, scale)
    precision = torch.float32 if x.dtype == torch.float16 else x.dtype
    rounding = QuantizeTensorToInt8Kwargs(granularity=PerRow()) if dynamic else None
    weight = Int8Tensor(codes, scale.to(precision), [1, codes.shape[1]], precision, act_quant_kwargs=rounding)
    return torch.nn.functional.linear(x.to(precision), weight).to(x.dtype)


def multiplies_whole_numbers(codes: torch.Tensor) -> bool:
    """Whether torchao does so exactly, and where the codes are.

    On a CPU not where sums are cut off, nor for one input, where torch 2.13 errs. Elsewhere not for all sizes.
    """
    if codes.device.type == "cpu":
        return codes.shape[1] > 1 and adds_exactly()
    return all(size % GPU_MULTIPLE == 0 for size in codes.shape)
