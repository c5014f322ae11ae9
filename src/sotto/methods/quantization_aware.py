"""Training for quantization: the model computes with the weights as they will be rounded.

After the code of Whisper-KDQ (Shao et al., 2023, arXiv:2305.10788): weights alone, uniform, gradients as if nothing
were rounded (straight-through estimator, Bengio et al., 2013, arXiv:1308.3432). Scales are taken anew in every pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from sotto.errors import SottoError
from sotto.examples import Batch
from sotto.layers import trained_weight
from sotto.methods.quantized_places import QuantizedPlaces
from sotto.objectives import Objective, Setting, objectives
from sotto.quantization_math import Scales, fake_quantized
from sotto.surgery import tied_embedding


@dataclass(frozen=True)
class QuantizationAware(QuantizedPlaces):
    """No term of the loss: the weights are rounded wherever they are used, in training and in validation."""


class Rounded(nn.Module):
    """What torch puts before a weight."""

    def __init__(self, bits: int, scales: Scales) -> None:
        super().__init__()
        self.bits, self.scales = bits, scales
        self.is_on = True

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return fake_quantized(weight, self.bits, self.scales) if self.is_on else weight


class QuantizationAwareObjective(Objective):
    """`rounded`: path of a module with a weight -> its bits."""

    name = "quantization_aware"

    def __init__(self, config: QuantizationAware, rounded: dict[str, int]) -> None:
        super().__init__()
        self.config = config
        self.rounded = rounded

    def forward(self, model: nn.Module, batch: Batch, outputs: Any, tokens: torch.Tensor) -> torch.Tensor:
        return torch.zeros((), device=tokens.device)

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[None]:
        with ExitStack() as attached:
            for path, bits in self.rounded.items():
                module = model.get_submodule(path)
                if parametrize.is_parametrized(module, "weight"):
                    raise SottoError(f"{path} would be rounded twice; name it in one objective only")
                parametrize.register_parametrization(module, "weight", Rounded(bits, self.config.scales))
                attached.callback(parametrize.remove_parametrizations, module, "weight", leave_parametrized=False)
            yield

    def switch(self, model: nn.Module, off: tuple[str, ...]) -> None:
        """Round all but what is at paths that begin with one of `off`; for while it is attached."""
        for path in self.rounded:
            module: Any = model.get_submodule(path)
            module.parametrizations.weight[0].is_on = not path.startswith(off)

    @torch.no_grad()
    def logged(self, model: nn.Module) -> dict[str, float]:
        """What rounding changes, as a share of the weights' norm, over all matrices together."""
        modules: list[Any] = [model.get_submodule(path) for path in self.rounded]
        changed = whole = 0.0
        for module in {id(trained_weight(module)): module for module in modules}.values():  # a tied one once
            original = trained_weight(module)
            changed += float((module.weight - original).square().sum())
            whole += float(original.square().sum())
        return {"rounding_error": (changed / max(whole, 1e-12)) ** 0.5}


@objectives.register("quantization_aware", QuantizationAware)
def build_quantization_aware(config: QuantizationAware, setting: Setting) -> Objective:
    return rounding_of(setting.family.model, config, "quantization_aware")


def rounding_of(model: Any, config: QuantizationAware, method: str) -> QuantizationAwareObjective:
    """The objective, for `method` as it stands in messages.

    Raises SottoError where there is nothing to quantize, or it is quantized already.
    """
    rounded = {path: int(config.bits) for _, parts in config.floating_linears(model, method) for path in parts}
    if config.embedding_bits is not None:
        rounded |= dict.fromkeys(tied_embedding(model), int(config.embedding_bits))
    return QuantizationAwareObjective(config, rounded)
