"""Segments as SubRip, WebVTT and JSON."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Any, NamedTuple

from sotto.decoding import Segment, Transcription

SHORTEST_MILLISECONDS = 20  # one step of Whisper's timestamps; players drop a cue that ends where it starts


class Cue(NamedTuple):
    """One line of text; times in milliseconds."""

    start: int
    end: int
    text: str


def to_srt(segments: Iterable[Segment]) -> str:
    """A SubRip file. The format has no escapes, so an arrow in the text becomes a single character."""
    blocks = [
        f"{number}\n{clock(cue.start, ',')} --> {clock(cue.end, ',')}\n{cue.text.replace('-->', '→')}\n"
        for number, cue in enumerate(cues(segments), start=1)
    ]
    return "\n".join(blocks)


def to_vtt(segments: Iterable[Segment]) -> str:
    """A WebVTT file (https://www.w3.org/TR/webvtt1/), the text escaped, which takes care of arrows too."""
    blocks = [
        f"{clock(cue.start, '.')} --> {clock(cue.end, '.')}\n{html.escape(cue.text, quote=False)}\n"
        for cue in cues(segments)
    ]
    return "\n".join(["WEBVTT\n", *blocks])


def to_json(transcription: Transcription) -> dict[str, Any]:
    """A mapping for `json.dumps`; times in seconds, to the millisecond."""
    return {
        "name": transcription.name,
        "text": transcription.text,
        "seconds": round(transcription.seconds, 3),
        "segments": [
            {"start": round(segment.start, 3), "end": round(segment.end, 3), "text": segment.text}
            for segment in transcription.segments
        ],
    }


def cues(segments: Iterable[Segment]) -> list[Cue]:
    """Ordered by start, each ending after it starts; text on one line (an empty one would end the cue), none empty."""
    found = []
    for segment in segments:
        text = " ".join(segment.text.split())
        start = max(0, round(segment.start * 1000))
        if text:
            found.append(Cue(start, max(round(segment.end * 1000), start + SHORTEST_MILLISECONDS), text))
    return sorted(found, key=lambda cue: cue.start)


def clock(milliseconds: int, mark: str) -> str:
    """Hours, minutes, seconds and, after `mark`, milliseconds: 3723004 is 01:02:03,004."""
    seconds, rest = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d}{mark}{rest:03d}"
