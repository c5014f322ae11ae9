"""Sequential calibration: a linear fitted from what the compressed ones before it give to what the original gave."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.distributed

from sotto.architectures import Attention, Stack
from sotto.calibration import share, weight_and_bias, window_inputs
from sotto.checkpoint import Recognizer
from sotto.data import ClipSource
from sotto.families import Inputs
from sotto.low_rank_math import Regression, regression
from sotto.moments import Moments
from sotto.progress import track
from sotto.surgery import get_linear


def side_by_side(stack: Stack) -> Iterator[tuple[str, ...]]:
    """The linears of a layer in the order of computation, in groups of which none hears another of its group.

    A group is fitted at a time: fitted to inputs from before its neighbours changed, a linear would amplify what they
    then do to the directions in which its inputs hardly varied.
    """
    for module in stack.modules:
        if isinstance(module, Attention):
            yield module.inward
            yield module.linears[-1:]
        else:
            yield from ((linear,) for linear in module.linears)


class Heard:
    """The inputs and outputs of the linears of one layer while a window runs through it."""

    def __init__(self, recognizer: Recognizer, stack: Stack, index: int, linears: Sequence[str]) -> None:
        self.inputs: dict[str, torch.Tensor] = {}
        self.outputs: dict[str, torch.Tensor] = {}
        self.handles = [
            get_linear(recognizer.model, stack, index, linear).register_forward_hook(
                lambda _, inputs, output, linear=linear: self.hear(linear, inputs[0], output)
            )
            for linear in linears
        ]

    def hear(self, linear: str, inputs: torch.Tensor, output: torch.Tensor) -> None:
        self.inputs[linear] = inputs.flatten(0, -2)
        self.outputs[linear] = output.flatten(0, -2)

    def stop(self) -> None:
        for handle in self.handles:
            handle.remove()


@torch.no_grad()
def fit_layer(
    recognizer: Recognizer,
    original: Recognizer,
    stack: Stack,
    index: int,
    linears: Sequence[str],
    clips: ClipSource,
    ridge: float,
) -> dict[str, Regression]:
    """For each of `linears` of one layer, the least-squares map from its present inputs to its original outputs.

    One pass over `clips` through both models. Joint moments of (inputs, outputs) are kept, never activations.
    """
    modules = {linear: get_linear(recognizer.model, stack, index, linear) for linear in linears}
    joint = {
        linear: Moments(module.in_features + module.out_features, module.weight.device)
        for linear, module in modules.items()
    }
    now, before = Heard(recognizer, stack, index, linears), Heard(original, stack, index, linears)
    try:
        batches = window_inputs(recognizer, share(clips))
        for inputs in track(batches, f"{stack.name} layer {index}"):
            run_both(recognizer, original, stack, inputs)
            for linear in linears:
                rows = torch.cat((now.inputs[linear], before.outputs[linear]), -1)
                joint[linear].add(rows)
    finally:
        now.stop()
        before.stop()
    return {linear: fit(joint[linear], recognizer, stack, index, linear, ridge) for linear in linears}


def run_both(recognizer: Recognizer, original: Recognizer, stack: Stack, inputs: Inputs) -> None:
    if stack.name == "encoder":
        for each in (recognizer, original):
            each.family.encode(inputs)
        return
    inputs = original.family.with_transcript(inputs, original.language)
    for each in (recognizer, original):
        each.family.logits(inputs)


def fit(moments: Moments, recognizer: Recognizer, stack: Stack, index: int, linear: str, ridge: float) -> Regression:
    moments.reduce()
    inputs = get_linear(recognizer.model, stack, index, linear).in_features
    mean, covariance = moments.mean, moments.covariance
    weight, _ = weight_and_bias(recognizer.model, stack, index, linear)
    return regression(
        mean[:inputs],
        covariance[:inputs, :inputs],
        mean[inputs:],
        covariance[inputs:, :inputs],
        weight,
        ridge,
    )
