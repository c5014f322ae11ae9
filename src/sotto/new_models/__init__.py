"""New, untrained models with vocabularies of their own, by the name that training recipes have for them."""

from sotto.new_models.parakeet import NewParakeet
from sotto.new_models.registry import new_models
from sotto.new_models.whisper import NewWhisper

__all__ = ["NewParakeet", "NewWhisper", "new_models"]
