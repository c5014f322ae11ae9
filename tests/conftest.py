"""A tiny recognizer with random weights: one for the session, and a copy of it for each test."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from sotto.checkpoint import Recognizer
from sotto.new_models.whisper import NewWhisper, new_model, new_processor

settings.register_profile("no deadline", deadline=None)  # a busy machine is no failure
settings.load_profile("no deadline")

Logits = Callable[[Any], torch.Tensor]

TINY = NewWhisper(
    d_model=16,
    encoder_layers=3,
    decoder_layers=3,
    attention_heads=4,
    ffn_dim=24,
    vocabulary=260,
    languages=("en", "hi"),
    window_seconds=1.0,
    maximum_tokens=32,
)


@pytest.fixture(scope="session")
def template() -> Recognizer:
    """Not to be changed: take `recognizer`. Weights and biases are large, so that every part of it is heard."""
    processor = new_processor(TINY, ["one two three four"])
    model = new_model(TINY, processor.tokenizer, seed=0).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "encoder.embed_positions" not in name:
                center = 1.0 if "layer_norm.weight" in name else 0.0
                parameter.copy_(center + 0.3 * torch.randn(parameter.shape, generator=generator))
    return Recognizer(model, processor)


@pytest.fixture
def recognizer(template: Recognizer) -> Recognizer:
    return copy.deepcopy(template)


@pytest.fixture(scope="session")
def logits() -> Logits:
    """Gives the logits (2, 5, vocabulary) of a model for two windows of noise and fixed tokens, without gradients."""

    @torch.no_grad()
    def compute(model: Any) -> torch.Tensor:
        config = model.config
        generator = torch.Generator().manual_seed(2)
        features = torch.randn(2, config.num_mel_bins, 2 * config.max_source_positions, generator=generator)
        tokens = torch.randint(config.vocab_size, (2, 5), generator=generator)
        result: torch.Tensor = model(input_features=features, decoder_input_ids=tokens, use_cache=False).logits
        return result

    return compute


@pytest.fixture(scope="session")
def saved(template: Recognizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The template on disk. Not to be changed: copy the folder."""
    return template.save(tmp_path_factory.mktemp("saved") / "template")
