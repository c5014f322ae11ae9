"""Sparse group lasso while fine-tuning, after TSPAR (Mudi et al., 2025, arXiv:2510.12666).

Known of the paper is the form of the loss: cross entropy plus four terms, of the elements and of the columns, for
encoder and decoder. Not known are the weights of the terms, the optimiser's part in them, and whether the norm of a
column is squared; what is offered here beside the un-squared norm of columns in the loss is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from sotto.architectures import architecture_of
from sotto.errors import SottoError
from sotto.examples import IGNORED, Batch
from sotto.methods.group_math import GroupNorm, group_penalty, group_size, shrink_elements, shrink_groups
from sotto.methods.groups import AttentionGroups, FeedForwardGroups, Groups, groups_of
from sotto.objectives import Objective, Setting, objectives

NEAR_ZERO = 1e-3  # of the root mean square of a matrix: what counts as nearly zero in logs


@dataclass(frozen=True)
class SparseGroupLasso:
    """Four weights, of the mean penalty over the weights of a stack's linears; a CTC model has an encoder only."""

    encoder_element: float = 0.0
    decoder_element: float = 0.0
    encoder_group: float = 0.0
    decoder_group: float = 0.0
    attention: AttentionGroups = "column"
    feed_forward: FeedForwardGroups = "column"
    group_norm: GroupNorm = "l2"
    """l2_squared is what a second-hand summary of the paper prints: it is ridge, and empties nothing"""
    form: Literal["subgradient", "proximal"] = "subgradient"
    """subgradient: the terms are part of the loss. proximal: after every step weights shrink by learning rate times
    lambda, apart from the optimiser as AdamW's decay is, and become exactly zero"""

    def __post_init__(self) -> None:
        names = ("encoder_element", "decoder_element", "encoder_group", "decoder_group")
        for name in names:
            if getattr(self, name) < 0:
                raise SottoError(f"{name} must not be negative, found {getattr(self, name)}")
        if not any(getattr(self, name) for name in names):
            raise SottoError(f"sparse_group_lasso: give at least one of {', '.join(names)}")
        if self.group_norm != "l2" and not (self.encoder_group or self.decoder_group):
            raise SottoError("group_norm is of the group terms; give encoder_group, decoder_group or both")


@dataclass(frozen=True)
class PenalizedStack:
    """The group sets of one stack, the weights in all of them, and its two lambdas."""

    groups: tuple[Groups, ...]
    weights: int
    element: float
    group: float


class SparseGroupLassoObjective(Objective):
    """The penalty as a term of the loss, or as shrinkage after each step."""

    name = "sparse_group_lasso"

    def __init__(self, config: SparseGroupLasso, stacks: Mapping[str, PenalizedStack]) -> None:
        super().__init__()
        self.config = config
        self.stacks = stacks

    def forward(self, model: nn.Module, batch: Batch, outputs: Any, tokens: torch.Tensor) -> torch.Tensor:
        """Zero in the proximal form, which is no part of the loss."""
        if self.config.form == "proximal":
            return torch.zeros((), device=tokens.device)
        share = (batch["labels"] != IGNORED).sum() / tokens
        terms = self.terms(model)
        return share * torch.stack(list(terms.values())).sum()

    def terms(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """Each lambda times the mean penalty of a weight: sums over a stack divided by the number of its weights."""
        found = {}
        for name, stack in self.stacks.items():
            sets = [(groups.members(model), groups.count) for groups in stack.groups]
            if stack.element:
                absolute = torch.stack([weight.abs().sum() for members, _ in sets for weight, _ in members]).sum()
                found[f"{name}_element"] = stack.element * absolute / stack.weights
            if stack.group:
                norms = [group_penalty(members, count, self.config.group_norm) for members, count in sets]
                found[f"{name}_group"] = stack.group * torch.stack(norms).sum() / stack.weights
        return found

    @torch.no_grad()
    def after_step(self, model: nn.Module, step: int, learning_rate: float) -> None:
        """The proximal operator of element and group penalty: elements first (Simon et al., 2013, section 3)."""
        if self.config.form == "subgradient":
            return
        for stack in self.stacks.values():
            for groups in stack.groups:
                members = groups.members(model)
                for weight, _ in members:
                    shrink_elements(weight, learning_rate * stack.element)
                shrink_groups(members, groups.count, learning_rate * stack.group, self.config.group_norm)

    @torch.no_grad()
    def parts(self, model: nn.Module) -> dict[str, float]:
        """Every term, in the loss or not."""
        return {name: term.item() for name, term in self.terms(model).items()}

    @torch.no_grad()
    def logged(self, model: nn.Module) -> dict[str, float]:
        """The shares of exact and of near zeros and of empty groups in every layer."""
        found: dict[str, float] = {}
        for name, stack in self.stacks.items():
            for layer in sorted({groups.layer for groups in stack.groups}):
                own = [groups for groups in stack.groups if groups.layer == layer]
                found |= {f"{name}.{layer}_{key}": value for key, value in zeros(model, own).items()}
        return found


def zeros(model: nn.Module, groups: list[Groups]) -> dict[str, float]:
    """Shares of weights that are zero and nearly so, and of weights in groups that are zero as a whole."""
    weights = zero = near = empty = 0
    for each in groups:
        members = each.members(model)
        alive = torch.zeros(each.count, dtype=torch.bool, device=members[0][0].device)
        for weight, axis in members:
            weights += weight.numel()
            zero += int((weight == 0).sum())
            near += int((weight.abs() <= NEAR_ZERO * weight.square().mean().sqrt()).sum())
            alive |= (weight != 0).any(1 - axis).view(each.count, -1).any(1)
        empty += int((~alive).sum()) * group_size(members, each.count)
    return {"zero": zero / weights, "near_zero": near / weights, "empty_groups": empty / weights}


@objectives.register("sparse_group_lasso", SparseGroupLasso)
def build_sparse_group_lasso(config: SparseGroupLasso, setting: Setting) -> SparseGroupLassoObjective:
    """Raises SottoError for a decoder's lambda where there is no decoder, and for factored linears."""
    model = setting.family.model
    stacks = {stack.name: stack for stack in architecture_of(model.config).stacks}
    penalized: dict[str, PenalizedStack] = {}
    for name in ("encoder", "decoder"):
        element, group = (getattr(config, f"{name}_{part}") for part in ("element", "group"))
        if not element and not group:
            continue
        if name not in stacks:
            raise SottoError(f"sparse_group_lasso: the model has no {name}; leave out {name}_element and {name}_group")
        groups = tuple(groups_of(model, stacks[name], config.attention, config.feed_forward))
        if not groups:
            raise SottoError(f"sparse_group_lasso: there are no linears left in the layers of {name}")
        weights = sum(weight.numel() for each in groups for weight, _ in each.members(model))
        penalized[name] = PenalizedStack(groups, weights, element, group)
    return SparseGroupLassoObjective(config, penalized)
