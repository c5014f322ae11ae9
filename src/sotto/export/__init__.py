"""Exports to other runtimes: written, opened again, compared with the model on clips, and only then handed over."""

from sotto.export.exporting import CLIPS, clips_of, export, export_on, is_export, open_export
from sotto.export.record import ExportRecord
from sotto.export.targets import TARGETS, Export, parse_export
from sotto.export.verification import Agreement

__all__ = [
    "CLIPS",
    "TARGETS",
    "Agreement",
    "Export",
    "ExportRecord",
    "clips_of",
    "export",
    "export_on",
    "is_export",
    "open_export",
    "parse_export",
]
