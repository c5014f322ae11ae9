"""Calibration: one pass over audio that keeps the second moments of every linear, taken on its cheaper side."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from sotto.architectures import Stack
from sotto.checkpoint import Recognizer
from sotto.data import Clip, ClipSource, windows
from sotto.distribution import processes
from sotto.errors import SottoError
from sotto.families import Inputs
from sotto.low_rank_math import Principal, principal_of_inputs, principal_of_outputs
from sotto.moments import Moments
from sotto.progress import track
from sotto.surgery import get_linear, linears_of

Place = tuple[str, int, str]
"""(stack, layer, linear): where a linear is."""


def places(recognizer: Recognizer, stacks: Sequence[str]) -> Iterator[tuple[Stack, int, str]]:
    """Every linear of the layers of `stacks`, in the order of computation."""
    for name in stacks:
        recognizer.architecture.stack(name)  # raises where there is none
        yield from (place for place in linears_of(recognizer.model) if place[0].name == name)


@dataclass(frozen=True)
class MeasuredPoint:
    """Where the moments of a linear are taken: at the inputs of `owner`, or at its own outputs."""

    owner: Place
    at_input: bool


def measured_point(recognizer: Recognizer, stack: Stack, index: int, linear: str) -> MeasuredPoint:
    """The cheaper side of a linear. Projections of an attention that hear the same share their moments."""
    module = get_linear(recognizer.model, stack, index, linear)
    if module.out_features < module.in_features:
        return MeasuredPoint((stack.name, index, linear), at_input=False)
    owner = linear
    for attention in stack.attentions:
        if linear in attention.sharing_input:
            owner = attention.sharing_input[0]
    return MeasuredPoint((stack.name, index, owner), at_input=True)


@dataclass(frozen=True)
class Calibration:
    """The moments of a recogniser's linears, each kept once where it serves several."""

    recognizer: Recognizer
    points: dict[Place, MeasuredPoint]
    moments: dict[MeasuredPoint, Moments]

    def principal(self, stack: Stack, index: int, linear: str) -> Principal:
        """Mean, energies and directions of the outputs of a linear, in float64."""
        point = self.points[stack.name, index, linear]
        moments = self.moments[point]
        if not point.at_input:
            return principal_of_outputs(moments.mean, moments.covariance)
        weight, bias = weight_and_bias(self.recognizer.model, stack, index, linear)
        return principal_of_inputs(moments.mean, moments.covariance, weight, bias)

    def outputs(self, stack: Stack, index: int, linear: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean (outputs,) and covariance (outputs, outputs) of the outputs of a linear, in float64."""
        point = self.points[stack.name, index, linear]
        moments = self.moments[point]
        if not point.at_input:
            return moments.mean, moments.covariance
        weight, bias = weight_and_bias(self.recognizer.model, stack, index, linear)
        return weight @ moments.mean + bias, weight @ moments.covariance @ weight.T

    def principals(self) -> dict[Place, Principal]:
        """`principal` of every linear, with directions in float32; moments are let go as soon as they have served."""
        found = {}
        last_use = {point: place for place, point in self.points.items()}
        for place in track(self.points, "principal directions"):
            name, index, linear = place
            principal = self.principal(self.recognizer.architecture.stack(name), index, linear)
            found[place] = replace(principal, directions=principal.directions.float())
            if last_use[self.points[place]] == place:
                del self.moments[self.points[place]]
        return found


def weight_and_bias(model: nn.Module, stack: Stack, index: int, linear: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight (outputs, inputs) and bias (outputs,; zero where there is none) of a linear, in float64."""
    module = get_linear(model, stack, index, linear)
    weight = module.weight.detach().double()
    bias = module.bias.detach().double() if module.bias is not None else torch.zeros_like(weight[:, 0])
    return weight, bias


def calibrate(
    recognizer: Recognizer,
    clips: ClipSource,
    stacks: Sequence[str] = ("encoder",),
    linears: Collection[Place] | None = None,
) -> Calibration:
    """Stream `clips` through the model once; each process of a distributed run takes its share.

    All linears of `stacks` are measured, or those of `linears`. For the encoder alone only the encoder runs. A decoder
    is calibrated on the model's own transcripts, so no text is needed. Raises SottoError where there is no clip to
    calibrate on.
    """
    calibration, listeners = prepare(recognizer, stacks, linears)
    run_through(recognizer, share(clips), stacks, listeners)
    moments = calibration.moments
    for point in sorted(moments, key=lambda point: (point.owner, point.at_input)):
        moments[point].reduce()
    if all(kept.count == 0 for kept in moments.values()):
        raise SottoError(f"no clip of {clips.config.path} could be used for calibration")
    return calibration


def prepare(
    recognizer: Recognizer, stacks: Sequence[str], linears: Collection[Place] | None = None
) -> tuple[Calibration, list[Listener]]:
    """Empty moments for the linears that are to be measured, and the listeners that fill them."""
    points = {
        (stack.name, index, linear): measured_point(recognizer, stack, index, linear)
        for stack, index, linear in places(recognizer, stacks)
        if linears is None or (stack.name, index, linear) in linears
    }
    moments: dict[MeasuredPoint, Moments] = {}
    listeners = []
    for point in set(points.values()):
        stack_name, index, linear = point.owner
        module = get_linear(recognizer.model, recognizer.architecture.stack(stack_name), index, linear)
        width = module.in_features if point.at_input else module.out_features
        moments[point] = Moments(width, module.weight.device)
        listeners.append(Listener(module, moments[point], point.at_input))
    return Calibration(recognizer, points, moments), listeners


def share(clips: ClipSource) -> ClipSource:
    """This process's share of the clips, or all of them where there is one process."""
    state = processes()
    return clips.shard(state.process_index, state.num_processes) if state.num_processes > 1 else clips


@dataclass(frozen=True)
class Listener:
    """A module whose inputs, or outputs, are to be added to moments."""

    module: nn.Module
    moments: Moments
    at_input: bool

    def attach(self) -> RemovableHandle:
        if self.at_input:
            return self.module.register_forward_pre_hook(lambda _, inputs: self.moments.add(inputs[0]))
        return self.module.register_forward_hook(lambda _, inputs, output: self.moments.add(output))


class Attachable(Protocol):
    """Something that can be made to hear a module."""

    def attach(self) -> RemovableHandle: ...


@contextmanager
def listening(listeners: Sequence[Attachable]) -> Iterator[None]:
    """Have every listener hear what runs inside of the block."""
    handles = [listener.attach() for listener in listeners]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()  # not inference mode: models keep positions they computed, and gradients may have to pass them later
def run_through(
    recognizer: Recognizer,
    clips: Iterable[Clip],
    stacks: Sequence[str],
    listeners: Sequence[Listener],
) -> None:
    """Run the encoder, or all of the model where `stacks` names more, over every window, heard by `listeners`."""
    family = recognizer.family
    encoder_alone = tuple(stacks) == ("encoder",)
    for inputs in track(window_inputs(recognizer, clips), "calibration"):
        if encoder_alone:
            with listening(listeners):
                family.encode(inputs)
            continue
        transcribed = family.with_transcript(inputs, recognizer.language)  # not heard: it would count the encoder twice
        with listening(listeners):
            family.logits(transcribed)


def window_inputs(recognizer: Recognizer, clips: Iterable[Clip]) -> Iterator[Inputs]:
    """Model inputs for all clips, one window at a time; clips that are too long to go at once give several."""
    family = recognizer.family
    for clip in clips:
        for window in windows(clip.audio, clip.sampling_rate, family.longest_seconds):
            yield family.inputs([window])
