"""The settings of low rank: how far, and how the ranks are chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from sotto.errors import SottoError
from sotto.exports.runtimes import RUNTIMES, RuntimeName, check_runtime

PRESETS = {"quality": (0.999, 0.999), "balanced": (0.99, 0.999), "efficiency": (0.99, 0.995)}
BUDGETS = ("parameters", "flops", "time")


@dataclass(frozen=True)
class LowRank:
    """How far to factor: to energy thresholds (`preset`, or `attention` and `mlp`) or a budget.

    A budget (`parameters`, `flops`, `time`) is the share of the encoder's parameters, of its FLOPs, or of the time that
    it takes on this machine, that is to be left.
    """

    preset: Literal["quality", "balanced", "efficiency"] | None = None
    attention: float | None = None
    mlp: float | None = None
    parameters: float | None = None
    flops: float | None = None
    time: float | None = None
    runtime: RuntimeName | None = None
    """where time is measured; torch where left out"""
    weighting: Literal["best", "relative", "sensitivity"] = "best"
    """how a budget weighs the layers' errors against each other; `best` tries both. See docs/low_rank.md"""
    basis: Literal["activations", "weights"] = "activations"
    """what the factors are to preserve; `weights` is the naive baseline, blind to the audio"""
    sequential: bool = False
    """fit layer by layer to the original's outputs, from inputs that the compressed layers before it give"""
    stacks: tuple[Literal["encoder", "decoder"], ...] = ("encoder",)
    rank_multiple: int | None = None
    """of what ranks are multiples; not given, 16, or what `runtime` rounds up to for nothing"""
    outlier_share: float | None = 0.9
    """None leaves massive directions in the energy, as the paper does"""
    reduced_attention: bool = True
    ridge: float = 1e-3
    """how strongly a sequential fit is held near the original weights"""

    needs: ClassVar[tuple[str, ...]] = ("calibration",)

    def __post_init__(self) -> None:
        check_choice("preset", self.preset, (None, *PRESETS))
        check_choice("weighting", self.weighting, ("best", "relative", "sensitivity"))
        check_choice("basis", self.basis, ("activations", "weights"))
        thresholds = self.preset is not None or self.attention is not None or self.mlp is not None
        if thresholds + sum(getattr(self, name) is not None for name in BUDGETS) > 1:
            raise SottoError("low_rank takes thresholds (preset, or attention and mlp) or one budget, not both")
        if self.preset is not None and (self.attention is not None or self.mlp is not None):
            raise SottoError("low_rank takes a preset or thresholds of its own, not both")
        for name in ("attention", "mlp", *BUDGETS, "outlier_share"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise SottoError(f"{name} must be between 0 and 1, found {value}")
        if self.rank_multiple is not None and self.rank_multiple < 1:
            raise SottoError(f"rank_multiple must be at least 1, found {self.rank_multiple}")
        if self.budget is not None and self.stacks != ("encoder",):
            raise SottoError("a budget is for the encoder; use thresholds where the decoder is to be factored")
        check_runtime(self.runtime, self.time)
        if not self.stacks:
            raise SottoError("stacks must name encoder, decoder or both")
        if self.ridge < 0:
            raise SottoError(f"ridge must not be negative, found {self.ridge}")
        if self.sequential and self.basis == "weights":
            raise SottoError("sequential fits to activations; leave out one of sequential and basis: weights")

    @property
    def budget(self) -> float | None:
        """The share that is to be left, or None where there are thresholds."""
        return next((value for value in (self.parameters, self.flops, self.time) if value is not None), None)

    @property
    def multiple(self) -> int:
        """Of what ranks are multiples."""
        return self.rank_multiple or RUNTIMES[self.runtime or "torch"].rank_multiple

    @property
    def thresholds(self) -> tuple[float, float] | None:
        """(attention, mlp), or None where there is a budget. Without either: the paper's default, `balanced`."""
        if self.budget is not None:
            return None
        default = PRESETS[self.preset or "balanced"]
        return self.attention or default[0], self.mlp or default[1]


def check_choice(name: str, value: object, known: tuple[object, ...]) -> None:
    if value not in known:
        raise SottoError(f"{name} {value!r} is not one of {', '.join(str(choice) for choice in known)}")
