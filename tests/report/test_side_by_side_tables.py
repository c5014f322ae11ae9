"""The tables of `sotto benchmark`, on an 80-column terminal."""

from dataclasses import replace

from made_up_run import base_model, latency
from rich.console import Console

from sotto.report.side_by_side import side_by_side_tables
from sotto.side_by_side import SideBySide


def shown(pipeline_seconds: float | None = None) -> list[str]:
    base = replace(base_model(), name="/tmp/models/whisper-tiny-fine-tuned")
    small = replace(base, name="/tmp/models/tiny-lite", encoder_flops=18_450_000_000, latency=latency(1.6))
    small = replace(small, pipeline_seconds=pipeline_seconds)
    rows = [SideBySide(base, 1.0, 1.0, 1.0), SideBySide(small, 1.6, 2.0, 1.25)]
    console = Console(width=80, record=True, no_color=True)
    console.print(*side_by_side_tables(rows))
    return console.export_text().splitlines()


def test_the_tables_fit_a_terminal_without_a_cut_heading_or_number() -> None:
    lines = shown()
    assert max(map(len, lines)) <= 80
    taken, compared = (line for line in lines if "tiny-lite" in line)
    assert taken.split("│")[2:-1] == ["   4.9 ms ", "  194 ms ", "  187 ms ", " 77.8 ", " 912 MB "]
    assert compared.split("│")[2:-1] == ["       7.6M ", " 18.4 GFLOPs ", "    2.00x ", "   1.60x ", "  1.25x "]
    headings = " ".join(lines)
    for heading in ("features", "decoder", "RTFx", "memory", "parameters", "promised", "in all"):
        assert heading in headings
    assert "…" not in headings
    assert "against whisper-tiny-fine-tuned: promised by FLOPs, and measured" in " ".join(headings.split())


def test_what_a_runtimes_own_pipeline_takes_stands_below() -> None:
    (row,) = (line for line in shown(pipeline_seconds=0.5) if "in its own pipeline" in line)
    assert row.split("│")[5].strip() == f"{latency(1.6).audio_seconds / 0.5:.1f}"
    assert not any("pipeline" in line for line in shown())
