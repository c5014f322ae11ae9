"""What each target makes of what Sotto did to a model: the table that exports go by, and that docs/export.md shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from enum import Enum

from sotto.errors import SottoError
from sotto.structure import LayerStructure, Structure


class Outcome(Enum):
    """In the words of the table. All that is written computes the same."""

    KEPT = "exact"
    FILLED = "exact, nothing gained"
    IN_PART = "exact, gained in part"
    FLOATS = "exact, as floats"
    REFUSED = "refused"


ORDER = ("onnx", "openvino", "sherpa-onnx", "ctranslate2", "lite-whisper", "transformers")
"""of the columns"""
KEPT, FILLED, IN_PART, FLOATS, REFUSED = Outcome
CONFORMER, FEWER_LAYERS, WHOLE_NUMBERS = "a Conformer-CTC", "fewer layers", "weights in whole numbers"
REDUCED = "attention in the reduced dimension"
IN_LAYERS: Mapping[str, Callable[[str, LayerStructure], bool]] = {
    "factors in the encoder": lambda stack, layer: stack == "encoder" and bool(layer.ranks),
    "factors in the decoder": lambda stack, layer: stack == "decoder" and bool(layer.ranks),
    REDUCED: lambda _, layer: bool(layer.reduced),
    "fewer heads": lambda _, layer: bool(layer.heads),
    "narrower heads": lambda _, layer: bool(layer.head_dims),
    "narrower feed-forward networks": lambda _, layer: bool(layer.ffn_widths),
    "narrower convolutions": lambda _, layer: bool(layer.channels),
    "absent modules": lambda _, layer: bool(layer.absent),
    "inputs heard in part": lambda _, layer: bool(layer.inputs),
    WHOLE_NUMBERS: lambda _, layer: bool(layer.quantized),
}
"""What can be said of a layer (of the stack of that name)."""
OUTCOMES: Mapping[str, tuple[Outcome, ...]] = {
    CONFORMER: (KEPT, KEPT, KEPT, REFUSED, REFUSED, KEPT),
    FEWER_LAYERS: (KEPT, KEPT, KEPT, KEPT, KEPT, KEPT),
    "factors in the encoder": (KEPT, KEPT, KEPT, FILLED, KEPT, FILLED),
    "factors in the decoder": (KEPT, KEPT, KEPT, FILLED, REFUSED, FILLED),
    REDUCED: (KEPT, IN_PART, KEPT, FILLED, FILLED, FILLED),
    "fewer heads": (KEPT, KEPT, KEPT, IN_PART, REFUSED, FILLED),
    "narrower heads": (KEPT, KEPT, KEPT, KEPT, REFUSED, FILLED),
    "narrower feed-forward networks": (KEPT, KEPT, KEPT, KEPT, REFUSED, FILLED),
    "narrower convolutions": (KEPT, KEPT, KEPT, REFUSED, REFUSED, FILLED),
    "absent modules": (KEPT, KEPT, KEPT, IN_PART, REFUSED, FILLED),
    "inputs heard in part": (KEPT, KEPT, KEPT, FILLED, REFUSED, FILLED),
    WHOLE_NUMBERS: (FLOATS, FLOATS, FLOATS, FLOATS, FLOATS, FLOATS),
}
REASONS: Mapping[str, str] = {
    "ctranslate2": "CTranslate2 knows Whisper only, of the recognisers of Sotto",
    "lite-whisper": "lite-whisper is a layout for factors in a Whisper's encoder and fewer layers, and nothing else",
}
"""for which a target refuses what it refuses"""


def outcome(change: str, target: str) -> Outcome:
    return OUTCOMES[change][ORDER.index(target)]


def changes_of(structure: Structure) -> Iterator[tuple[str, str]]:
    """Every row of the table that a model falls under, and a place where."""
    if structure.architecture != "whisper":
        yield CONFORMER, structure.architecture
    for name, stack in structure.stacks.items():
        if len(stack.layers) < stack.base_layers:
            yield FEWER_LAYERS, name
        for index, layer in enumerate(stack.layers):
            for change, is_made in IN_LAYERS.items():
                if is_made(name, layer):
                    yield change, f"{name} layer {index}"
    if structure.embedding is not None:
        yield WHOLE_NUMBERS, "table of tokens"


def check_taken(structure: Structure, target: str) -> None:
    """Raises SottoError where the target does not take the model, with the place and the reason."""
    for change, place in changes_of(structure):
        if outcome(change, target) is REFUSED:
            raise SottoError(f"{place}: {change}: {REASONS[target]}; export to onnx instead")


def told(structure: Structure, target: str, precision: str) -> Iterator[str]:
    """A line for every change that is not kept as it is; what is gained of others the target says itself."""
    for change in dict.fromkeys(change for change, _ in changes_of(structure)):
        found = outcome(change, target)
        if found is FLOATS and precision.startswith("int8"):
            yield f"{change}: rounded anew, as {target} does"
        elif found in (FILLED, FLOATS):
            yield f"{change}: {found.value}"


def as_table() -> str:
    """Markdown, as it stands in docs/export.md: the table, and why a target refuses."""
    rows = [["what Sotto did", *(f"`{name}`" for name in ORDER)], ["---"] * (len(ORDER) + 1)]
    rows += [[change, *(found.value for found in outcomes)] for change, outcomes in OUTCOMES.items()]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{table}\n\nRefused: {'; '.join(REASONS.values())}."
