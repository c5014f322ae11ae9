"""What Sotto knows of each model family: one table of module paths each."""

from typing import Any

from sotto.architectures.table import Architecture, Attention, FeedForward, Stack, StackDimensions
from sotto.architectures.whisper import WHISPER
from sotto.configuration import nearest
from sotto.errors import SottoError

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "Attention",
    "FeedForward",
    "Stack",
    "StackDimensions",
    "architecture_of",
    "get_architecture",
]

ARCHITECTURES = (WHISPER,)


def get_architecture(name: str) -> Architecture:
    """Raises SottoError on an unknown name."""
    for architecture in ARCHITECTURES:
        if architecture.name == name:
            return architecture
    raise SottoError(f"unknown architecture '{name}'{nearest(name, [known.name for known in ARCHITECTURES])}")


def architecture_of(config: Any) -> Architecture:
    """The family of a checkpoint's config. Raises SottoError where Sotto does not know it."""
    for architecture in ARCHITECTURES:
        if type(config).model_type in architecture.model_types:
            return architecture
    known = ", ".join(architecture.name for architecture in ARCHITECTURES)
    raise SottoError(f"a checkpoint of type '{type(config).model_type}' is not supported; Sotto knows {known}")
