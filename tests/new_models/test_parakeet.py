import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sotto.checkpoint import Recognizer, load
from sotto.errors import SottoError
from sotto.new_models import NewParakeet, new_models

TEXTS = ["one two three", "don't say one"]
CONFIG = NewParakeet(16, 2, 2, subsampling_channels=4, vocabulary=40, mel_bins=16)


def new(config: NewParakeet = CONFIG, seed: int = 0) -> Recognizer:
    model, processor = new_models.handler(config)(config, TEXTS, seed)
    return Recognizer(model.eval(), processor)


def test_the_model_has_the_sizes_asked_for() -> None:
    config = new(replace(CONFIG, intermediate_size=24, subsampling_factor=4, convolution_kernel=5)).model.config
    encoder = config.encoder_config
    assert (encoder.hidden_size, encoder.num_hidden_layers, encoder.num_attention_heads) == (16, 2, 2)
    assert (encoder.intermediate_size, encoder.subsampling_factor, encoder.conv_kernel_size) == (24, 4, 5)
    assert new().model.config.encoder_config.intermediate_size == 64  # four times the width


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_frames_are_as_long_as_the_subsampling_says(factor: int) -> None:
    family: Any = new(replace(CONFIG, subsampling_factor=factor)).family
    assert family.samples_per_frame == 160 * factor
    scores = family.logits(family.inputs([np.zeros(32_000, dtype=np.float32)]))
    assert abs(len(scores) - 200 / factor) <= 1


@pytest.mark.parametrize("text", ["one two three", "don't say one"])
def test_texts_survive_the_tokenizer_and_the_blank_is_its_last_token(text: str) -> None:
    recognizer = new()
    tokenizer: Any = recognizer.processor.tokenizer
    tokens = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(tokens, group_tokens=False) == text
    assert tokenizer.pad_token_id == len(tokenizer) - 1 == recognizer.model.config.vocab_size - 1
    assert recognizer.model.config.pad_token_id == tokenizer.pad_token_id
    assert tokenizer.unk_token_id not in tokens
    assert len(tokenizer) <= CONFIG.vocabulary + 1


def test_the_seed_decides_the_weights() -> None:
    first, again, other = (new(seed=seed).model.state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_it_is_saved_as_a_plain_checkpoint_and_opened_again(tmp_path: Path) -> None:
    recognizer = new()
    loaded = load(recognizer.save(tmp_path / "model"))
    assert json.loads((tmp_path / "model" / "config.json").read_text())["model_type"] == "parakeet_ctc"
    torch.testing.assert_close(loaded.family.probe(), recognizer.family.probe())


def test_every_character_of_the_texts_has_a_place_in_the_vocabulary() -> None:
    letters = len(set("".join(TEXTS)) - {" "})
    smallest = new(replace(CONFIG, vocabulary=letters + 2)).processor.tokenizer
    assert len(smallest) == letters + 3  # and the blank
    with pytest.raises(SottoError, match=f"vocabulary must be at least {letters + 2} for the {letters} characters"):
        new(replace(CONFIG, vocabulary=letters + 1))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"layers": 0}, "layers must be at least 1, found 0"),
        ({"hidden_size": 15}, "hidden_size must be even and at least 2, found 15"),
        ({"attention_heads": 3}, "hidden_size 16 is not a multiple of attention_heads 3"),
        ({"intermediate_size": 0}, "intermediate_size must be at least 1"),
        ({"subsampling_factor": 3}, "subsampling_factor must be 2, 4, 8 or 16, found 3"),
        ({"mel_bins": 20}, "mel_bins 20 is not a multiple of subsampling_factor 8"),
        ({"convolution_kernel": 4}, "convolution_kernel must be odd, found 4"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, found 1.0"),
    ],
)
def test_dimensions_are_checked(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SottoError, match=message):
        replace(CONFIG, **values)


@pytest.mark.parametrize("factor", [2, 8])
def test_the_first_layer_hears_the_audio(factor: int) -> None:
    """As transformers starts it, three stages of subsampling make audio a million times quieter."""
    recognizer = new(replace(CONFIG, subsampling_factor=factor, subsampling_channels=16))
    encoder = recognizer.model.get_encoder()
    found: list[torch.Tensor] = []
    encoder.layers[0].norm_feed_forward1.register_forward_hook(lambda module, inputs, output: found.append(output))
    audio = 0.1 * np.random.default_rng(0).standard_normal(64_000).astype(np.float32)
    with torch.no_grad():
        recognizer.family.run(recognizer.family.inputs([audio]))
    assert found[0].std(dim=1).mean() > 0.3  # over time; a layer norm's output has a deviation of 1


def test_what_is_added_to_the_residual_stream_is_small_at_first() -> None:
    weights = new(replace(CONFIG, hidden_size=64, layers=4)).model.state_dict()
    layer = "encoder.layers.2"
    assert weights[f"{layer}.feed_forward1.linear1.weight"].std() == pytest.approx(64**-0.5, rel=0.05)
    assert weights[f"{layer}.conv.depthwise_conv.weight"].std() == pytest.approx(9**-0.5, rel=0.15)
    assert weights[f"{layer}.feed_forward1.linear2.weight"].std() == pytest.approx((256 * 16) ** -0.5, rel=0.05)
    assert weights[f"{layer}.self_attn.o_proj.weight"].std() == pytest.approx((64 * 16) ** -0.5, rel=0.05)
    assert weights["encoder.subsampling.layers.0.weight"].std() == pytest.approx((2 / 9) ** 0.5, rel=0.4)
