"""How much heads, neurons and channels matter to a model that is trained already: by their weights, or to its loss.

Magnitude: the mean size of the weights that go with a unit (after Li et al., 2017). Taylor: how much the loss would
change, to first order, if what the unit says were scaled (Michel et al., 2019, eq. 2; Molchanov et al., 2019). The size
is that of the mean change over a batch of 8 clips; Michel et al. take it for every example.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from sotto.architectures import Attention, Convolution
from sotto.augmentation import Augmentation
from sotto.checkpoint import Recognizer
from sotto.data import ClipSource
from sotto.examples import Example, examples_of
from sotto.families import evaluating
from sotto.methods.gate_costs import GateCosts
from sotto.methods.gated_modules import GatedModule
from sotto.methods.gates import gated_by
from sotto.progress import track
from sotto.surgery import get_linear, layer_path
from sotto.text import get_normalizer

BATCH = 8


@torch.no_grad()
def mean_sizes(model: Any, gated: GatedModule) -> torch.Tensor:
    """(units,): the mean absolute value of the weights that go with each."""
    weights = torch.cat([part.abs() for part in weights_of_units(model, gated)], 1)
    return weights.mean(1)


def weights_of_units(model: Any, gated: GatedModule) -> Iterator[torch.Tensor]:
    """Weights (units, …) of all parts of a module, sorted by unit; no biases."""
    module, count = gated.module, gated.units
    if isinstance(module, Convolution):
        inward, depthwise = (
            model.get_submodule(layer_path(gated.stack, gated.layer, f"{module.name}.{part}")).weight
            for part in module.parts[:2]
        )
        yield inward.view(2, count, -1).transpose(0, 1).flatten(1)  # GLU's two halves
        yield depthwise.view(count, -1)
    else:
        for name in module.inward if isinstance(module, Attention) else (module.up,):
            yield get_linear(model, gated.stack, gated.layer, name).weight.view(count, -1)
    outward = model.get_submodule(gated.outward).weight
    yield outward.view(outward.shape[0], count, -1).transpose(0, 1).flatten(1)


def first_clips(
    recognizer: Recognizer, sources: Sequence[ClipSource], count: int, transcripts: str, seed: int
) -> list[Example]:
    """The first clips, with what the normaliser named `transcripts` makes of their transcripts."""
    clips = examples_of(sources, Augmentation(), recognizer.family.longest_seconds, seed, get_normalizer(transcripts))
    return [clips[index] for index in range(min(count, len(clips)))]


def mean_changes(
    recognizer: Recognizer, gated: Sequence[GatedModule], clips: list[Example], language: str
) -> list[torch.Tensor]:
    """(units,) for every module: the mean over batches of |dL/dz|, L the loss a token and z what scales the unit."""
    model, family = recognizer.model, recognizer.family
    collate = family.collator(language)
    scales = [torch.ones(each.units, device=model.device, requires_grad=True) for each in gated]
    totals = [torch.zeros(each.units) for each in gated]
    starts = range(0, len(clips), BATCH)
    with evaluating(model), gated_by(model, gated, lambda *_: None, lambda index, _: scales[index]):
        for start in track(starts, "importance"):
            batch = {name: tensor.to(model.device) for name, tensor in collate(clips[start : start + BATCH]).items()}
            _, loss = family.loss(batch, 0.0)
            changes = torch.autograd.grad(loss / (batch["labels"] >= 0).sum(), scales)
            totals = [total + change.abs().cpu() for total, change in zip(totals, changes, strict=True)]
    return [total / len(starts) for total in totals]


def worth(gated: Sequence[GatedModule], changes: Sequence[torch.Tensor], costs: GateCosts) -> list[torch.Tensor]:
    """(units,) for every module: the logarithm of the change of the loss, for what the unit costs."""
    prices = [cost.costs[-1] / each.units for cost, each in zip(costs.modules, gated, strict=True)]
    values = [own.double() / price for own, price in zip(changes, prices, strict=True)]
    return [own.clamp(min=1e-300).log() for own in values]
