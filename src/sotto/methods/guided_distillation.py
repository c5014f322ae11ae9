"""Guided distillation: a student learns from layers of its teacher that are chosen anew for every batch.

After the released code of Whisper-KDQ (Shao et al., 2023, arXiv:2305.10788): matchings, differences, and adapters on
the teacher's side. That quantization chooses what is distilled, and distillation what is quantized, is said in the
abstract of the paper's first version and is not in its code: what is here of it is our reconstruction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from accelerate.utils import reduce
from torch import nn

from sotto.architectures import Stack, architecture_of
from sotto.errors import SottoError
from sotto.examples import IGNORED, Batch
from sotto.families import Family
from sotto.methods.guided_matching import Matching, matched
from sotto.methods.guided_rounding import GuidedRounding, Order
from sotto.methods.layer_differences import Compared, FirstWeights, HiddenStates, first_weights
from sotto.methods.layer_states import Inside, States, keeping_states
from sotto.methods.quantization_aware import QuantizationAware, rounding_of
from sotto.methods.quantization_error import errors_of_layers
from sotto.methods.teaching import divergence_of_scores, hearing_alike, open_teacher
from sotto.objectives import Objective, Setting, objectives

Part = Literal["encoder", "decoder"]


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
    """weights are rounded in training, layer by layer, the last one after so many steps; not at all, where not given"""
    rounding_order: Order = "loss"
    """which layers come first: those of the least loss, those of the greatest, or the first ones, the encoder's before
    the decoder's"""

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
        if self.layers and set(self.stacks) & set(self.frozen):
            raise SottoError("stacks: the layers of what is frozen learn nothing; name the other stack")
        for name in ("distilled_layers", "rounded_over"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SottoError(f"{name} must be at least 1, found {value}")
            if value is not None and not self.layers:
                raise SottoError(f"{name} goes with what layers learn; give layers a weight")
        if self.rounded_over is not None and set(self.rounding.stacks) & set(self.frozen):
            raise SottoError("rounding: what is frozen cannot learn to be rounded; name the other stack in its stacks")
        if self.is_chosen_by_rounding and not set(self.stacks) <= set(self.rounding.stacks):
            raise SottoError("rounding: layers are chosen by what it changes; name what stacks names in its stacks")
        self.check_idle()

    def check_idle(self) -> None:
        """Raises SottoError for a setting that is not the default and changes nothing."""
        for is_idle, names, advice in self.idle():
            for name in names:
                plain = getattr(GuidedDistillation, name, QuantizationAware())  # that of rounding is made anew
                if is_idle and getattr(self, name) != plain:
                    raise SottoError(f"{name}: {advice}, or leave it out")
        if self.rounded_over is None and self.rounding.embedding_bits is not None:
            raise SottoError("rounding: the table of tokens is rounded in training only; give rounded_over")

    def idle(self) -> Iterator[tuple[bool, tuple[str, ...], str]]:
        """Whether settings change nothing, which, and what would let them."""
        of_layers = ("matching", "select_by", "loss_on", "stacks", "inside")
        yield not self.layers, of_layers, "nothing is learnt of layers; give layers a weight"
        yield self.matching == "static", ("select_by",), "static matching looks at nothing; take another matching"
        yield "hidden" not in self.kinds, ("inside",), "no states are compared; take hidden for select_by or loss_on"
        yield self.rounded_over is None, ("rounding_order",), "nothing is rounded in training; give rounded_over"
        is_unread = self.rounded_over is None and not self.is_chosen_by_rounding
        reading = "rounded_over, distilled_layers or select_by: quantization_error"
        yield is_unread, ("rounding",), f"nothing goes by it; give {reading}"

    @property
    def is_chosen_by_rounding(self) -> bool:
        """Whether layers are, or what they learn from."""
        return self.distilled_layers is not None or self.select_by == "quantization_error"

    @property
    def least_steps(self) -> int:
        """After which all layers are rounded; training goes on for longer."""
        return self.rounded_over or 0

    @property
    def kinds(self) -> list[str]:
        """What is compared of layers at all."""
        selecting = self.select_by if self.matching != "static" else self.loss_on
        return [kind for kind in ("hidden", "weight") if kind in (selecting, self.loss_on)]


class GuidedDistillationObjective(Objective):
    """The teacher hears what the student hears, and what SpecAugment hides from it; it is neither trained nor kept."""

    def __init__(
        self,
        config: GuidedDistillation,
        student: Family,
        teacher: Family,
        rounding: GuidedRounding | None,
        name: str,
    ) -> None:
        super().__init__()
        self.name = name
        self.config, self.rounding = config, rounding
        self.student, self.teacher = student, teacher
        teacher.model.eval().requires_grad_(False)
        stacks = architecture_of(student.model.config).stacks
        self.deciding = stacks[-1].name
        self.stacks = [stack for stack in stacks if stack.name in config.stacks and config.layers]
        self.comparisons = nn.ModuleDict(
            {
                f"{stack.name}_{kind}": comparison_of(kind, config, stack, student.model, teacher.model)
                for stack in self.stacks
                for kind in config.kinds
            }
        )
        self.errors_of_teacher = {
            stack.name: self.errors_if_rounded(teacher, stack)
            for stack in self.stacks
            if config.select_by == "quantization_error"
        }
        self.heard: dict[str, States] = {}
        self.taught: dict[str, States] = {}
        self.terms: dict[str, torch.Tensor] = {}

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[None]:
        with ExitStack() as attached:
            attached.enter_context(frozen(model, self.config.frozen))
            attached.enter_context(hearing_alike(self.teacher, self.student))
            for each, states in ((model, self.heard), (self.teacher.model, self.taught)):
                attached.enter_context(keeping_states(each, self.stacks, self.config.inside, states))
            if self.rounding is not None:
                attached.enter_context(self.rounding.attached(model))
            yield

    def after_step(self, model: nn.Module, step: int, learning_rate: float) -> None:
        if self.rounding is not None:
            self.rounding.after_step(model, step)

    def parts(self, model: nn.Module) -> dict[str, float]:
        """Over all processes, without their weights."""
        return {name: reduce(term, "sum").item() for name, term in self.terms.items()}

    def logged(self, model: nn.Module) -> dict[str, float]:
        """The share of the layers that are rounded, and what rounding has changed so far."""
        if self.rounding is None:
            return {}
        rounded = self.rounding.is_rounded.float().mean().item()
        changed = {f"{self.name}_{key}": value for key, value in self.rounding.aware.logged(model).items()}
        return {"rounded_layers": rounded} | changed

    def forward(self, model: nn.Module, batch: Batch, outputs: Any, tokens: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            wanted, _ = self.teacher.loss(batch, 0.0)
        counted = self.student.counted_positions(batch, outputs)
        apart = divergence_of_scores(outputs.logits, wanted.logits, counted[self.deciding], self.config.temperature)
        logits = apart / tokens
        share = (batch["labels"] != IGNORED).sum() / tokens
        layers = adapting = torch.zeros((), device=tokens.device)
        for stack in self.stacks:
            learnt, of_adapters = self.of_stack(stack, self.compared(stack, counted[stack.name]))
            layers, adapting = layers + share * learnt, adapting + share * of_adapters
        self.terms = {f"{self.name}_logits": logits.detach()}
        if self.stacks:
            self.terms[f"{self.name}_layers"] = layers.detach()
        # Adapters of widths that were not matched in this batch have a gradient too: processes wait for all of them.
        idle = sum((0.0 * parameter.sum() for parameter in self.comparisons.parameters()), torch.zeros_like(logits))
        return self.config.weight * (self.config.logits * logits + self.config.layers * (layers + adapting)) + idle

    def compared(self, stack: Stack, counted: torch.Tensor) -> dict[str, Compared]:
        """What layers are chosen by and taught by, in this process."""
        found = {}
        if "hidden" in self.config.kinds:
            states = (at_positions(each.get(stack.name, {}), counted) for each in (self.heard, self.taught))
            found["hidden"] = self.comparisons[f"{stack.name}_hidden"](*states)
        if "weight" in self.config.kinds:
            weights = (first_weights(each.model, stack) for each in (self.student, self.teacher))
            found["weight"] = self.comparisons[f"{stack.name}_weight"](*weights)
        return found

    def of_stack(self, stack: Stack, kinds: dict[str, Compared]) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean difference of a stack's layers from those that they are matched with, and what adapters learn from
        where layers are chosen by something else: a difference of their own, in which the student is held.

        Layers take part that gave anything in this pass: some families leave layers out while they are trained.
        """
        learnt = kinds[self.config.loss_on]
        none = torch.zeros((), device=self.student.model.device)
        layers = [layer for layer in sorted(learnt.own) if all(layer in each.own for each in kinds.values())]
        others = [other for other in sorted(learnt.wanted) if all(other in each.wanted for each in kinds.values())]
        if not layers or not others:
            return none, none
        with torch.no_grad():
            errors = self.errors(stack, kinds, layers, others)
        pairs = [
            (layer, others[place])
            for row, (layer, place) in enumerate(zip(layers, matched(errors, self.config.matching), strict=True))
            if errors[row, place].isfinite()
        ]
        losses = {layer: learnt.apart(layer, other) for layer, other in pairs}
        if self.rounding is not None:
            self.rounding.note({(stack.name, layer): loss for layer, loss in losses.items()})
        distilled = self.distilled(stack, list(losses))
        adapting = [
            kinds[kind].apart(layer, other, is_learnt=False)
            for kind in self.config.kinds
            if kind != self.config.loss_on
            for layer, other in pairs
        ]
        return mean_of([losses[layer] for layer in distilled], none), mean_of(adapting, none)

    def errors(self, stack: Stack, kinds: dict[str, Compared], layers: list[int], others: list[int]) -> torch.Tensor:
        """(student's layers, teacher's layers), on the CPU: to match them by; infinite where they do not fit."""
        fit = torch.tensor([[all(each.fit(a, b) for each in kinds.values()) for b in others] for a in layers])
        errors = torch.zeros(len(layers), len(others))
        if self.config.matching != "static" and self.config.select_by == "quantization_error":
            own = self.errors_if_rounded(self.student, stack)
            errors = (own[layers][:, None] - self.errors_of_teacher[stack.name][others]).abs()
        elif self.config.matching != "static":
            chosen = kinds[self.config.select_by]
            infinite = torch.full((), torch.inf, device=self.student.model.device)
            rows = [
                torch.stack([chosen.apart(a, b) if fit[row, place] else infinite for place, b in enumerate(others)])
                for row, a in enumerate(layers)
            ]
            errors = torch.stack(rows).cpu()
        return errors.masked_fill(~fit, torch.inf)

    def errors_if_rounded(self, family: Family, stack: Stack) -> torch.Tensor:
        """(layers,), on the CPU. As if all were rounded: the teacher's layers are not those of the settings."""
        return errors_of_layers(family.model, stack, replace(self.config.rounding, layers={})).cpu()

    def distilled(self, stack: Stack, layers: list[int]) -> list[int]:
        """Those of `layers` that learn from the teacher."""
        if self.config.distilled_layers is None:
            return layers
        changed = errors_of_layers(self.student.model, stack, self.config.rounding).tolist()
        return sorted(layers, key=lambda layer: -changed[layer])[: self.config.distilled_layers]


def comparison_of(kind: str, config: GuidedDistillation, stack: Stack, student: Any, teacher: Any) -> nn.Module:
    if kind == "hidden":
        return HiddenStates(student, teacher, stack, config.inside, config.temperature)
    return FirstWeights(student, teacher, stack, config.temperature)


def at_positions(states: States, counted: torch.Tensor) -> States:
    """The states (positions, width) where `counted` (batch, positions) is true."""
    places = counted.flatten().nonzero().squeeze(1)
    return {
        layer: {name: each.flatten(0, 1).index_select(0, places) for name, each in modules.items()}
        for layer, modules in states.items()
    }


def mean_of(terms: Sequence[torch.Tensor], none: torch.Tensor) -> torch.Tensor:
    return torch.stack(list(terms)).mean() if terms else none


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
def build_guided_distillation(config: GuidedDistillation, setting: Setting) -> Objective:
    return objective_of(config, setting, "guided_distillation")


def objective_of(config: GuidedDistillation, setting: Setting, name: str) -> GuidedDistillationObjective:
    """The objective, with the name that it has in recipes.

    Raises SottoError for a teacher that hears or writes otherwise than the student, and for parts and layers that the
    model does not have.
    """
    student: Family = setting.family
    check_parts(config, student.model, name)
    teacher = open_teacher(config.teacher, setting, name)
    rounding = None
    if config.rounded_over is not None:
        aware = rounding_of(student.model, config.rounding, f"{name}: rounding")
        rounding = GuidedRounding(student.model, aware, config.rounded_over, config.rounding_order)
    return GuidedDistillationObjective(config, student, teacher, rounding, name)


def check_parts(config: GuidedDistillation, model: Any, name: str) -> None:
    """Raises SottoError for parts and layers that the model does not have, for the objective of that name."""
    layers = {stack.name: len(model.get_submodule(stack.layers)) for stack in architecture_of(model.config).stacks}
    if config.layers and (missing := [part for part in config.stacks if part not in layers]):
        raise SottoError(f"{name}: stacks: the model has no {missing[0]}; name {' and '.join(layers)}")
    if config.frozen and "decoder" not in layers:
        raise SottoError(f"{name}: frozen: a model without a decoder is trained as a whole; leave it out")
    for stack in config.stacks:
        if config.distilled_layers is not None and config.distilled_layers > layers[stack]:
            raise SottoError(f"{name}: distilled_layers: the {stack} has {layers[stack]} layers; name at most as many")
    try:
        list(config.rounding.linears(model))
    except SottoError as error:
        raise SottoError(f"{name}: rounding: {error}") from error
