"""The report of a run: one self-contained HTML page, the same as JSON, and tables for the terminal."""

from sotto.report.html import write_report
from sotto.report.numbers import LayerNumbers, ModelNumbers, RunNumbers

__all__ = ["LayerNumbers", "ModelNumbers", "RunNumbers", "write_report"]
