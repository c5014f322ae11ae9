"""Per-head reduction: heads keep the channels that hold most of their scores and outputs, and lose the others. Ours."""

from __future__ import annotations

from sotto.architectures import Stack
from sotto.checkpoint import Recognizer
from sotto.errors import SottoError
from sotto.methods.head_dimensions import choose_head_dims
from sotto.methods.head_narrowing import attentions_of, measured_bases, narrow
from sotto.methods.head_reduction_config import HeadReduction
from sotto.methods.method import StepContext, methods
from sotto.surgery import head_dim_of


@methods.register("head_reduction", HeadReduction)
def apply_head_reduction(recognizer: Recognizer, config: HeadReduction, context: StepContext) -> list[str]:
    """Narrow the heads of `recognizer` in place.

    Raises SottoError without calibration clips, where heads cannot be narrower, and where a budget cannot be met.
    """
    if context.calibration is None:
        raise SottoError("head_reduction needs calibration clips; give data.calibration (no transcripts needed)")
    places = attentions_of(recognizer, config.stacks)
    bases = measured_bases(recognizer, places, context.calibration, config.stacks)
    dimensions, reasons = choose_head_dims(recognizer, config, bases, context.calibration)
    narrow(recognizer, dimensions, bases)
    stacks = [stack for stack in recognizer.architecture.stacks if stack.name in config.stacks]
    return [*(note(recognizer, stack) for stack in stacks), *reasons]


def note(recognizer: Recognizer, stack: Stack) -> str:
    """How many channels the heads of a stack's attentions have, layer by layer."""
    places = attentions_of(recognizer, (stack.name,))
    channels = [str(head_dim_of(recognizer.model, *place)) for place in places]
    before = stack.dimensions(recognizer.model.config).head_dim
    return f"{stack.name}: heads with {', '.join(channels)} of {before} channels"
