"""Exports to other runtimes: written, opened again, compared with the model on clips, and only then handed over."""

from sotto.exports.exporting import CALIBRATION_CLIPS, clips_needed, clips_of, export, export_on, is_export, open_export
from sotto.exports.record import ExportRecord
from sotto.exports.targets import TARGETS, Export, parse_export
from sotto.exports.telemetry import refuse_telemetry
from sotto.exports.verification import Agreement

__all__ = [
    "CALIBRATION_CLIPS",
    "TARGETS",
    "Agreement",
    "Export",
    "ExportRecord",
    "clips_needed",
    "clips_of",
    "export",
    "export_on",
    "is_export",
    "open_export",
    "parse_export",
]

refuse_telemetry()
