"""What Sotto knows of each model family: one table of module paths each."""

from typing import Any

from sotto.architectures.conformer import PARAKEET, WAV2VEC2_CONFORMER, WAV2VEC2_CONFORMER_ROTARY
from sotto.architectures.table import (
    Architecture,
    Attention,
    Convolution,
    FeedForward,
    LayerModule,
    Stack,
    StackDimensions,
    get_setting,
    set_setting,
)
from sotto.architectures.whisper import WHISPER
from sotto.configuration import nearest
from sotto.errors import SottoError

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "Attention",
    "Convolution",
    "FeedForward",
    "LayerModule",
    "Stack",
    "StackDimensions",
    "architecture_of",
    "get_architecture",
    "get_setting",
    "set_setting",
]

ARCHITECTURES = (WHISPER, PARAKEET, WAV2VEC2_CONFORMER, WAV2VEC2_CONFORMER_ROTARY)


def get_architecture(name: str) -> Architecture:
    """Raises SottoError on an unknown name."""
    for architecture in ARCHITECTURES:
        if architecture.name == name:
            return architecture
    raise SottoError(f"unknown architecture '{name}'{nearest(name, [known.name for known in ARCHITECTURES])}")


def architecture_of(config: Any) -> Architecture:
    """The family of a checkpoint's config. Raises SottoError where Sotto does not know it, or not in these settings."""
    kind = type(config).model_type
    candidates = [architecture for architecture in ARCHITECTURES if kind in architecture.model_types]
    if not candidates:
        known = ", ".join(dict.fromkeys(architecture.model_types[0] for architecture in ARCHITECTURES))
        raise SottoError(f"a checkpoint of type '{kind}' is not supported; Sotto knows {known}")
    for architecture in candidates:
        if all(get_setting(config, name) == value for name, value in architecture.settings.items()):
            return architecture
    refused = ", ".join(f"{name} {get_setting(config, name)!r}" for name in candidates[0].settings)
    known = "; ".join(
        ", ".join(f"{name} {value!r}" for name, value in architecture.settings.items()) for architecture in candidates
    )
    raise SottoError(f"a checkpoint of type '{kind}' with {refused} is not supported; Sotto knows it with {known}")
