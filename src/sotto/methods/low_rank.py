"""Low rank, after LiteASR (Kamahori et al., 2025, arXiv:2502.20583): linears as two factors."""

from __future__ import annotations

from sotto.calibration import calibrate, places
from sotto.checkpoint import Recognizer
from sotto.errors import SottoError
from sotto.methods.factoring import expand_attentions, factor_at_once, factor_sequentially, reduce_where_cheaper
from sotto.methods.low_rank_config import LowRank
from sotto.methods.method import StepContext, methods
from sotto.methods.ranks import choose_ranks
from sotto.surgery import restore_inputs


@methods.register("low_rank", LowRank)
def apply_low_rank(recognizer: Recognizer, config: LowRank, context: StepContext) -> list[str]:
    """Factor the linears of `recognizer` in place. Raises SottoError without calibration clips."""
    if context.calibration is None:
        raise SottoError("low_rank needs calibration clips; give data.calibration (no transcripts needed)")
    expand_attentions(recognizer, config.stacks)
    for stack, index, name in places(recognizer, config.stacks):
        restore_inputs(recognizer.model, stack, index, name)  # linears of one input share what is measured of it
    principals = calibrate(recognizer, context.calibration, config.stacks).principals()
    ranks, reasons = choose_ranks(recognizer, config, principals, context.calibration)
    if config.sequential:
        factor_sequentially(recognizer, config, ranks, context.calibration)
    else:
        factor_at_once(recognizer, config, ranks, principals)
    timed = config.time is not None  # of whole attentions, and what costs fewer FLOPs may take more time
    reduced = reduce_where_cheaper(recognizer, config) if config.reduced_attention and not timed else 0
    reducible = any(attention.reducible for stack in recognizer.architecture.stacks for attention in stack.attentions)
    whole = len(principals) - len(ranks)
    return [
        f"{len(ranks)} linears factored, {whole} left whole",
        *([f"attention of {reduced} layers computed in the reduced dimension"] if reducible else []),
        *reasons,
    ]
