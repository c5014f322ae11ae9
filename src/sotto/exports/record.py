"""What an exported folder says of itself: of what it was made, and how it was compared with that."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sotto.checkpoint import EXPORT_RECORD
from sotto.configuration import parse, to_plain
from sotto.errors import SottoError
from sotto.exports.targets import target_named
from sotto.exports.verification import Agreement
from sotto.metrics.cost import Parameters

VERSION = 1


@dataclass(frozen=True)
class ExportRecord:
    """`structure` is the record of the model, `parameters` and FLOPs its numbers: a graph does not tell them."""

    target: str
    precision: str
    structure: dict[str, Any]
    parameters: Parameters
    encoder_flops: int
    decoder_flops: int
    decoder_tokens: int
    window_seconds: float
    agreement: Agreement
    sotto: str
    """the version that wrote it"""
    before_rounding: Agreement | None = None
    """of the same export in float32, where this one is rounded"""
    notes: tuple[str, ...] = ()
    """what a user should know of it, a line each"""
    version: int = VERSION

    def __post_init__(self) -> None:
        """Raises SottoError for a target that is not known, not in that precision, or not installed."""
        target_named(self.target, self.precision)


def write_record(record: ExportRecord, folder: Path) -> None:
    (folder / EXPORT_RECORD).write_text(json.dumps(to_plain(record), indent=1) + "\n", encoding="utf-8")


def read_record(folder: Path) -> ExportRecord:
    """Raises SottoError where it is damaged, or of a version or target that this Sotto does not know."""
    path = folder / EXPORT_RECORD
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SottoError(f"{path}: cannot be read ({error}); export the model again") from error
    version = values.get("version") if isinstance(values, dict) else None
    if version != VERSION:
        raise SottoError(f"{path} is of version {version} and this Sotto reads {VERSION}; export the model again")
    return parse(ExportRecord, values, str(path))
