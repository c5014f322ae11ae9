"""L0 structured pruning with layerwise distillation, after Jiang et al. (2023, arXiv:2305.19549).

Known of the paper is that masks on the modules of a Conformer are learnt by L0 regularisation while the unpruned model
teaches the pruned one layer by layer. Which masks, the constraint and all constants are those of CoFi (Xia et al.,
2022) and DPHuBERT (Peng et al., 2023), which its authors' other work of that time follows; so this is a reconstruction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from sotto.checkpoint import Recognizer
from sotto.configuration import parse, to_plain
from sotto.distribution import found_once
from sotto.errors import SottoError
from sotto.examples import IGNORED, Batch
from sotto.methods.fine_tuning import FineTuning, fine_tune, heard, transcribed_sources
from sotto.methods.gate_costs import Constraint, GateCosts, check_constraint, gate_costs
from sotto.methods.gate_decisions import carry_out, decide, least_share, left_notes, share_of
from sotto.methods.gate_start import start_in_order
from sotto.methods.gated_modules import KINDS, GatedModule, Kind, gated_modules
from sotto.methods.gates import Gates
from sotto.methods.groups import stacks_named
from sotto.methods.hard_concrete import HardConcrete
from sotto.methods.method import StepContext, methods
from sotto.methods.norm_statistics import renew_statistics
from sotto.methods.unit_importance import first_clips, mean_changes, worth
from sotto.objectives import Objective, ParameterGroup


@dataclass(frozen=True)
class L0Pruning(FineTuning):
    """Trains gates beside the weights until what they leave costs `target` of the model, then removes the rest.

    `objectives` is where layerwise distillation goes; a step of fine-tuning after this one lets the model recover.
    """

    target: float = 0.5
    """share of the whole model's cost that is left"""
    constraint: Constraint = "parameters"
    """what the cost is: parameters, FLOPs, or time measured on this machine"""
    seconds: float | None = None
    """length of the audio that FLOPs and time are of; without it a window of the family"""
    threads: int | None = None
    """that time is on; without it as many as training has"""
    gates: tuple[Kind, ...] = KINDS
    stacks: tuple[Literal["encoder", "decoder"], ...] = ("encoder", "decoder")
    open_share: float = 0.9
    """how likely a neuron or channel is to be heard at first; modules and heads are open"""
    start: Literal["open", "taylor"] = "open"
    """where the gates of units begin: so likely, all of them, or about the target already, those whose loss would do
    least harm for their cost almost closed"""
    clips: int = 64
    """training clips, the first ones, over which that harm is taken"""
    gate_rate: float = 0.02
    """learning rate of gates and multipliers, which stays (CoFi): where it fell with the model's, the multipliers would
    stop before the target is met. A gate that is open has to go 6 to be closed, and goes about this far in a step: few
    steps need a higher rate"""
    target_warmup: float = 0.1
    """share of the steps over which the target falls to `target`"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("target", "open_share"):
            if not 0 < getattr(self, name) < 1:
                raise SottoError(f"{name} must be between 0 and 1, found {getattr(self, name)}")
        check_constraint(self.constraint, self.seconds, self.threads)
        if self.gate_rate <= 0:
            raise SottoError(f"gate_rate must be positive, found {self.gate_rate}")
        if not 0 <= self.target_warmup <= 1:
            raise SottoError(f"target_warmup must be between 0 and 1, found {self.target_warmup}")
        if self.training.keep != "last":
            raise SottoError(
                "l0_pruning ends with the last weights, those that the gates are meant for; set keep: last"
            )
        if self.start == "open" and self.clips != L0Pruning.clips:
            raise SottoError("gates that start open hear no clips before training; leave out clips")
        reads_open_share = self.start == "open" and not {"neurons", "channels"}.isdisjoint(self.gates)
        if not reads_open_share and self.open_share != L0Pruning.open_share:
            raise SottoError("open_share is for gates of neurons and channels, with start: open; leave it out")
        if self.clips < 1:
            raise SottoError(f"clips must be at least 1, found {self.clips}")
        if self.start == "taylor" and self.gates == ("modules",):
            raise SottoError(
                "importance is that of units; with start: taylor, gates must name heads, neurons or channels"
            )
        if not self.gates or not self.stacks:
            raise SottoError("gates and stacks must name at least one each")


class L0Objective(Objective):
    """The Lagrangian of a bound on the expected cost: a (s - t) + b (s - t)^2, with a and b ascending (CoFi, eq. 4).

    s is the share of the cost that is expected to be left, t the target at this step.
    """

    name = "l0"
    steps: torch.Tensor

    def __init__(self, gates: Gates, costs: GateCosts, config: L0Pruning) -> None:
        super().__init__()
        self.gates = gates
        self.multipliers = nn.Parameter(torch.zeros(2))
        self.costs = costs
        self.config = config
        self.first = max(float(self.share().detach()), config.target)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[None]:
        with self.gates.attached(model):
            yield

    def forward(self, model: nn.Module, batch: Batch, outputs: Any, tokens: torch.Tensor) -> torch.Tensor:
        excess = self.share() - self.target()
        share = (batch["labels"] != IGNORED).sum() / tokens
        return share * (self.multipliers[0] * excess + self.multipliers[1] * excess**2)

    def share(self) -> torch.Tensor:
        """What is expected to be left of the cost."""
        return self.costs.share(self.gates.expected())

    def target(self) -> float:
        """It falls evenly from what the gates leave at first, while it warms up."""
        warmup = self.config.target_warmup * self.config.training.steps
        done = 1.0 if warmup == 0 else min(1.0, int(self.steps) / warmup)
        return self.first + (self.config.target - self.first) * done

    def parameter_groups(self) -> list[ParameterGroup]:
        rate = self.config.gate_rate
        return [
            ParameterGroup(list(self.gates.parameters()), rate),
            ParameterGroup([self.multipliers], rate, maximize=True),
        ]

    def after_step(self, model: nn.Module, step: int, learning_rate: float) -> None:
        self.gates.clamp()
        self.steps.fill_(step)

    @torch.no_grad()
    def logged(self, model: nn.Module) -> dict[str, float]:
        a, b = self.multipliers.tolist()
        return {"l0_share": self.share().item(), "l0_target": self.target(), "l0_linear": a, "l0_square": b}


def kept_costs(recognizer: Recognizer, gated: Sequence[GatedModule], config: L0Pruning, path: Path) -> GateCosts:
    """The costs that the main process finds, the same for all processes and after an interruption: times vary."""
    found = found_once(
        path, lambda: to_plain(gate_costs(recognizer, gated, config.constraint, config.seconds, config.threads))
    )
    return parse(GateCosts, found, path.name)


def kept_worths(
    recognizer: Recognizer, gated: Sequence[GatedModule], costs: GateCosts, config: L0Pruning, context: StepContext
) -> list[torch.Tensor]:
    """What units are worth by their Taylor importance, the same for all processes and after an interruption."""
    language, _ = heard(context)
    sources = transcribed_sources(config, context, context.folder)

    def find() -> list[list[float]]:
        clips = first_clips(recognizer, sources, config.clips, config.transcripts, context.seed)
        changes = mean_changes(recognizer, gated, clips, language)
        return [own.tolist() for own in worth(gated, changes, costs)]

    found = found_once(context.folder / "importance.json", find)
    return [torch.tensor(own, dtype=torch.float64) for own in found]


@methods.register("l0_pruning", L0Pruning)
def apply_l0_pruning(recognizer: Recognizer, config: L0Pruning, context: StepContext) -> list[str]:
    """Prune `recognizer` in place. Raises SottoError where the target is below what has no gates."""
    stacks = [stack.name for stack in stacks_named(recognizer, config.stacks)]
    gated = list(gated_modules(recognizer.model, stacks, config.gates))
    if not gated:
        raise SottoError("l0_pruning: nothing that is left of the model has such a gate")
    before = recognizer.copy() if config.constraint == "latency" else None
    costs = kept_costs(recognizer, gated, config, context.folder / "costs.json")
    gates = Gates(gated, HardConcrete(), config.open_share, "modules" in config.gates)
    least = least_share(gates, costs)
    if least >= config.target:
        raise SottoError(
            f"l0_pruning: what has no gates is {least:.0%} of the model's {config.constraint}; "
            f"a target of {config.target:g} cannot be reached"
        )
    if config.start == "taylor":
        start_in_order(gates, costs, kept_worths(recognizer, gated, costs, config, context), config.target)
    gates.to(recognizer.model.device)
    objective = L0Objective(gates, costs, config)
    wer = fine_tune(recognizer, config, context, context.folder, [objective])
    with torch.no_grad():
        learnt = objective.share().item()
    decisions = decide(gates, costs, config.target)
    carry_out(recognizer.model, gated, decisions)
    renew_statistics(recognizer, context.train, config.training.batch_size)  # training has those of gates that vary
    absent = [
        f"{each.stack.name} {each.layer} {each.module.name}"
        for each, decision in zip(gated, decisions, strict=True)
        if not decision.kept
    ]
    return [
        f"gates trained for {config.training.steps} steps; validation WER with them {wer:.2%}",
        *left_notes(recognizer, before, share_of(decisions, costs), costs, config.constraint, config.target),
        f"the gates learnt to leave {learnt:.1%}",
        f"modules taken out: {', '.join(absent) or 'none'}",
    ]
