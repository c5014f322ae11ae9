"""Whisper transcribes a stream of clips: batches of short ones, transformers' long-form decoding for the rest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from operator import itemgetter
from typing import Any

import torch
from transformers import LogitsProcessor
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE
from transformers.utils import logging as transformers_logging

from sotto.data import Clip
from sotto.decoding import Decoding, Segment, Transcription
from sotto.errors import SottoError
from sotto.families.family import Family, batches, evaluating
from sotto.families.fitted_windows import fitted_seconds, is_fitted

TIME_STEP = 0.02  # seconds; one encoder position, and the grid of Whisper's timestamps, whatever the window
LOOK_AHEAD = 8  # batches
LONGEST_PROMPT = 4  # start of transcript, language, task, no timestamps


def transcribe(family: Family, clips: Iterable[Clip], decoding: Decoding) -> Iterator[Transcription]:
    """Clips that fit the window go in batches; a longer one goes alone, window after window.

    Each window begins where the last whole segment ended (Radford et al. 2022, section 3.8, without its temperature
    fallback). Where the model has a runtime's own pipeline, which takes clips one by one and searches greedily, clips
    that go alone, and timestamps, are that one's.

    Where windows are fitted to the clips, clips of about a length are heard together, whatever their order; those that
    need timestamps are heard in whole windows.

    Raises SottoError at once where the checkpoint knows no such language or task, and while it runs for a clip that
    needs timestamps of a checkpoint that has none.
    """
    settings = generation_settings(family.model, decoding)
    if is_fitted(family.processor.feature_extractor) and not decoding.timestamps:
        return by_length(family, clips, decoding, settings)
    return stream(family, clips, decoding, settings)


def by_length(
    family: Family, clips: Iterable[Clip], decoding: Decoding, settings: dict[str, Any]
) -> Iterator[Transcription]:
    """In the order of the clips; each `LOOK_AHEAD` batches of them are heard from the shortest to the longest."""
    for ahead in batches(clips, family.window_seconds, LOOK_AHEAD * decoding.batch_size):
        order = sorted(range(len(ahead)), key=lambda number: ahead[number].seconds)
        found = stream(family, (ahead[number] for number in order), decoding, settings)
        yield from (transcription for _, transcription in sorted(zip(order, found, strict=True), key=itemgetter(0)))


def stream(
    family: Family, clips: Iterable[Clip], decoding: Decoding, settings: dict[str, Any]
) -> Iterator[Transcription]:
    fitted = is_fitted(family.processor.feature_extractor)
    for batch in batches(clips, family.window_seconds, decoding.batch_size):
        timed = decoding.timestamps or batch[0].seconds > family.window_seconds
        if has_pipeline(family.model, decoding) and (timed or (len(batch) == 1 and not fitted)):
            yield from family.model.pipeline.transcribe(family, batch, settings, timed)
        else:
            with family.window(None if timed else window_for(family, batch)):
                found = transcribe_batch(family, batch, settings, timed)
            yield from found


def window_for(family: Family, batch: list[Clip]) -> int | None:
    """Seconds of the window for a batch of short clips; None for the model's own."""
    seconds = fitted_seconds(family.processor.feature_extractor, max(clip.seconds for clip in batch))
    return None if seconds == family.window_seconds else seconds


def has_pipeline(model: Any, decoding: Decoding) -> bool:
    """Whether a runtime's own pipeline can decode so; making it, which takes time and memory, is left for its use."""
    return hasattr(type(model), "pipeline") and decoding.beams == 1


def transcribe_batch(family: Family, batch: list[Clip], settings: dict[str, Any], timed: bool) -> list[Transcription]:
    model = family.model
    begin = timestamp_begin(model)
    if timed:
        check_timestamps(model, batch[0])
    inputs = features(family, batch)
    forbidden = [] if timed or begin is None else [NoTimestamps(begin)]
    with evaluating(model), quiet_transformers():
        found = model.generate(
            **inputs,
            **settings,
            logits_processor=forbidden,
            return_timestamps=timed,
            return_segments=True,
        )
    return [transcription(family, clip, raw, timed) for clip, raw in zip(batch, found["segments"], strict=True)]


def check_timestamps(model: Any, clip: Clip) -> None:
    """Raises SottoError where the checkpoint has none."""
    if timestamp_begin(model) is None:
        raise SottoError(
            f"{clip.name}: needs timestamps, and the checkpoint's generation config names no "
            "no_timestamps_token_id; take over generation_config.json of the checkpoint that it was tuned from"
        )


def features(family: Family, batch: list[Clip]) -> dict[str, torch.Tensor]:
    """`input_features` (batch, mel bins, frames), padded to the window or, for a longer clip, all of it."""
    long = batch[0].seconds > family.window_seconds
    inputs = family.processor.feature_extractor(
        [clip.audio for clip in batch],
        sampling_rate=family.sampling_rate,
        truncation=not long,
        padding="longest" if long else "max_length",
        return_attention_mask=True,
        return_tensors="pt",
    )
    model = family.model
    return {
        "input_features": inputs.input_features.to(model.device, model.dtype),
        "attention_mask": inputs.attention_mask.to(model.device),
    }


def transcription(family: Family, clip: Clip, raw: list[dict[str, Any]], timed: bool) -> Transcription:
    """Decode the segments of one clip, leaving out those that a pass over nothing but padding made up."""
    begin = timestamp_begin(family.model)
    kept: list[Segment] = []
    for segment in raw:
        tokens = segment["tokens"].tolist()
        marks = [(token - begin) * TIME_STEP for token in tokens if begin is not None and token >= begin]
        offset, start, end = segment_times(float(segment["start"]), float(segment["end"]), marks, family.window_seconds)
        if offset >= clip.seconds:
            continue
        start, end = min(start, clip.seconds), min(end, clip.seconds)
        kept.append(Segment(start, end, family.processor.decode(tokens, skip_special_tokens=True)))
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


def is_multilingual(generation: Any) -> bool:
    """Whether a generation config is of a model that is told the language."""
    return bool(getattr(generation, "is_multilingual", True))


def language_and_task(generation: Any, decoding: Decoding) -> dict[str, str]:
    """The prompt in transformers' words; empty for a checkpoint that takes none."""
    tokens = getattr(generation, "lang_to_id", None) or {}
    english_only = not is_multilingual(generation)
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
