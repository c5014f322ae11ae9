"""The settings of head reduction: how far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from sotto.errors import SottoError
from sotto.exports.runtimes import RuntimeName, check_runtime

AIMS = ("head_dim", "threshold", "parameters", "flops", "time")


@dataclass(frozen=True)
class HeadReduction:
    """Narrows the heads to one dimension (`head_dim`), to an energy threshold, or to a budget.

    A budget (`parameters`, `flops`, `time`) is the share of the encoder's parameters, of its FLOPs, or of the time that
    it takes on this machine, that is to be left.
    """

    head_dim: int | None = None
    """channels of every head"""
    threshold: float | None = None
    """the share of the scores' energy, and of the outputs', that the heads of an attention must keep"""
    parameters: float | None = None
    flops: float | None = None
    time: float | None = None
    runtime: RuntimeName | None = None
    """where time is measured; torch where left out"""
    multiple: int = 8
    """head dimensions that a threshold or a budget leads to are multiples of it"""
    stacks: tuple[Literal["encoder", "decoder"], ...] = ("encoder",)

    needs: ClassVar[tuple[str, ...]] = ("calibration",)

    def __post_init__(self) -> None:
        if sum(getattr(self, name) is not None for name in AIMS) != 1:
            raise SottoError(f"head_reduction takes one of {', '.join(AIMS)}")
        for name in AIMS[1:]:
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise SottoError(f"{name} must be between 0 and 1, found {value}")
        for name in ("head_dim", "multiple"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SottoError(f"{name} must be at least 1, found {value}")
        check_runtime(self.runtime, self.time)
        if self.budget is not None and self.stacks != ("encoder",):
            raise SottoError("a budget is for the encoder; use head_dim or threshold for the decoder's heads")
        if not self.stacks:
            raise SottoError("stacks must name encoder, decoder or both")

    @property
    def budget(self) -> float | None:
        """The share of parameters, FLOPs or time that is to be left, or None where there is another aim."""
        return next((value for value in (self.parameters, self.flops, self.time) if value is not None), None)
