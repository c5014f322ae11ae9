"""The families of recognisers, by the name of their architecture."""

from collections.abc import Mapping
from typing import Any

from sotto.architectures import architecture_of
from sotto.families.ctc import Ctc
from sotto.families.family import Family, Inputs, evaluating
from sotto.families.parakeet import Parakeet
from sotto.families.wav2vec2_conformer import Wav2Vec2Conformer
from sotto.families.whisper import Whisper

__all__ = ["Ctc", "Family", "Inputs", "evaluating", "family_of"]

FAMILIES: Mapping[str, type[Family]] = {
    "whisper": Whisper,
    "parakeet": Parakeet,
    "wav2vec2_conformer": Wav2Vec2Conformer,
    "wav2vec2_conformer_rotary": Wav2Vec2Conformer,
}


def family_of(config: Any) -> type[Family]:
    """The family of a checkpoint's config. Raises SottoError where Sotto does not know it."""
    return FAMILIES[architecture_of(config).name]
