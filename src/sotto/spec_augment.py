"""SpecAugment (Park et al., 2019): spans of frames and of mel bins that a model does not hear while it is trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import Wav2Vec2ConformerModel
from transformers.models.wav2vec2.modeling_wav2vec2 import _compute_mask_indices

from sotto.errors import SottoError

FRAMES, BINS = 10, 10  # length of a span, as transformers' families have it


@contextmanager
def spec_augment(model: Any, time: float, frequency: float) -> Iterator[None]:
    """While this lasts, `model` masks a share of its frames and of its mel bins in training.

    Families that can do so by themselves are told to; Wav2Vec2-Conformer masks its hidden states. The others have
    their log-mel features (batch, frames, mel bins) masked with zero, the mean of normalised features.
    """
    config = model.config
    if hasattr(config, "apply_spec_augment"):
        settings = {
            "apply_spec_augment": time > 0 or frequency > 0,
            "mask_time_prob": time,
            "mask_feature_prob": frequency,
            "mask_time_min_masks": 0,
            "mask_feature_min_masks": 0,
        }
        check_embedding(model, time)
        before = {name: getattr(config, name) for name in settings}
        config.update(settings)
        try:
            yield
        finally:
            config.update(before | {"apply_spec_augment": False})
    else:
        handle = model.get_encoder().register_forward_pre_hook(masking(time, frequency), with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()


def check_embedding(model: Any, time: float) -> None:
    """Raises SottoError where a Wav2Vec2-Conformer lacks the embedding that takes the place of masked frames."""
    inner = getattr(model, model.base_model_prefix)
    if time > 0 and isinstance(inner, Wav2Vec2ConformerModel) and not hasattr(inner, "masked_spec_embed"):
        raise SottoError("the model has no embedding for masked frames; leave out mask_time")


def masking(time: float, frequency: float) -> Any:
    """A hook that masks what an encoder in training hears."""

    def hook(
        encoder: nn.Module, args: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if encoder.training:
            named = {**named, "input_features": masked(named["input_features"], time, frequency)}
        return args, named

    return hook


def masked(features: torch.Tensor, time: float, frequency: float) -> torch.Tensor:
    """`features` (batch, frames, mel bins) with spans of zeros, drawn from numpy's global generator."""
    batch, frames, bins = features.shape
    features = features.masked_fill(spans(batch, frames, time, FRAMES, features.device)[:, :, None], 0.0)
    return features.masked_fill(spans(batch, bins, frequency, BINS, features.device)[:, None, :], 0.0)


def spans(batch: int, length: int, share: float, span: int, device: torch.device) -> torch.Tensor:
    """(batch, length) truth values; about `share` of them lie in true spans, which may overlap."""
    if not share or length < span:
        return torch.zeros(batch, length, dtype=torch.bool, device=device)
    return torch.as_tensor(_compute_mask_indices((batch, length), share, span), device=device)
