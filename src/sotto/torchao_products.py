"""Products of weights in whole numbers by torchao, where that is installed."""

from __future__ import annotations

from importlib.util import find_spec

import torch

from sotto.errors import SottoError
from sotto.quantization_math import adds_exactly, int8_product


def check_torchao() -> None:
    """Raises SottoError where torchao is not installed."""
    if find_spec("torchao") is None:
        raise SottoError("products by torchao need torchao, which is not installed; pip install 'sotto[torchao]'")


def torchao_product(x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, dynamic: bool) -> torch.Tensor:
    """`x` (..., inputs) times the weights of codes (outputs, inputs) with one scale an output: (..., outputs).

    On a CPU that cuts sums of whole numbers off, and for one input, where torch 2.13 errs, the product is Sotto's.
    """
    from torchao.quantization import Int8Tensor, PerRow
    from torchao.quantization.quantize_.workflows import QuantizeTensorToInt8Kwargs

    if dynamic and x.device.type == "cpu" and (codes.shape[1] == 1 or not adds_exactly()):
        return int8_product(x, codes, scale)
    rounding = QuantizeTensorToInt8Kwargs(granularity=PerRow()) if dynamic else None
    weight = Int8Tensor(codes, scale, [1, codes.shape[1]], x.dtype, act_quant_kwargs=rounding)
    return torch.nn.functional.linear(x, weight)
