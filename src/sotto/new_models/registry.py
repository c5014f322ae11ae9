"""What builds a new model: its configuration, and a function that gives model and processor."""

from collections.abc import Callable, Iterable
from typing import Any

from transformers import PreTrainedModel

from sotto.registry import Registry

Build = Callable[[Any, Iterable[str], int, Any], tuple[PreTrainedModel, Any]]
"""(configuration, training texts, seed, tokenizer) -> (model, processor); where the tokenizer is None, a vocabulary is
learnt from the texts"""

new_models: Registry[Build] = Registry("new model")
