"""A tiny Whisper whose activations are low-rank-ish, and how tests of methods run and compare it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sotto.checkpoint import Recognizer
from sotto.data import ClipSource, windows
from sotto.methods import LowRank
from sotto.methods.low_rank import apply_low_rank
from sotto.methods.method import StepContext
from sotto.new_models.whisper import NewWhisper, new_model, new_processor
from whisper_windows import features_of

MakeRecognizer = Callable[..., Recognizer]


def build(width: int, layers: int, heads: int, seed: int) -> Recognizer:
    config = NewWhisper(
        d_model=width,
        encoder_layers=layers,
        decoder_layers=layers,
        attention_heads=heads,
        vocabulary=256,
        window_seconds=1,
        mel_bins=16,
        maximum_tokens=16,
    )
    processor = new_processor(config, ["one two three"])
    model = new_model(config, processor.tokenizer, seed).eval()
    shape_weights(model, torch.Generator().manual_seed(seed))
    return Recognizer(model, processor)


@torch.no_grad()
def shape_weights(model: nn.Module, generator: torch.Generator) -> None:
    """Linears with spectra that fall at different rates, biases and norms that leave no mean at zero."""
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm):
            module.weight.uniform_(0.5, 1.5, generator=generator)
            module.bias.normal_(0.0, 0.3, generator=generator)
        if isinstance(module, nn.Conv1d):  # strong enough for the audio to outweigh the positions
            module.weight.normal_(0.0, 2.0 / module.weight[0].numel() ** 0.5, generator=generator)
        if isinstance(module, nn.Linear) and name != "proj_out":
            left, values, right = torch.linalg.svd(
                torch.randn(module.weight.shape, generator=generator), full_matrices=False
            )
            decay = len(values) * (0.05 + torch.rand((), generator=generator))
            values = torch.exp(-torch.arange(len(values)) / decay)
            module.weight.copy_((left * values) @ right * (len(left) / values.square().sum()).sqrt())
            if module.bias is not None:
                module.bias.normal_(0.0, 0.5, generator=generator)
    model.get_parameter("model.decoder.embed_tokens.weight").normal_(0.0, 0.3, generator=generator)


def apply(recognizer: Recognizer, clips: ClipSource | None, **settings: Any) -> list[str]:
    """Low rank with `settings`."""
    return apply_low_rank(recognizer, LowRank(**settings), StepContext(Path(), calibration=clips))


def each_window(recognizer: Recognizer, clips: ClipSource) -> torch.Tensor:
    """Features of all windows, as one batch."""
    audio = [window for clip in clips for window in windows(clip.audio, clip.sampling_rate, 1.0)]
    return torch.cat([features_of(recognizer, [window]) for window in audio])


@torch.no_grad()
def encoded(model: Any, features: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = model.get_encoder()(features).last_hidden_state
    return result


def difference(expected: torch.Tensor, found: torch.Tensor) -> float:
    """Relative, root mean square."""
    return float((expected.double() - found.double()).norm() / expected.double().norm())
