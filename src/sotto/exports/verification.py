"""The proof of an export: the same clips through the model and through what was written of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sotto.checkpoint import Recognizer
from sotto.data import Clip
from sotto.decoding import Decoding
from sotto.errors import SottoError
from sotto.exports.targets import CALIBRATED
from sotto.families import Inputs, evaluating
from sotto.families.fitted_windows import is_fitted, whole_windows


@dataclass(frozen=True)
class Agreement:
    """How far an export is from its model."""

    clips: int
    scores: float
    """root mean square of the differences of all scores, as a share of the scores' own, given the model's transcript"""
    decisions: float
    """share of tokens, or of frames, on which the export decides otherwise"""
    transcripts: int
    """clips whose greedy transcript differs"""
    encoder: float | None = None
    """as `scores`, of what the encoder gives; None where it is no part of its own, or its runtime keeps it to itself"""
    farthest: str | None = None
    """name of the clip that tells the two apart best: another transcript, or else the largest difference of scores"""

    @property
    def words(self) -> str:
        states = "" if self.encoder is None else f"the encoder's output differs by {self.encoder:.2g} of its size, "
        return (
            f"{states}scores differ by {self.scores:.2g} of their size, decisions by {self.decisions:.2%}, "
            f"transcripts of {self.transcripts} in {self.clips} clips"
        )


@dataclass(frozen=True)
class Tolerance:
    """The most that an export may differ. Transcripts must be equal where nothing is rounded.

    What is rounded is proved without rounding too: its own bounds are too wide to tell a wrong graph from it.
    """

    scores: float
    decisions: float
    same_transcripts: bool
    encoder: float = math.inf


TOLERANCES = {
    "float32": Tolerance(1e-3, 1e-3, same_transcripts=True, encoder=1e-3),
    "float16": Tolerance(2e-2, 1e-2, same_transcripts=False, encoder=2e-2),
    "bfloat16": Tolerance(5e-2, 2e-2, same_transcripts=False, encoder=5e-2),
    "int8": Tolerance(1e-1, 1e-1, same_transcripts=False),
    CALIBRATED: Tolerance(1e-1, 1e-1, same_transcripts=False),
}


@dataclass(frozen=True)
class Heard:
    """What a recogniser makes of clips: scores (decisions, vocabulary) of each, greedy transcripts, and, where there is
    an encoder by itself, its output (1, positions, width)."""

    scores: Sequence[torch.Tensor]
    transcripts: Sequence[str]
    clips: Sequence[str]
    """names; transcripts are in their order, once or, where windows are fitted, twice"""
    states: Sequence[torch.Tensor] = ()


@torch.no_grad()
def windows(model: Recognizer, clips: Sequence[Clip]) -> list[Inputs]:
    """Each clip, cut to the window, with the transcript of a model in float32."""
    found = []
    with evaluating(model.model):
        for clip in clips:
            audio = clip.audio[: int(model.family.longest_seconds * clip.sampling_rate)]
            found.append(model.family.with_transcript(model.family.inputs([audio]), model.language))
    return found


@torch.no_grad()
def by_model(model: Recognizer, asked: Sequence[Inputs], clips: Sequence[Clip]) -> Heard:
    with evaluating(model.model):
        scores = [model.family.logits(inputs) for inputs in asked]
        return Heard(scores, written(model, clips, model.language), names_of(clips), states_of(model, asked))


@torch.no_grad()
def by_export(exported: Recognizer, asked: Sequence[Inputs], clips: Sequence[Clip], language: str | None) -> Heard:
    scores = [as_decoded(exported, inputs) for inputs in asked]
    return Heard(scores, written(exported, clips, language), names_of(clips), states_of(exported, asked))


def names_of(clips: Sequence[Clip]) -> list[str]:
    return [clip.name for clip in clips]


def states_of(recognizer: Recognizer, asked: Sequence[Inputs]) -> list[torch.Tensor]:
    """What the encoder gives for each window; nothing where there is none by itself, or it gives something else."""
    if not recognizer.model.config.is_encoder_decoder:
        return []
    encoder = recognizer.model.get_encoder()
    if not getattr(encoder, "gives_states", True):
        return []
    return [encoder(inputs["input_features"]).last_hidden_state.float() for inputs in asked]


def agreement(model: Heard, export: Heard) -> Agreement:
    """Some runtimes give no scores of the prompt, with which a window's scores begin."""
    expected = [scores[-len(found) :] for scores, found in zip(model.scores, export.scores, strict=True)]
    pairs = list(zip(expected, export.scores, strict=True))
    for name, (own, other) in zip(model.clips, pairs, strict=True):
        check_shape(f"its scores of {name}", own, other)
    differing = sum(int((found.argmax(-1) != own.argmax(-1)).sum()) for own, found in pairs)
    errors = [relative_error([own], [other]) for own, other in pairs]
    errors = [math.inf if math.isnan(error) else error for error in errors]
    changed = rewritten(model, export.transcripts)
    if export.states:
        for name, own, other in zip(model.clips, model.states, export.states, strict=True):
            check_shape(f"its encoder's states of {name}", own, other)
    return Agreement(
        len(pairs),
        relative_error(expected, export.scores),
        differing / sum(map(len, expected)),
        len(changed),
        relative_error(model.states, export.states) if export.states else None,
        max(zip(model.clips, errors, strict=True), key=lambda each: (each[0] in changed, each[1]))[0],
    )


def check_shape(what: str, expected: torch.Tensor, found: torch.Tensor) -> None:
    if found.shape != expected.shape:
        raise refused(f"{what} have the shape {tuple(found.shape)} where it is {tuple(expected.shape)}")


def rewritten(model: Heard, transcripts: Sequence[str]) -> set[str]:
    """Names of the clips of which another text is written."""
    names = list(model.clips)
    both = enumerate(zip(model.transcripts, transcripts, strict=True))
    return {names[place % len(names)] for place, (before, after) in both if before != after}


def relative_error(expected: Sequence[torch.Tensor], found: Sequence[torch.Tensor]) -> float:
    """Root mean square of the differences, as a share of that of `expected`."""
    error = sum(float((after - before).square().sum()) for before, after in zip(expected, found, strict=True))
    return float((error / sum(float(before.square().sum()) for before in expected)) ** 0.5)


def as_decoded(exported: Recognizer, inputs: Inputs) -> torch.Tensor:
    """Scores as decoding asks for them: where there are tokens one by one, with what is kept of those before."""
    if "decoder_input_ids" not in inputs or hasattr(exported.model, "decode_by_itself"):  # which has a loop of its own
        return exported.family.logits(inputs)
    encoded, cache, found = exported.model.get_encoder()(inputs["input_features"]), None, []
    for token in inputs["decoder_input_ids"].split(1, dim=1):
        step = exported.model(encoder_outputs=encoded, decoder_input_ids=token, past_key_values=cache, use_cache=True)
        cache = step.past_key_values
        found.append(step.logits[0])
    return torch.cat(found).float()


def written(recognizer: Recognizer, clips: Sequence[Clip], language: str | None) -> list[str]:
    """Greedy transcripts, one by one, so that a runtime's own pipeline writes them where it has one; where windows are
    fitted, which are not those of a pipeline, also in these."""

    def texts() -> list[str]:
        return [found.text for found in recognizer.family.transcribe(clips, Decoding(language=language, batch_size=1))]

    extractor = recognizer.processor.feature_extractor
    with whole_windows(extractor):
        whole = texts()
    return whole + texts() if is_fitted(extractor) else whole


def check(found: Agreement, precision: str) -> None:
    """Raises SottoError where an export differs more than its precision explains, with what differs, and where most."""
    most = TOLERANCES[precision]
    reason, advice = None, ""
    if found.encoder is not None and not found.encoder <= most.encoder:
        reason = f"its encoder's output differs by {found.encoder:.2g} of its size, more than {most.encoder:g}"
    elif not found.scores <= most.scores:
        reason = f"its scores differ by {found.scores:.2g} of their size, more than {most.scores:g}"
    elif not found.decisions <= most.decisions:
        reason = f"it decides otherwise on {found.decisions:.1%} of what it writes, more than {most.decisions:.1%}"
        advice = "" if most.same_transcripts else "; name speech of the kind that it is to hear with audio"
    elif most.same_transcripts and found.transcripts:
        reason = f"it writes another text for {found.transcripts} of {found.clips} clips"
    if reason is not None:
        raise refused(f"{reason}; farthest on {found.farthest}{advice}")


def refused(reason: str) -> SottoError:
    return SottoError(f"the export does not compute what the model computes: {reason}; nothing was written")
