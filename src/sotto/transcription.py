"""A recogniser transcribes a stream of clips: batches of short ones, transformers' long-form decoding for the rest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from transformers import LogitsProcessor
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE
from transformers.utils import logging as transformers_logging

from sotto.checkpoint import Recognizer
from sotto.data import Clip
from sotto.errors import SottoError

Task = Literal["transcribe", "translate"]

TIME_STEP = 0.02  # seconds; the grid of Whisper's timestamps, whatever the window
LONGEST_PROMPT = 4  # start of transcript, language, task, no timestamps


@dataclass(frozen=True)
class Decoding:
    """How a recogniser writes down what it hears.

    language: a code ("en") or a name ("english"); None takes the checkpoint's only one, or detects it clip by clip.
    beams: 1 is greedy. timestamps: segments for short clips too; clips longer than the window always have them.
    maximum_tokens: most tokens a window; None for as many as the decoder holds.

    Raises SottoError where a value is of the wrong type or out of range.
    """

    language: str | None = None
    task: Task = "transcribe"
    beams: int = 1
    timestamps: bool = False
    batch_size: int = 8
    maximum_tokens: int | None = None

    def __post_init__(self) -> None:
        named = self.language is None or (isinstance(self.language, str) and bool(self.language.strip()))
        require(named, "language", self.language, "a language, or left out")
        require(self.task in get_args(Task), "task", self.task, f"one of {', '.join(get_args(Task))}")
        for key in ("beams", "batch_size"):
            require(is_count(getattr(self, key)), key, getattr(self, key), "a whole number above 0")
        require(isinstance(self.timestamps, bool), "timestamps", self.timestamps, "true or false")
        tokens = self.maximum_tokens
        require(tokens is None or is_count(tokens), "maximum_tokens", tokens, "a whole number above 0, or left out")

    def describe(self) -> str:
        """The settings in one line, to stand beside a word error rate."""
        parts = [
            "greedy" if self.beams == 1 else f"{self.beams} beams",
            f"language {self.language or 'automatic'}",
            *(["translated to English"] if self.task == "translate" else []),
            "timestamps" if self.timestamps else "no timestamps",
            *([f"at most {self.maximum_tokens} tokens"] if self.maximum_tokens else []),
            f"batch {self.batch_size}",
        ]
        return ", ".join(parts)


@dataclass(frozen=True)
class Segment:
    """A piece of text, and where it is said: seconds from the start of the clip."""

    start: float
    end: float
    text: str


@dataclass(frozen=True)
class Transcription:
    """What was heard in the clip `name` of `seconds`; no segments where no timestamps were decoded."""

    name: str
    text: str
    seconds: float
    segments: tuple[Segment, ...]


def transcribe(recognizer: Recognizer, clips: Iterable[Clip], decoding: Decoding) -> Iterator[Transcription]:
    """Transcribe clips in the order given, reading no more of them ahead than make a batch.

    Clips that fit the window go in batches; a longer one goes alone, window after window, each beginning where the
    last whole segment ended (Radford et al. 2022, section 3.8, without its temperature fallback).

    Raises SottoError at once where the checkpoint knows no such language or task, and while it runs for a clip at
    another sampling rate, or one that needs timestamps of a checkpoint that has none.
    """
    settings = generation_settings(recognizer.model, decoding)
    return stream(recognizer, clips, decoding, settings)


def stream(
    recognizer: Recognizer, clips: Iterable[Clip], decoding: Decoding, settings: dict[str, Any]
) -> Iterator[Transcription]:
    for batch in batches(clips, recognizer.window_seconds, decoding.batch_size):
        timed = decoding.timestamps or batch[0].seconds > recognizer.window_seconds
        yield from transcribe_batch(recognizer, batch, settings, timed)


def batches(clips: Iterable[Clip], window_seconds: float, size: int) -> Iterator[list[Clip]]:
    """Neighbouring clips that fit the window, at most `size` together; longer ones alone."""
    batch: list[Clip] = []
    for clip in clips:
        fits = clip.seconds <= window_seconds
        if batch and not fits:
            yield batch
            batch = []
        batch.append(clip)
        if len(batch) == size or not fits:
            yield batch
            batch = []
    if batch:
        yield batch


def transcribe_batch(
    recognizer: Recognizer, batch: list[Clip], settings: dict[str, Any], timed: bool
) -> list[Transcription]:
    model = recognizer.model
    begin = timestamp_begin(model)
    if timed and begin is None:
        raise SottoError(
            f"{batch[0].name}: needs timestamps, and the checkpoint's generation config names no "
            "no_timestamps_token_id; take over generation_config.json of the checkpoint that it was tuned from"
        )
    inputs = features(recognizer, batch)
    forbidden = [] if timed or begin is None else [NoTimestamps(begin)]
    with evaluating(model), quiet_transformers():
        found = model.generate(
            **inputs,
            **settings,
            logits_processor=forbidden,
            return_timestamps=timed,
            return_segments=True,
        )
    return [transcription(recognizer, clip, raw, timed) for clip, raw in zip(batch, found["segments"], strict=True)]


def features(recognizer: Recognizer, batch: list[Clip]) -> dict[str, torch.Tensor]:
    """`input_features` (batch, mel bins, frames), padded to the window or, for a longer clip, all of it."""
    for clip in batch:
        if clip.sampling_rate != recognizer.sampling_rate:
            raise SottoError(
                f"{clip.name}: is at {clip.sampling_rate} Hz and the recogniser hears {recognizer.sampling_rate} Hz; "
                f"open the data with sampling_rate={recognizer.sampling_rate}"
            )
    long = batch[0].seconds > recognizer.window_seconds
    inputs = recognizer.processor.feature_extractor(
        [clip.audio for clip in batch],
        sampling_rate=recognizer.sampling_rate,
        truncation=not long,
        padding="longest" if long else "max_length",
        return_attention_mask=True,
        return_tensors="pt",
    )
    model = recognizer.model
    return {
        "input_features": inputs.input_features.to(model.device, model.dtype),
        "attention_mask": inputs.attention_mask.to(model.device),
    }


def transcription(recognizer: Recognizer, clip: Clip, raw: list[dict[str, Any]], timed: bool) -> Transcription:
    """Decode the segments of one clip, leaving out those that a pass over nothing but padding made up."""
    begin = timestamp_begin(recognizer.model)
    kept: list[Segment] = []
    for segment in raw:
        tokens = segment["tokens"].tolist()
        marks = [(token - begin) * TIME_STEP for token in tokens if begin is not None and token >= begin]
        offset, start, end = segment_times(
            float(segment["start"]), float(segment["end"]), marks, recognizer.window_seconds
        )
        if offset >= clip.seconds:
            continue
        start, end = min(start, clip.seconds), min(end, clip.seconds)
        kept.append(Segment(start, end, recognizer.processor.decode(tokens, skip_special_tokens=True)))
    text = "".join(segment.text for segment in kept).strip()
    segments = [Segment(segment.start, segment.end, segment.text.strip()) for segment in kept if timed]
    return Transcription(clip.name, text, clip.seconds, tuple(segment for segment in segments if segment.text))


def segment_times(start: float, end: float, marks: list[float], window_seconds: float) -> tuple[float, float, float]:
    """Where the window of a segment began, and the segment itself: three times in seconds from the clip's start.

    `start` and `end` are transformers' own, `marks` the timestamps among the segment's tokens, in seconds from the
    start of its window. transformers lets a window's only segment start with the window, and takes the start
    of a segment that was never closed for its end; here such a segment lasts until the window ends.
    """
    if len(marks) < 2:
        return start, start + sum(marks), start + window_seconds
    offset = end - marks[1]
    return offset, offset + marks[0], end


def generation_settings(model: Any, decoding: Decoding) -> dict[str, Any]:
    """What is the same for every call of `model.generate`. Raises SottoError on an unknown language or task."""
    room = model.config.max_target_positions - LONGEST_PROMPT
    return {
        **language_and_task(model.generation_config, decoding),
        "num_beams": decoding.beams,
        "max_new_tokens": min(decoding.maximum_tokens or room, room),
        "use_cache": True,  # a trainer may have switched it off in the config
    }


def language_and_task(generation: Any, decoding: Decoding) -> dict[str, str]:
    """The prompt in transformers' words; empty for a checkpoint that takes none."""
    tokens = getattr(generation, "lang_to_id", None) or {}
    english_only = not getattr(generation, "is_multilingual", True)
    codes = ["en"] if english_only else sorted(token.strip("<|>") for token in tokens)
    if decoding.language is None:
        code = codes[0] if len(codes) == 1 else None
    else:
        code = language_code(decoding.language, codes)
    if english_only or not tokens:
        if decoding.task == "translate":
            raise SottoError("the checkpoint cannot translate, it knows no languages; leave out task: translate")
        return {}
    return {"task": decoding.task} if code is None else {"task": decoding.task, "language": f"<|{code}|>"}


def language_code(language: str, codes: list[str]) -> str:
    """ "English", "en" or "<|en|>" as one of `codes`."""
    name = language.strip().lower().strip("<|>")
    code = name if name in codes else TO_LANGUAGE_CODE.get(name, name)
    if code not in codes:
        remedy = f"known: {', '.join(codes)}" if codes else "its generation config has no lang_to_id; leave it out"
        raise SottoError(f"language {language!r} is unknown to the checkpoint; {remedy}")
    return code


def timestamp_begin(model: Any) -> int | None:
    """Id of the token <|0.00|>, with which the timestamps begin; None where the checkpoint has none."""
    last = getattr(model.generation_config, "no_timestamps_token_id", None)
    return None if last is None else int(last) + 1


class NoTimestamps(LogitsProcessor):
    """Forbids the timestamp tokens, from id `begin` on.

    transformers takes two timestamps in a row for the end of a segment even where none are asked for: it would drop
    the text after them and decode the window again from there, for ever where they are <|0.00|>. A badly damaged
    model does write such pairs.
    """

    def __init__(self, begin: int) -> None:
        self.begin = begin

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        allowed = scores.clone()
        allowed[:, self.begin :] = -torch.inf
        return allowed


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Put the model in evaluation mode, and back in the mode it was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Let transformers log errors only.

    Whisper's generate passes itself arguments that it warns of: a config beside arguments, two maximum lengths.
    """
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def require(condition: bool, key: str, value: object, wanted: str) -> None:
    if not condition:
        raise SottoError(f"decoding: {key} must be {wanted}, not {value!r}")
