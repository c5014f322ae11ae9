"""Exports to other runtimes: written, opened again, compared with the model on clips, and only then handed over."""

from sotto.export.exporting import export, is_export, open_export
from sotto.export.record import ExportRecord
from sotto.export.targets import TARGETS
from sotto.export.verification import Agreement

__all__ = ["TARGETS", "Agreement", "ExportRecord", "export", "is_export", "open_export"]
