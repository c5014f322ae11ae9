"""Guided distillation: a student learns from layers of its teacher that are chosen anew for every batch.

After the released code of Whisper-KDQ (Shao et al., 2023, arXiv:2305.10788): matchings, differences, and adapters on
the teacher's side. That quantization chooses what is distilled, and distillation what is quantized, is said in the
abstract of the paper's first version and is not in its code: what is here of it is our reconstruction.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from sotto.architectures import Stack, architecture_of
from sotto.errors import SottoError
from sotto.examples import IGNORED, Batch
from sotto.families import Family
from sotto.methods.guided_matching import Matching, matched
from sotto.methods.guided_rounding import GuidedRounding
from sotto.methods.layer_differences import HiddenDifference, WeightDifference, first_weights
from sotto.methods.layer_states import Inside, States, keeping_states
from sotto.methods.quantization_aware import QuantizationAware, rounding_of
from sotto.methods.quantization_error import errors_of_layers
from sotto.methods.teaching import counted_positions, divergence_of_scores, hearing_alike, open_teacher
from sotto.objectives import Objective, Setting, objectives

Part = Literal["encoder", "decoder"]
Compared = Mapping[str, torch.Tensor]
"""What is compared of a layer, by module: states (positions, width) or weights (outputs, inputs)."""


@dataclass(frozen=True)
class GuidedDistillation:
    """Divergence of the scores from a teacher's, and differences inside of layers that are matched batch by batch."""

    teacher: str
    """a checkpoint, its path seen from the recipe"""
    weight: float = 9.0
    """of all that follows, beside the cross entropy: the code's shares of 0.9 and 0.1 are 9 to 1"""
    logits: float = 1.0
    layers: float = 1.0
    """weight of the mean difference of a layer"""
    temperature: float = 1.0
    matching: Matching = "monotone"
    select_by: Literal["hidden", "weight", "quantization_error"] = "hidden"
    """what tells which layer of the teacher is nearest"""
    loss_on: Literal["hidden", "weight"] = "hidden"
    """what is learnt of that layer"""
    inside: tuple[Inside, ...] = ("ffn",)
    """where hidden states are taken; weights are those of the first linear of feed-forward networks"""
    stacks: tuple[Part, ...] = ("decoder",)
    frozen: tuple[Part, ...] = ()
    """parts of the student that are not trained: in the code, the encoder"""
    distilled_layers: int | None = None
    """so many layers of a stack learn from the teacher, those that rounding changes most; all, where not given"""
    rounding: QuantizationAware = field(default_factory=QuantizationAware)
    """how weights are rounded, where that matters"""
    rounded_over: int | None = None
    """weights are rounded in training, layer by layer over so many steps, those with the least loss first; not at all,
    where not given"""

    def __post_init__(self) -> None:
        for name in ("weight", "temperature"):
            if getattr(self, name) <= 0:
                raise SottoError(f"{name} must be positive, found {getattr(self, name)}")
        if self.logits < 0 or self.layers < 0 or self.logits + self.layers == 0:
            raise SottoError("logits and layers must not be negative, and one of them positive")
        if not self.inside or not self.stacks:
            raise SottoError("inside and stacks must each name something")
        if set(self.frozen) >= {"encoder", "decoder"}:
            raise SottoError("frozen: encoder and decoder together leave nothing to train")
        for name in ("distilled_layers", "rounded_over"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SottoError(f"{name} must be at least 1, found {value}")

    @property
    def kinds(self) -> set[str]:
        """What is compared of layers at all."""
        selecting: set[str] = {self.select_by} if self.matching != "static" else set()
        return (selecting | {self.loss_on}) - {"quantization_error"}


class GuidedDistillationObjective(Objective):
    """The teacher hears what the student hears, and is neither trained nor kept."""

    name = "guided_distillation"

    def __init__(
        self, config: GuidedDistillation, student: Family, teacher: Family, rounding: GuidedRounding | None
    ) -> None:
        super().__init__()
        self.config, self.rounding = config, rounding
        self.student, self.teacher = student, teacher
        teacher.model.eval().requires_grad_(False)
        stacks = architecture_of(student.model.config).stacks
        self.deciding = stacks[-1].name
        self.stacks = [stack for stack in stacks if stack.name in config.stacks and config.layers]
        self.differences = nn.ModuleDict(
            {
                f"{stack.name}_{kind}": difference_of(kind, config, stack, student.model, teacher.model)
                for stack in self.stacks
                for kind in sorted(config.kinds)
            }
        )
        self.heard: dict[str, States] = {}
        self.terms: dict[str, torch.Tensor] = {}

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[None]:
        with ExitStack() as attached:
            attached.enter_context(frozen(model, self.config.frozen))
            attached.enter_context(hearing_alike(self.teacher, self.student))
            attached.enter_context(keeping_states(model, self.stacks, self.config.inside, self.heard))
            if self.rounding is not None:
                attached.enter_context(self.rounding.attached(model))
            yield

    def after_step(self, model: nn.Module, step: int, learning_rate: float) -> None:
        if self.rounding is not None:
            self.rounding.after_step(model, step)

    def logged(self, model: nn.Module) -> dict[str, float]:
        """Both parts by themselves, and the share of the layers that are rounded."""
        found = {name: term.item() for name, term in self.terms.items()}
        if self.rounding is not None:
            found["rounded_layers"] = self.rounding.is_rounded.float().mean().item()
        return found

    def forward(self, model: nn.Module, batch: Batch, outputs: Any, tokens: torch.Tensor) -> torch.Tensor:
        taught: dict[str, States] = {}
        with torch.no_grad(), keeping_states(self.teacher.model, self.stacks, self.config.inside, taught):
            wanted, _ = self.teacher.loss(batch, 0.0)
        counted = counted_positions(self.student, batch, outputs)
        logits = divergence_of_scores(outputs.logits, wanted.logits, counted[self.deciding], self.config.temperature)
        layers = torch.zeros((), device=tokens.device)
        share = (batch["labels"] != IGNORED).sum() / tokens
        for stack in self.stacks:
            own, others = (at_positions(states[stack.name], counted[stack.name]) for states in (self.heard, taught))
            layers = layers + self.of_stack(stack, own, others, share)
        self.terms = {"guided_logits": logits.detach() / tokens, "guided_layers": layers.detach() / tokens}
        return self.config.weight * (self.config.logits * logits + self.config.layers * layers) / tokens

    def of_stack(
        self, stack: Stack, own: Sequence[Compared], wanted: Sequence[Compared], share: torch.Tensor
    ) -> torch.Tensor:
        """The mean difference of a stack's layers from those that they are matched with.

        Differences of states are sums over positions. Those of weights are not: they count once over all processes.
        """
        config = self.config
        pairs = {
            "hidden": (own, wanted, torch.ones_like(share)),
            "weight": (first_weights(self.student.model, stack), first_weights(self.teacher.model, stack), share),
        }

        def difference(kind: str, layer: int, other: int, is_learnt: bool = True) -> torch.Tensor:
            students, teachers, scale = pairs[kind]
            student = students[layer] if is_learnt else {name: each.detach() for name, each in students[layer].items()}
            found: torch.Tensor = self.differences[f"{stack.name}_{kind}"](student, teachers[other])
            return scale * found

        with torch.no_grad():
            chosen = matched(self.errors(stack, difference, len(own), len(wanted)), config.matching)
        losses = torch.stack([difference(config.loss_on, layer, other) for layer, other in enumerate(chosen)])
        if self.rounding is not None:
            self.rounding.note(stack, losses.detach())
        total = losses[self.distilled(stack)].mean()
        for kind in config.kinds - {config.loss_on}:  # the adapters that the choice is made with have to learn too
            adapting = [difference(kind, layer, other, is_learnt=False) for layer, other in enumerate(chosen)]
            total = total + torch.stack(adapting).mean()
        return total

    def errors(self, stack: Stack, difference: Any, own: int, wanted: int) -> torch.Tensor:
        """(student's layers, teacher's layers): what they are matched by."""
        if self.config.matching == "static":
            return torch.zeros(own, wanted)
        if self.config.select_by == "quantization_error":
            models = (self.student.model, self.teacher.model)
            changed = [errors_of_layers(model, stack, self.config.rounding) for model in models]
            return (changed[0][:, None] - changed[1]).abs()
        kind = self.config.select_by
        rows = [[difference(kind, layer, other) for other in range(wanted)] for layer in range(own)]
        return torch.stack([torch.stack(row) for row in rows])

    def distilled(self, stack: Stack) -> torch.Tensor:
        """The layers of the student that learn from the teacher."""
        if self.config.distilled_layers is None:
            return torch.arange(len(self.student.model.get_submodule(stack.layers)))
        changed = errors_of_layers(self.student.model, stack, self.config.rounding)
        return changed.argsort(descending=True)[: self.config.distilled_layers]


def difference_of(kind: str, config: GuidedDistillation, stack: Stack, student: Any, teacher: Any) -> nn.Module:
    if kind == "hidden":
        return HiddenDifference(student, teacher, stack, config.inside, config.temperature)
    return WeightDifference(student, teacher, stack, config.temperature)


def at_positions(states: States, counted: torch.Tensor) -> list[Compared]:
    """By layer, the states (positions, width) where `counted` (batch, positions) is true."""
    return [{name: each[counted] for name, each in states[layer].items()} for layer in sorted(states)]


@contextmanager
def frozen(model: Any, parts: Sequence[Part]) -> Iterator[None]:
    """While this lasts, parts of a model are not trained."""
    inside = {id(parameter) for parameter in model.get_encoder().parameters()} if parts else set()
    held = [
        parameter
        for parameter in model.parameters()
        if ("encoder" if id(parameter) in inside else "decoder") in parts and parameter.requires_grad
    ]
    for parameter in held:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in held:
            parameter.requires_grad_(True)


@objectives.register("guided_distillation", GuidedDistillation)
def build_guided_distillation(config: GuidedDistillation, setting: Setting) -> GuidedDistillationObjective:
    """Raises SottoError for a teacher of another family or vocabulary, and for stacks that there are not."""
    student: Family = setting.family
    stacks = [stack.name for stack in architecture_of(student.model.config).stacks]
    for field_name, names in (("stacks", config.stacks), ("frozen", config.frozen)):
        if missing := [name for name in names if name not in stacks]:
            raise SottoError(f"guided_distillation: {field_name}: the model has no {missing[0]}")
    teacher = open_teacher(config.teacher, setting, "guided_distillation")
    rounding = None
    if config.rounded_over is not None:
        aware = rounding_of(student.model, config.rounding)
        rounding = GuidedRounding(student.model, aware, config.rounded_over)
    return GuidedDistillationObjective(config, student, teacher, rounding)
