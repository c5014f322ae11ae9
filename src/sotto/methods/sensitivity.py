"""How much the model's own likelihood depends on each output direction of a linear: a weighting between layers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from sotto.calibration import Place, listening, window_inputs
from sotto.checkpoint import Recognizer
from sotto.data import Clip
from sotto.families import Inputs
from sotto.low_rank_math import Principal
from sotto.progress import track
from sotto.surgery import get_linear

WINDOWS = 32  # gradients vary far less between clips than between layers


def direction_sensitivities(
    recognizer: Recognizer, principals: Mapping[Place, Principal], clips: Iterable[Clip], stacks: Sequence[str]
) -> dict[Place, torch.Tensor]:
    """For each linear and each principal direction u: the mean over frames of (u^T dL/dy)^2, (directions,) float64.

    L is the negative log-likelihood of labels drawn from the model's own distributions: of each token, given its own
    transcript before it, or of each frame. The mean of squared gradients is then the Fisher information, and a small
    error e in the outputs y raises the Kullback-Leibler divergence to the original by one half of e^T F e. No
    transcripts are needed.
    """
    listeners = [
        GradientListener(
            get_linear(recognizer.model, recognizer.architecture.stack(stack), index, linear),
            principal.directions,
            torch.zeros_like(principal.energies),
        )
        for (stack, index, linear), principal in principals.items()
    ]
    generator = torch.Generator().manual_seed(0)
    with frozen(recognizer.model):
        for inputs in track(islice(window_inputs(recognizer, clips), WINDOWS), "sensitivity"):
            backward(recognizer, inputs, generator, listeners)
    return {place: listener.mean() for place, listener in zip(principals, listeners, strict=True)}


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Without gradients of matrices, which nobody asks for here: they would take as much memory as the model.

    Norms and biases go on asking, so that every linear's outputs carry a gradient, those before the audio comes in too.
    """
    asking = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter.dim() > 1]
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)
        model.zero_grad(set_to_none=True)


class GradientListener:
    """Sums the squares of the gradient at a linear's outputs along each of some directions (columns)."""

    def __init__(self, module: nn.Module, directions: torch.Tensor, total: torch.Tensor) -> None:
        self.module = module
        self.directions = directions
        self.total = total
        self.frames = 0

    def attach(self) -> RemovableHandle:
        return self.module.register_forward_hook(lambda _, __, output: self.listen(output))

    def listen(self, output: torch.Tensor) -> None:
        if not output.requires_grad:  # positions do not come from the audio
            output.requires_grad_()
        output.register_hook(self.add)

    def add(self, gradient: torch.Tensor) -> None:
        projected = gradient.reshape(-1, gradient.shape[-1]).to(self.directions.dtype) @ self.directions
        self.total += projected.square().sum(0)
        self.frames += len(projected)

    def mean(self) -> torch.Tensor:
        """Mean over all frames."""
        return self.total / max(self.frames, 1)


def backward(
    recognizer: Recognizer, inputs: Inputs, generator: torch.Generator, listeners: Sequence[GradientListener]
) -> None:
    """Gradients of the log-likelihood of one draw from the distributions of a window."""
    family = recognizer.family
    with torch.no_grad():
        inputs = family.with_transcript(inputs, recognizer.language)
    with listening(listeners):
        audio = recognizer.model.main_input_name
        logits = family.logits({**inputs, audio: inputs[audio].detach().clone().requires_grad_()}).float()
    drawn = torch.multinomial(logits.detach().softmax(-1).cpu(), 1, generator=generator)[:, 0].to(logits.device)
    nn.functional.cross_entropy(logits, drawn, reduction="sum").backward()
