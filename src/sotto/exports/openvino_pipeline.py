"""Whisper through openvino-genai's own pipeline."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from openvino_genai import WhisperPipeline

from sotto.data import Clip
from sotto.decoding import Segment, Transcription
from sotto.exports.signal_stack import signal_stack_kept
from sotto.exports.targets import damaged
from sotto.families.family import Family
from sotto.families.whisper_transcription import check_timestamps, is_multilingual


class GenaiPipeline:
    """Clips one by one, greedily; long audio in windows by openvino-genai's own rules, which are Whisper's."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        """Raises SottoError where what it needs beside the graphs is damaged."""
        try:
            with signal_stack_kept():
                self.pipeline = WhisperPipeline(folder, "CPU", **settings)
        except RuntimeError as error:
            raise damaged(folder, error) from error

    def transcribe(
        self, family: Family, clips: Iterable[Clip], settings: dict[str, Any], timed: bool
    ) -> Iterator[Transcription]:
        """`settings` are those of `generation_settings`."""
        own = {name: value for name, value in settings.items() if name not in ("num_beams", "use_cache")}
        return (self.transcription(family, clip, own, timed) for clip in clips)

    def write(self, family: Family, audio: NDArray[np.float32], tokens: int) -> int:
        """All that is done for one window, with `tokens` tokens written, whatever is said; gives their number."""
        generation = family.model.generation_config
        settings: dict[str, Any] = {"max_new_tokens": tokens, "suppress_tokens": [generation.eos_token_id]}
        languages = getattr(generation, "lang_to_id", None)
        if languages and is_multilingual(generation):  # any: detecting it would take a second pass
            settings |= {"language": next(iter(languages)), "task": "transcribe"}
        return int(self.pipeline.generate(padded(family, audio), **settings).perf_metrics.get_num_generated_tokens())

    def transcription(self, family: Family, clip: Clip, settings: dict[str, Any], timed: bool) -> Transcription:
        if timed:
            check_timestamps(family.model, clip)
        found = self.pipeline.generate(padded(family, clip.audio), return_timestamps=timed, **settings)
        chunks = [(chunk.start_ts, chunk.end_ts, chunk.text.strip()) for chunk in found.chunks or ()]
        segments = segments_of(chunks, family.window_seconds, clip.seconds)
        return Transcription(clip.name, found.texts[0].strip(), clip.seconds, tuple(segments))


def padded(family: Family, audio: NDArray[np.float32]) -> NDArray[np.float32]:
    """As long as openvino-genai takes it, which refuses half of `n_fft` samples; it pads to the window."""
    return np.pad(audio, (0, max(0, family.processor.feature_extractor.n_fft - audio.size)))


def segments_of(chunks: Iterable[tuple[float, float, str]], window: float, seconds: float) -> Iterator[Segment]:
    """Chunks (start, end, text) in seconds; one that was never closed, whose end is -1, lasts until its window ends.

    A window of which nothing was closed is one chunk, and begins where the chunk before it ended.
    """
    before = 0.0
    for start, given, text in chunks:
        end = before + window if given < 0 else given
        if text and before < seconds:
            yield Segment(min(round(start, 2), seconds), min(round(end, 2), seconds), text)
        before = end
