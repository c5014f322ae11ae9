"""Post-training quantization: weights really stored in 8 or 4 bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sotto.checkpoint import Recognizer
from sotto.errors import SottoError
from sotto.methods.method import StepContext, methods
from sotto.methods.quantized_places import QuantizedPlaces
from sotto.metrics.cost import ideal_bytes
from sotto.quantization_math import Library, Scales, from_codes, relative_error, scale_of, to_codes
from sotto.structure import Quantized
from sotto.surgery import Codes, quantize_embedding, quantize_linear, tied_embedding
from sotto.torchao_products import check_torchao


@dataclass(frozen=True)
class Quantization(QuantizedPlaces):
    """Rounds weights to whole numbers and scales. The last step: other methods need floating weights."""

    dynamic: bool | None = None
    """whether inputs are rounded to 8 bits as they come, row by row, and products taken in whole numbers, which is what
    makes a CPU faster; without it codes are made floating for every product. Not given: where 8 bits have one scale
    an output"""
    library: Library = "torch"
    """what takes the products, with 8 bits and one scale an output"""

    def __post_init__(self) -> None:
        super().__post_init__()
        plain = self.bits == 8 and self.scales != "block"
        if self.dynamic and not plain:
            raise SottoError("dynamic: products in whole numbers need 8 bits and one scale an output")
        if self.library == "torchao":
            if not plain:
                raise SottoError("library: products by torchao need 8 bits and one scale an output")
            if self.embedding_bits == 4:
                raise SottoError("embedding_bits: products by torchao need 8 bits for the table of tokens too")
            check_torchao()

    @property
    def stored(self) -> Quantized:
        """How the linears are stored."""
        by_block = self.scales == "block"
        dynamic = self.bits == 8 and not by_block if self.dynamic is None else self.dynamic
        return Quantized(self.bits, by_block, dynamic, self.library)

    @property
    def stored_table(self) -> Quantized | None:
        """How the table of tokens is stored; None where it stays as it is."""
        if self.embedding_bits is None:
            return None
        if self.embedding_bits == 8:
            return replace(self.stored, bits=8)
        return Quantized(self.embedding_bits, self.scales == "block")


@methods.register("quantization", Quantization)
def apply_quantization(recognizer: Recognizer, config: Quantization, context: StepContext) -> list[str]:
    """Quantize `recognizer` in place.

    Raises SottoError where nothing is there to quantize: no such stack, no table of tokens, or quantized already.
    """
    model = recognizer.model
    linears = config.floating_linears(model, "quantization")
    errors: list[float] = []
    for place, parts in linears:
        found = {path: coded(part, config.bits, config.scales) for path, part in parts.items()}
        errors += [error for _, error in found.values()]
        quantize_linear(model, *place, {path: codes for path, (codes, _) in found.items()}, config.stored)
    notes = [f"{len(linears)} linears in {config.bits} bits; {error_note(errors)}"]
    if config.stored_table is not None:
        table = model.get_submodule(tied_embedding(model)[0])
        codes, error = coded(table, config.stored_table.bits, config.scales)
        quantize_embedding(model, codes, config.stored_table)
        notes.append(f"the table of tokens in {config.stored_table.bits} bits; {error_note([error])}")
    if config.library == "torchao":
        notes.append("products by torchao: pip install 'sotto[torchao]' where it is opened")
    size = ideal_bytes(model, 2) / 1e6
    return [*notes, f"with 16 bits for all else, the weights are {size:.2f} MB when ideally packed"]


def coded(module: Any, bits: int, scales: Scales) -> tuple[Codes, float]:
    """Codes and scales of the weights of a linear or an embedding, and the relative error of what they stand for."""
    weight = module.weight.detach()
    scale = scale_of(weight, bits, scales)
    codes = to_codes(weight, scale, bits)
    return (codes, scale), float(relative_error(from_codes(codes, scale), weight))


def error_note(errors: Sequence[float]) -> str:
    return f"relative error of the weights {sum(errors) / len(errors):.2%}, at most {max(errors):.2%}"
