"""The tables of `sotto benchmark`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from sotto.report.formats import count, flops, latency, size
from sotto.side_by_side import SideBySide, latency_of


def side_by_side_tables(rows: Sequence[SideBySide]) -> tuple[Table, Table]:
    """What each model takes, and how it compares with the first: FLOPs beside the time that they became."""
    timing = latency_of(rows[0].numbers)
    taken = Table(
        caption=f"medians; {timing.device}, {timing.dtype}, {timing.threads} threads, batch {timing.batch}, "
        f"{timing.audio_seconds:.1f} s of audio, {timing.tokens} tokens; memory: peak of the process",
        caption_justify="left",
    )
    compared = Table(
        caption=f"parameters and FLOPs of the encoder, with attention products; speed-ups against "
        f"{Path(rows[0].numbers.name).name}: promised by FLOPs, and measured",
        caption_justify="left",
    )
    for table, headings in (
        (taken, ("features", "encoder", "decoder", "RTFx", "memory")),
        (compared, ("parameters", "FLOPs", "promised", "encoder", "in all")),
    ):
        table.add_column("model", overflow="fold")
        for heading in headings:
            table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        name, each = Path(row.numbers.name).name, latency_of(row.numbers)
        stages = (latency(seconds) for seconds in (each.features, each.encoder, each.decoder))
        taken.add_row(name, *stages, f"{each.real_time_factor:.1f}", size(row.numbers.peak_memory or 0))
        if (seconds := row.numbers.pipeline_seconds) is not None:
            taken.add_row("  in its own pipeline", "", "", "", f"{each.audio_seconds / seconds:.1f}", "")
        ratios = (f"{ratio:.2f}x" for ratio in (row.flops_ratio, row.encoder_speedup, row.total_speedup))
        compared.add_row(name, count(row.numbers.parameters.encoder), flops(row.numbers.encoder_flops), *ratios)
    return taken, compared
