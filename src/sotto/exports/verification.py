"""The proof of an export: the same clips through the model and through what was written of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sotto.checkpoint import Recognizer
from sotto.data import Clip
from sotto.decoding import Decoding
from sotto.errors import SottoError
from sotto.exports.targets import CALIBRATED
from sotto.families import Inputs, evaluating


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

    @property
    def words(self) -> str:
        return (
            f"scores differ by {self.scores:.2g} of their size, decisions by {self.decisions:.2%}, "
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


TOLERANCES = {
    "float32": Tolerance(1e-3, 1e-3, same_transcripts=True),
    "float16": Tolerance(2e-2, 1e-2, same_transcripts=False),
    "bfloat16": Tolerance(5e-2, 2e-2, same_transcripts=False),
    "int8": Tolerance(1e-1, 1e-1, same_transcripts=False),
    CALIBRATED: Tolerance(1e-1, 1e-1, same_transcripts=False),
}


@dataclass(frozen=True)
class Heard:
    """What a recogniser makes of clips: scores (decisions, vocabulary) of each, and greedy transcripts."""

    scores: Sequence[torch.Tensor]
    transcripts: Sequence[str]


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
        return Heard([model.family.logits(inputs) for inputs in asked], written(model, clips, model.language))


@torch.no_grad()
def by_export(exported: Recognizer, asked: Sequence[Inputs], clips: Sequence[Clip], language: str | None) -> Heard:
    return Heard([as_decoded(exported, inputs) for inputs in asked], written(exported, clips, language))


def agreement(model: Heard, export: Heard) -> Agreement:
    """Some runtimes give no scores of the prompt, with which a window's scores begin."""
    error = power = differing = decisions = 0.0
    for scores, found in zip(model.scores, export.scores, strict=True):
        expected = scores[-len(found) :]
        error += float((found - expected).square().sum())
        power += float(expected.square().sum())
        differing += float((found.argmax(-1) != expected.argmax(-1)).sum())
        decisions += len(expected)
    pairs = list(zip(model.transcripts, export.transcripts, strict=True))
    changed = sum(before != after for before, after in pairs)
    return Agreement(len(pairs), (error / power) ** 0.5, differing / decisions, changed)


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
    """Greedy transcripts, one by one, so that a runtime's own pipeline writes them where it has one."""
    return [found.text for found in recognizer.family.transcribe(clips, Decoding(language=language, batch_size=1))]


def check(found: Agreement, precision: str) -> None:
    """Raises SottoError where an export differs more than its precision explains, with what differs."""
    most = TOLERANCES[precision]
    if not found.scores <= most.scores:
        raise refused(f"its scores differ by {found.scores:.2g} of their size, more than {most.scores:g}")
    if not found.decisions <= most.decisions:
        raise refused(
            f"it decides otherwise on {found.decisions:.1%} of what it writes, more than {most.decisions:.1%}"
        )
    if most.same_transcripts and found.transcripts:
        raise refused(f"it writes another text for {found.transcripts} of {found.clips} clips")


def refused(reason: str) -> SottoError:
    return SottoError(f"the export does not compute what the model computes: {reason}; nothing was written")
