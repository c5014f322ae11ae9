"""A tiny recogniser of every architecture, and what it computes for one sound."""

import torch

from conformers import make
from sotto.checkpoint import Recognizer
from tones import square_wave, tiny_whisper

ARCHITECTURES = ["whisper", "parakeet", "wav2vec2_conformer", "wav2vec2_conformer_rotary"]


def recognizer(architecture: str) -> Recognizer:
    """One that may be changed."""
    found = Recognizer(*tiny_whisper()) if architecture == "whisper" else make(architecture)
    found.model.eval()
    return found


@torch.no_grad()
def scores(found: Recognizer) -> torch.Tensor:
    inputs = found.family.inputs([square_wave(300, 0.9)])
    if found.model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.tensor([[1, 5, 9, 11]])
    logits: torch.Tensor = found.model(**inputs).logits
    return logits
