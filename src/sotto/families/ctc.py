"""Encoders with a CTC head: audio of any length, and a label for every frame."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GenerationConfig

from sotto.architectures import architecture_of
from sotto.data import Clip
from sotto.decoding import Decoding, Segment, Transcription
from sotto.errors import SottoError
from sotto.examples import IGNORED, Batch, Example, padded
from sotto.families.family import Family, Inputs, batches, evaluating
from sotto.families.frames import Piece, pieces, text_of, tokens_of, words_of

WINDOW_SECONDS = 10.0  # about the length of what is said in one breath; the models have no window of their own
LONGEST_SECONDS = 30.0  # attention grows with the square of the length, and models have seldom heard longer clips
SHORTEST_SECONDS = 0.1  # on much less, statistics of the features and convolutions without padding break down


@dataclass(frozen=True)
class Ctc(Family):
    """Decides on every frame by itself, so that nothing has to be transcribed before."""

    decision: ClassVar[str] = "frame"
    loss_name: ClassVar[str] = "ctc"
    smooths_labels: ClassVar[bool] = False

    @property
    def window_seconds(self) -> float:
        return WINDOW_SECONDS

    @property
    def longest_seconds(self) -> float:
        return LONGEST_SECONDS

    def frames(self, seconds: float) -> int:
        silence = np.zeros(round(seconds * self.sampling_rate), dtype=np.float32)
        return self.inputs([silence])[self.model.main_input_name].shape[1]

    @property
    def window_positions(self) -> int:
        return round(WINDOW_SECONDS * self.sampling_rate / self.samples_per_frame)

    @property
    @abstractmethod
    def samples_per_frame(self) -> int:
        """Samples from one frame of the output to the next."""

    @property
    def width(self) -> int:
        """Of the states that the head hears."""
        (stack,) = architecture_of(self.model.config).stacks
        return stack.dimensions(self.model.config).width

    @property
    def takes_batches(self) -> bool:
        """Whether a clip's output is the same beside longer ones."""
        return True

    @property
    def blank(self) -> int:
        """The label for no label, which CTC models have under the name of padding."""
        return int(self.model.config.pad_token_id)

    @abstractmethod
    def frame_counts(self, inputs: Inputs) -> torch.Tensor:
        """(batch,): frames of the output that are not padding."""

    def inputs(self, audio: Sequence[NDArray[np.float32]]) -> Inputs:
        return dict(heard(self.processor, audio).to(self.model.device, dtype=self.model.dtype))

    def outputs(self, inputs: Inputs, **settings: bool) -> Any:
        """The model's own, with `logits` (batch, frames, vocabulary), those of padding included.

        `settings` are those of its call in transformers, such as output_hidden_states.
        """
        return self.model(**inputs, **settings)

    def run(self, inputs: Inputs) -> torch.Tensor:
        """Scores (batch, frames, vocabulary), those of padding included."""
        logits: torch.Tensor = self.outputs(inputs).logits
        return logits

    def encode(self, inputs: Inputs) -> None:
        self.run(inputs)

    def with_transcript(self, inputs: Inputs, language: str | None = None) -> Inputs:
        return inputs

    def logits(self, inputs: Inputs) -> torch.Tensor:
        scores = self.run(inputs)
        return scores[self.are_frames(scores, inputs)]

    def are_frames(self, scores: torch.Tensor, inputs: Inputs) -> torch.Tensor:
        """(batch, frames): which of the scores (batch, frames, vocabulary) are not of padding."""
        frames = torch.arange(scores.shape[1], device=scores.device)
        return frames < self.frame_counts(inputs)[:, None]

    def probe(self) -> torch.Tensor:
        """Scores of every frame of a second of noise."""
        noise = np.random.default_rng(0).standard_normal(self.sampling_rate).astype(np.float32)
        return self.logits(self.inputs([0.1 * noise]))

    def generation_config(self) -> GenerationConfig | None:
        return self.model.generation_config if self.model.can_generate() else None

    def transcribe(self, clips: Iterable[Clip], decoding: Decoding) -> Iterator[Transcription]:
        """Greedily: the best label of every frame. Clips of unequal length go in one batch, longer ones in pieces."""
        if decoding.beams > 1:
            raise SottoError("a CTC model has no beam search; leave out beams, or set them to 1")
        if decoding.task == "translate":
            raise SottoError("a CTC model cannot translate; leave out task: translate")
        return self.stream(clips, decoding)

    def stream(self, clips: Iterable[Clip], decoding: Decoding) -> Iterator[Transcription]:
        size = decoding.batch_size if self.takes_batches else 1
        for batch in batches(clips, self.longest_seconds, size):
            cut = [pieces(clip.audio, self.sampling_rate, self.samples_per_frame, LONGEST_SECONDS) for clip in batch]
            labels = iter(self.labels([piece for of_clip in cut for piece in of_clip], size))
            for clip, of_clip in zip(batch, cut, strict=True):
                own = [label for _ in of_clip for label in next(labels)]
                yield self.transcription(clip, own, decoding.timestamps)

    @torch.no_grad()
    def labels(self, audio: Sequence[Piece], size: int) -> list[list[int]]:
        """The best label of every frame that is kept of each piece."""
        found = []
        with evaluating(self.model):
            for start in range(0, len(audio), size):
                group = audio[start : start + size]
                inputs = self.inputs([piece.audio for piece in group])
                best, counts = self.run(inputs).argmax(-1).tolist(), self.frame_counts(inputs).tolist()
                for piece, own, count in zip(group, best, counts, strict=True):
                    found.append(own[:count][piece.first : piece.end])
        return found

    def transcription(self, clip: Clip, labels: Sequence[int], timed: bool) -> Transcription:
        tokenizer = self.processor.tokenizer
        tokens = tokens_of(labels, self.blank)
        words = words_of(tokenizer, tokens, self.samples_per_frame / self.sampling_rate) if timed else []
        segments = [Segment(min(word.start, clip.seconds), min(word.end, clip.seconds), word.text) for word in words]
        text = text_of(tokenizer, [token.label for token in tokens])
        return Transcription(clip.name, text, clip.seconds, tuple(segments))

    def collator(self, language: str) -> CtcCollator:
        return CtcCollator(self.processor)

    def loss(self, batch: Batch, label_smoothing: float) -> tuple[Any, torch.Tensor]:
        """Connectionist temporal classification (Graves et al., 2006); none for a text of more tokens than frames."""
        inputs = {name: batch[name] for name in self.processor.feature_extractor.model_input_names}
        outputs = self.outputs(inputs)
        is_text = batch["labels"] != IGNORED
        loss = torch.nn.functional.ctc_loss(
            outputs.logits.float().log_softmax(-1).transpose(0, 1),
            batch["labels"][is_text],
            self.frame_counts(inputs),
            is_text.sum(1),
            blank=self.blank,
            reduction="sum",
            zero_infinity=True,
        )
        return outputs, loss

    def counted_positions(self, batch: Batch, outputs: Any) -> dict[str, torch.Tensor]:
        return {"encoder": self.are_frames(outputs.logits, batch)}


@dataclass(frozen=True)
class CtcCollator:
    """Examples -> Batch: what the model hears, and the tokens of the texts as its tokenizer has them.

    Raises SottoError for a text that is mostly unknown to the tokenizer, such as lower case where it has upper case.
    """

    processor: Any

    def __call__(self, examples: list[Example]) -> Batch:
        labels = [self.label_ids(example.text) for example in examples]
        return {**heard(self.processor, [example.audio for example in examples]), "labels": padded(labels)}

    def label_ids(self, text: str) -> list[int]:
        tokenizer = self.processor.tokenizer
        ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
        if 2 * ids.count(tokenizer.unk_token_id) > len(ids):
            raise SottoError(
                f"the model cannot write most of '{text[:40]}'; its letters or case differ; "
                "choose data.transcripts, such as upper"
            )
        return ids


def heard(processor: Any, audio: Sequence[NDArray[np.float32]]) -> Any:
    """Features or samples (batch, length, ...), padded to the longest, with the attention mask (batch, length)."""
    extractor = processor.feature_extractor
    shortest = round(SHORTEST_SECONDS * extractor.sampling_rate)
    return extractor(
        [np.pad(samples, (0, max(0, shortest - len(samples)))) for samples in audio],
        sampling_rate=extractor.sampling_rate,
        padding="longest",
        return_attention_mask=True,
        return_tensors="pt",
    )


def checked(processor: Any) -> Any:
    """Where files are missing transformers makes up an empty tokenizer. Raises SottoError for one."""
    tokenizer = processor.tokenizer
    if tokenizer.pad_token_id is None or len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise SottoError("the tokenizer is incomplete; copy its files from the checkpoint that it was made from")
    return processor
