"""Products of weights in whole numbers by torchao, where that is installed."""

from __future__ import annotations

import torch

from sotto.errors import SottoError
from sotto.quantization_math import adds_exactly, floating_product, int8_product

MULTIPLE = 8  # of inputs and outputs that a GPU takes whole numbers in; torchao brings others to the CPU and back


def check_torchao() -> None:
    """Raises SottoError where torchao is not installed, or an older one."""
    try:
        from torchao.quantization import Int8Tensor  # noqa: F401
    except ImportError as error:
        raise SottoError("products by torchao need torchao 0.18 or later; pip install 'sotto[torchao]'") from error


def torchao_product(x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, dynamic: bool) -> torch.Tensor:
    """`x` (..., inputs) times the weights of codes (outputs, inputs) with one scale an output: (..., outputs).

    In half precision it is computed in single: torchao's sums, before they are scaled, can pass the largest number of
    half. Sotto takes the products that torchao has no kernel for (`has_kernel`).
    """
    from torchao.quantization import Int8Tensor, PerRow
    from torchao.quantization.quantize_.workflows import QuantizeTensorToInt8Kwargs

    if dynamic and not has_kernel(codes):
        return int8_product(x, codes, scale) if x.device.type == "cpu" else floating_product(x, codes, scale)
    precision = torch.float32 if x.dtype == torch.float16 else x.dtype
    rounding = QuantizeTensorToInt8Kwargs(granularity=PerRow()) if dynamic else None
    weight = Int8Tensor(codes, scale.to(precision), [1, codes.shape[1]], precision, act_quant_kwargs=rounding)
    return torch.nn.functional.linear(x.to(precision), weight).to(x.dtype)


def has_kernel(codes: torch.Tensor) -> bool:
    """Not on a CPU that cuts sums off, for one input, where torch 2.13 errs, nor on a GPU for odd shapes."""
    if codes.device.type == "cpu":
        return codes.shape[1] > 1 and adds_exactly()
    return all(size % MULTIPLE == 0 for size in codes.shape)
