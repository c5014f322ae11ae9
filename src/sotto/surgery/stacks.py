"""A stack with fewer layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from sotto.architectures import Stack, set_setting
from sotto.structure import to_json
from sotto.surgery.alignment_heads import renumber_alignment_heads
from sotto.surgery.narrowing import check_positions
from sotto.surgery.places import structure_of


def keep_layers(model: Any, stack: Stack, layers: Sequence[int]) -> None:
    """Keep some layers of a stack, by their positions as the model now stands."""
    modules = model.get_submodule(stack.layers)
    check_positions(layers, len(modules), f"layers of the {stack.name}")
    structure = structure_of(model)
    model.set_submodule(stack.layers, nn.ModuleList(modules[index] for index in layers))
    for position, layer in enumerate(model.get_submodule(stack.layers)):
        for attention in stack.attentions:
            module = layer.get_submodule(attention.name)
            if getattr(module, "layer_idx", None) is not None:
                module.layer_idx = position  # the key-value cache is indexed by it
    set_setting(model.config, stack.layer_count, len(layers))
    kept = [structure.stacks[stack.name].layers[index] for index in layers]
    model.config.sotto = to_json(structure.with_layers(stack.name, kept))
    if stack.name == "decoder":
        renumber_alignment_heads(model, lambda at, head: (layers.index(at), head) if at in layers else None)
