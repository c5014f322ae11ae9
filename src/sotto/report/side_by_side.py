"""The table of `sotto benchmark`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from sotto.report.formats import count, flops, latency, size
from sotto.side_by_side import SideBySide, latency_of


def side_by_side_table(rows: Sequence[SideBySide]) -> Table:
    """A row a model. Speed-ups are against the first; the share says how much of the FLOP saving became time."""
    timing = latency_of(rows[0].numbers)
    caption = (
        f"medians; {timing.device}, {timing.dtype}, {timing.threads} threads, batch {timing.batch}, "
        f"{timing.audio_seconds:.1f} s of audio, {timing.tokens} tokens; FLOP ratio includes attention products"
    )
    table = Table(caption=caption, caption_justify="left")
    table.add_column("model", overflow="fold")
    headings = (
        "parameters",
        "FLOPs",
        "features",
        "encoder",
        "decoder",
        "RTFx",
        "memory",
        "encoder x",
        "FLOP x",
        "total x",
    )
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in rows:
        each = latency_of(row.numbers)
        table.add_row(
            Path(row.numbers.name).name,
            count(row.numbers.parameters.encoder),
            flops(row.numbers.encoder_flops),
            *(latency(seconds) for seconds in (each.features, each.encoder, each.decoder)),
            f"{each.real_time_factor:.1f}",
            size(row.numbers.peak_memory or 0),
            f"{row.encoder_speedup:.2f}",
            f"{row.flops_ratio:.2f}",
            f"{row.total_speedup:.2f}",
        )
    return table
