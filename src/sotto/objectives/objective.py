"""What an objective is: a term added to the training loss. Methods bring their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from accelerate.utils import set_seed
from torch import nn

from sotto.checkpoint import Recognizer
from sotto.errors import SottoError
from sotto.examples import Batch, Example
from sotto.families import Family
from sotto.registry import Registry


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters of an objective that are trained at a rate of their own, without decay."""

    parameters: list[nn.Parameter]
    learning_rate: float
    """from the first step to the last: only that of the model rises and falls"""
    maximize: bool = False


class Objective(nn.Module):
    """A term of the loss: `forward(model, batch, outputs, tokens) -> scalar`.

    `outputs` are the model's own for this batch; `tokens` is the number of label tokens in the whole batch, over all
    processes: a term is a sum divided by it, so that it does not depend on how the batch is split. A term of the
    weights alone is multiplied by this batch's share of `tokens`, so that it counts once over all processes. An
    objective may own parameters, which are trained beside the model and never shipped, and may act after each
    optimiser step.
    """

    name: str
    collate: Callable[[list[Example]], Batch] | None = None
    """what the term needs of the examples beside the model's own inputs, such as those of a teacher: tensors that join
    the batch under names of their own"""

    def attached(self, model: nn.Module) -> AbstractContextManager[None]:
        """What is in place while `model` is trained, such as hooks."""
        return nullcontext()

    def parameter_groups(self) -> list[ParameterGroup]:
        """Those of its parameters that are not trained like the model's."""
        return []

    def after_step(self, model: nn.Module, step: int, learning_rate: float) -> None:
        """Called after optimiser step number `step` (from 1), which was taken at `learning_rate`."""

    def logged(self, model: nn.Module) -> dict[str, float]:
        """What the log shows beside the term, wherever it shows losses."""
        return {}

    def parts(self, model: nn.Module) -> dict[str, float]:
        """Parts of the term by name, whose ratios to the family's own loss the log shows as well."""
        return {}


def no_checkpoint(name: str) -> Recognizer:
    raise SottoError(f"there is nothing here to open '{name}' with")


@dataclass(frozen=True)
class Setting:
    """What an objective is built for: the family of the model that is trained, and how checkpoints are opened."""

    family: Family
    open: Callable[[str], Recognizer] = no_checkpoint


objectives: Registry[Callable[[Any, Setting], Objective]] = Registry("objective")


def built(configurations: Iterable[Any], setting: Setting, seed: int) -> list[Objective]:
    """An objective for each. What they draw, such as the first weights of adapters, depends on `seed` alone."""
    set_seed(seed)
    return [objectives.handler(each)(each, setting) for each in configurations]


def check_training(configurations: Iterable[Any], steps: int, keep: str) -> None:
    """Raises SottoError where an objective has work, its `least_steps`, for all of the `steps` of training or more, and
    where what it works towards is there at the end only, but not the last weights are kept."""
    for each in configurations:
        least = getattr(each, "least_steps", 0)
        name = objectives.name_of(each)
        if least >= steps:
            raise SottoError(f"{name} goes on for {least} steps, and training for {steps}; let it end before training")
        if least and keep != "last":
            raise SottoError(
                f"{name} changes the model until step {least}; set keep: last, or earlier weights may be kept"
            )
