"""Audio folders and hub datasets -> clips."""

from sotto.data.audio import decode, windows
from sotto.data.clips import BadClip, Clip, ClipReference, DataConfig, SkippedClip
from sotto.data.disjoint import check_disjoint
from sotto.data.fingerprint import fingerprint
from sotto.data.sources import ClipSource, open_data

__all__ = [
    "BadClip",
    "Clip",
    "ClipReference",
    "ClipSource",
    "DataConfig",
    "SkippedClip",
    "check_disjoint",
    "decode",
    "fingerprint",
    "open_data",
    "windows",
]
