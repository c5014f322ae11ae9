"""What goes on inside the layers of a model in its last pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch

from sotto.architectures import Attention, FeedForward, LayerModule, Stack
from sotto.surgery import layer_path, present

Inside = Literal["ffn", "attention"]

Hook = Callable[[Any, Any, Any], None]
"""Is told a module, its inputs and its output."""

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

    def keeping(stack: Stack, index: int, name: str, of_inputs: bool) -> Any:
        def hook(linear: Any, inputs: Any, output: Any) -> None:
            kept.setdefault(stack.name, {}).setdefault(index, {})[name] = inputs[0] if of_inputs else output

        return hook

    hooks = {
        layer_path(stack, index, module.linears[-1]): keeping(
            stack, index, module.name, isinstance(module, FeedForward)
        )
        for stack in stacks
        for index in range(len(model.get_submodule(stack.layers)))
        for module in modules_inside(model, stack, index, inside)
    }
    with hooked(model, hooks, kept):
        yield


@contextmanager
def hooked(model: Any, hooks: Mapping[str, Hook], kept: dict[str, Any]) -> Iterator[None]:
    """While this lasts, modules (by their paths) have hooks that put what they say into `kept`, which every pass of the
    model begins anew."""

    def forget(*_: Any) -> None:
        kept.clear()

    handles = [model.register_forward_pre_hook(forget)]
    handles += [model.get_submodule(path).register_forward_hook(hook) for path, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
