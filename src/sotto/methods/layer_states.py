"""What goes on inside the layers of a model in its last pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch

from sotto.architectures import Attention, FeedForward, LayerModule, Stack
from sotto.surgery import layer_path, present

Inside = Literal["ffn", "attention"]

States = dict[int, dict[str, torch.Tensor]]
"""Layer -> module -> states (batch, positions, width)."""


def modules_inside(model: Any, stack: Stack, index: int, inside: Sequence[Inside]) -> list[LayerModule]:
    """The modules of a layer in which states are taken."""
    kinds = {FeedForward: "ffn", Attention: "attention"}
    return [module for module in present(model, stack, index).modules if kinds.get(type(module)) in inside]


@contextmanager
def keeping_states(
    model: Any, stacks: Sequence[Stack], inside: Sequence[Inside], kept: dict[str, States]
) -> Iterator[None]:
    """While this lasts, `kept` has the states of every stack in the model's last pass.

    `ffn`: what the last linear of a feed-forward network hears. `attention`: what an attention says.
    """

    def forget(*_: Any) -> None:
        kept.clear()

    def keeping(stack: Stack, index: int, name: str, of_inputs: bool) -> Any:
        def hook(linear: Any, inputs: Any, output: Any) -> None:
            kept.setdefault(stack.name, {}).setdefault(index, {})[name] = inputs[0] if of_inputs else output

        return hook

    handles = [model.register_forward_pre_hook(forget)]
    for stack in stacks:
        for index in range(len(model.get_submodule(stack.layers))):
            for module in modules_inside(model, stack, index, inside):
                linear = model.get_submodule(layer_path(stack, index, module.linears[-1]))
                hook = keeping(stack, index, module.name, isinstance(module, FeedForward))
                handles.append(linear.register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
