"""Post-training quantization: weights really stored in 8 or 4 bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from sotto.checkpoint import Recognizer
from sotto.errors import SottoError
from sotto.methods.method import StepContext, methods
from sotto.methods.quantized_places import QuantizedPlaces
from sotto.metrics.cost import packed_bytes
from sotto.quantization_math import from_codes, scale_of, to_codes
from sotto.structure import Quantized
from sotto.surgery import Codes, parts_of, quantize_embedding, quantize_linear, tied_embedding


@dataclass(frozen=True)
class Quantization(QuantizedPlaces):
    """Rounds weights to whole numbers and scales. The last step: other methods need floating weights."""

    dynamic: bool | None = None
    """whether inputs are rounded to 8 bits as they come, row by row, and products taken in whole numbers, which is what
    makes a CPU faster; without it weights are made floating for every product. Not given: where 8 bits have one scale
    an output"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.stored  # noqa: B018  raises where the settings do not go together

    @property
    def stored(self) -> Quantized:
        """How the linears are stored."""
        by_block = self.scales == "block"
        return Quantized(self.bits, by_block, self.bits == 8 and not by_block if self.dynamic is None else self.dynamic)


@methods.register("quantization", Quantization)
def apply_quantization(recognizer: Recognizer, config: Quantization, context: StepContext) -> list[str]:
    """Quantize `recognizer` in place.

    Raises SottoError where nothing is there to quantize: no such stack, no table of tokens, or quantized already.
    """
    model = recognizer.model
    places = list(config.linears(model))
    if not places:
        raise SottoError(f"quantization: there are no linears in the layers of {' and '.join(config.stacks)}")
    if config.embedding_bits is not None:
        tied_embedding(model)
    errors: list[float] = []
    for stack, index, name in places:
        parts = parts_of(model, stack, index, name)
        codes = {path: codes_of(part, config.bits, config) for path, part in parts.items()}
        errors.extend(relative_error(part, codes[path]) for path, part in parts.items())
        quantize_linear(model, stack, index, name, codes, config.stored)
    notes = [f"{len(places)} linears in {config.bits} bits; {error_note(errors)}"]
    if config.embedding_bits is not None:
        table = model.get_submodule(tied_embedding(model)[0])
        codes_of_table = codes_of(table, config.embedding_bits, config)
        error = relative_error(table, codes_of_table)
        by_block = config.scales == "block"
        dynamic = config.stored.dynamic and config.embedding_bits == 8
        quantize_embedding(model, codes_of_table, Quantized(config.embedding_bits, by_block, dynamic))
        notes.append(f"the table of tokens in {config.embedding_bits} bits; {error_note([error])}")
    return [
        *notes,
        f"with 16 bits for all else, the weights are {packed_bytes(model, 2) / 1e6:.2f} MB when ideally packed",
    ]


def codes_of(module: nn.Module, bits: int, config: QuantizedPlaces) -> Codes:
    """Codes and scales of the weights of a linear or an embedding. Raises SottoError where it has none that float."""
    if not isinstance(module, nn.Linear | nn.Embedding):
        raise SottoError("quantization: the model is quantized already; start from the one that it was made of")
    scale = scale_of(module.weight, bits, config.scales)
    return to_codes(module.weight, scale, bits), scale


def relative_error(module: nn.Module, codes: Codes) -> float:
    """What rounding changes, as a share of the weights' norm."""
    weight = module.get_parameter("weight").detach()
    return float((from_codes(*codes) - weight).norm() / weight.norm().clamp(min=torch.finfo(weight.dtype).tiny))


def error_note(errors: Sequence[float]) -> str:
    return f"relative error of the weights {sum(errors) / len(errors):.2%}, at most {max(errors):.2%}"
