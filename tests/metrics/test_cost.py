"""Counts against closed forms written out by hand, and the traps that a counter falls into."""

import copy
import json

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    ParakeetCTCConfig,
    ParakeetForCTC,
    Wav2Vec2ConformerConfig,
    Wav2Vec2ConformerForCTC,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from conformers import make
from published_whisper import PUBLISHED, published
from shapes import SHAPES
from sotto.errors import SottoError
from sotto.metrics.cost import (
    Flops,
    Parameters,
    bytes_on_disk,
    count_flops,
    count_parameters,
    decoder_flops,
    encoder_flops,
    flops_by_module,
)


def small_whisper(**overrides: object) -> WhisperForConditionalGeneration:
    settings = {
        "vocab_size": 50,
        "num_mel_bins": 8,
        "d_model": 16,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "max_source_positions": 10,
        "max_target_positions": 40,
        "pad_token_id": 0,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "decoder_start_token_id": 1,
    }
    return WhisperForConditionalGeneration(WhisperConfig(**(settings | overrides)))


def encoder_by_hand(name: str, frames: int = 3000) -> int:
    width, layers, _, mels = SHAPES[name]
    positions = frames // 2
    stem = 2 * frames * width * (3 * mels) + 2 * positions * width * (3 * width)
    linears = 2 * positions * (4 * width**2 + 8 * width**2)
    attention = 4 * positions**2 * width
    return stem + layers * (linears + attention)


def decoder_by_hand(name: str, tokens: int, positions: int = 1500) -> int:
    (width, layers, _, _), vocabulary = SHAPES[name], PUBLISHED[name]
    of_tokens = 2 * tokens * (4 + 2 + 8) * width**2  # self-attention, query and output of cross-attention, FFN
    of_audio = 2 * positions * 2 * width**2  # keys and values of cross-attention
    attention = 4 * tokens * (tokens + positions) * width
    return layers * (of_tokens + of_audio + attention) + 2 * tokens * width * vocabulary


@pytest.mark.parametrize("name", PUBLISHED)
def test_encoder_flops_of_published_sizes(name: str) -> None:
    assert encoder_flops(published(name)) == encoder_by_hand(name)


def test_tiny_encoder_takes_37_gflops() -> None:
    assert encoder_flops(published("tiny")) == pytest.approx(36.94e9, rel=1e-4)


@pytest.mark.parametrize("name", PUBLISHED)
def test_decoder_flops_of_published_sizes(name: str) -> None:
    assert decoder_flops(published(name), 32) == decoder_by_hand(name, 32)


def test_shorter_windows() -> None:
    assert encoder_flops(published("tiny"), frames=1000) == encoder_by_hand("tiny", 1000)
    assert decoder_flops(published("tiny"), 5, encoder_positions=500) == decoder_by_hand("tiny", 5, 500)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_counts_whatever_computes_it(attention: str) -> None:
    model = small_whisper(attn_implementation=attention)
    stem = 2 * 20 * 16 * 24 + 2 * 10 * 16 * 48
    layer = 2 * 10 * (4 * 16**2 + 2 * 16 * 32) + 4 * 10**2 * 16
    assert encoder_flops(model) == stem + 2 * layer


@pytest.mark.parametrize(("name", "encoder"), [("large-v3", 635_048_960), ("small", 88_154_112 - 1500 * 768)])
def test_encoder_parameters_of_published_sizes(name: str, encoder: int) -> None:
    assert count_parameters(published(name)).encoder == encoder


def test_parameters_by_hand() -> None:
    attention = 4 * 16**2 + 3 * 16
    ffn = 2 * 16 * 32 + 32 + 16
    norm = 2 * 16
    stem = 16 * 24 + 16 + 16 * 48 + 16
    encoder = stem + 2 * (attention + ffn + 2 * norm) + norm
    decoder = 50 * 16 + 40 * 16 + 2 * (2 * attention + ffn + 3 * norm) + norm
    counted = count_parameters(small_whisper())
    assert (counted.encoder, counted.decoder, counted.total) == (encoder, decoder, encoder + decoder)


def test_output_head_counts_again_when_untied() -> None:
    tied = count_parameters(small_whisper())
    untied = count_parameters(small_whisper(tie_word_embeddings=False))
    assert untied.decoder - tied.decoder == 50 * 16
    assert untied.encoder == tied.encoder


def test_nonzero_leaves_out_zeroed_weights() -> None:
    model = small_whisper()
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    full = count_parameters(model)
    assert full.nonzero == full.total
    with torch.no_grad():
        model.model.encoder.layers[0].fc1.weight[:, :5] = 0
        model.model.encoder.embed_positions.weight[:] = 0
    pruned = count_parameters(model)
    assert full.nonzero - pruned.nonzero == 32 * 5
    assert pruned.total == full.total


def test_nonzero_without_values_is_all() -> None:
    counted = count_parameters(published("tiny"))
    assert counted.nonzero == counted.total == counted.encoder + counted.decoder


def test_factored_linear_costs_what_its_factors_cost() -> None:
    dense, factored = small_whisper(), small_whisper()
    layer = factored.model.encoder.layers[1]
    layer.fc1 = nn.Sequential(nn.Linear(16, 3, bias=False), nn.Linear(3, 32))
    assert encoder_flops(dense) - encoder_flops(factored) == 2 * 10 * (16 * 32 - 3 * (16 + 32))
    assert decoder_flops(dense, 4) == decoder_flops(factored, 4)
    saved = count_parameters(dense).encoder - count_parameters(factored).encoder
    assert saved == 16 * 32 - 3 * (16 + 32)


def test_narrower_heads_and_ffn() -> None:
    dense, narrow = small_whisper(), small_whisper()
    layer = narrow.model.encoder.layers[0]
    attention = layer.self_attn
    attention.num_heads = 1
    attention.q_proj, attention.k_proj, attention.v_proj = (nn.Linear(16, 8) for _ in range(3))
    attention.out_proj = nn.Linear(8, 16)
    layer.fc1, layer.fc2 = nn.Linear(16, 20), nn.Linear(20, 16)
    saved = 2 * 10 * (4 * 16 * 8 + 2 * 16 * 12) + 4 * 10**2 * 8
    assert encoder_flops(dense) - encoder_flops(narrow) == saved


class ReducedAttention(nn.Module):
    """Four query heads of 3 share two key heads; values have 5 dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(16, 12), nn.Linear(16, 6), nn.Linear(16, 10)
        self.out = nn.Linear(20, 16)

    def forward(self, hidden_states: Tensor, **_: object) -> tuple[Tensor, None]:
        q, k, v = (
            linear(hidden_states).unflatten(-1, (heads, -1)).transpose(1, 2)
            for linear, heads in ((self.q, 4), (self.k, 2), (self.v, 2))
        )
        mixed = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return self.out(mixed.transpose(1, 2).flatten(2)), None


def test_attention_of_another_kind() -> None:
    model = small_whisper()
    model.model.encoder.layers[0].self_attn = ReducedAttention()
    linears = 2 * 10 * 16 * (12 + 6 + 10 + 20)
    products = 2 * 10**2 * 4 * (3 + 5)
    counted = flops_by_module(model)["model.encoder.layers.0.self_attn"]
    assert counted == linears + products


class IntegerLinear(nn.Module):
    """A linear over int8 codes: its product is of another kind than that of `nn.Linear`."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("codes", torch.ones(16, 32, dtype=torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        return torch._int_mm(x.flatten(0, -2).to(torch.int8), self.codes).to(x.dtype).view(*x.shape[:-1], 32)


def test_integer_products_count_like_floating_ones() -> None:
    dense, quantized = small_whisper(), small_whisper()
    quantized.model.encoder.layers[0].fc1 = IntegerLinear()
    assert encoder_flops(quantized) == encoder_flops(dense)


def test_flops_by_module_add_up() -> None:
    model = small_whisper()
    counts = flops_by_module(model, tokens=4)
    assert counts["model.encoder.layers.0.fc1"] == 2 * 10 * 16 * 32
    assert counts["proj_out"] == 2 * 4 * 16 * 50
    assert counts["model.encoder"] == encoder_flops(model)
    assert counts[""] == encoder_flops(model) + decoder_flops(model, 4)
    assert counts[""] == counts["model.encoder"] + counts["model.decoder"] + counts["proj_out"]
    assert set(counts) <= {name for name, _ in model.named_modules()}
    assert count_flops(model, None, 4) == Flops(encoder_flops(model), decoder_flops(model, 4), counts)


def test_model_is_left_as_it_was() -> None:
    model = small_whisper().to(torch.bfloat16).train()
    model.model.encoder.layers[0].eval()
    seen: list[Tensor] = []
    model.model.encoder.layers[1].register_forward_hook(lambda _module, _input, output: seen.append(output))
    state = {name: (value.data_ptr(), value.clone()) for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    config = copy.deepcopy(model.config.to_dict())
    encoder_flops(model, frames=8)
    flops_by_module(model)
    assert not seen
    assert [module.training for module in model.modules()] == modes
    assert model.config.to_dict() == config
    after = model.state_dict()
    assert all(after[name].data_ptr() == where for name, (where, _) in state.items())
    assert all(torch.equal(after[name], value) for name, (_, value) in state.items())
    model.model.encoder(torch.zeros(1, 8, 20, dtype=torch.bfloat16))
    assert len(seen) == 1


def test_ctc_on_mel_frames_is_all_encoder() -> None:
    encoder = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "subsampling_conv_channels": 8,
        "num_mel_bins": 80,
    }
    model = ParakeetForCTC(ParakeetCTCConfig(vocab_size=20, pad_token_id=19, encoder_config=encoder))
    everything = sum(p.numel() for p in model.parameters())
    assert count_parameters(model) == Parameters(everything, count_parameters(model).nonzero, everything, 0)
    assert decoder_flops(model, 5) == 0
    counts = flops_by_module(model, frames=80)
    assert counts[""] == encoder_flops(model, frames=80)
    assert count_flops(model, 80, 0) == Flops(counts[""], 0, counts)
    assert counts["ctc_head"] == 2 * 10 * 16 * 20  # 80 frames, eightfold subsampling


def raw_audio_ctc() -> Wav2Vec2ConformerForCTC:
    config = Wav2Vec2ConformerConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(8, 8),
        conv_kernel=(10, 4),
        conv_stride=(5, 2),
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )
    return Wav2Vec2ConformerForCTC(config)


def test_ctc_on_raw_audio() -> None:
    counts = flops_by_module(raw_audio_ctc(), frames=1000)
    first = (1000 - 10) // 5 + 1
    second = (first - 4) // 2 + 1
    assert counts["wav2vec2_conformer.feature_extractor.conv_layers.0.conv"] == 2 * first * 8 * 10
    assert counts["lm_head"] == 2 * second * 16 * 20


def conformer_layer(positions: int, width: int, ffn: int, kernel: int, relative: bool) -> int:
    """FLOPs of one layer, by hand."""
    feed_forward = 2 * positions * width * ffn * 2
    projections = 2 * positions * width * width * 4
    products = 2 * positions * positions * width * 2  # scores, and scores times values
    convolution = 2 * positions * (width * 2 * width + width * kernel + width * width)
    distances = 2 * positions - 1
    positional = 2 * distances * width * width + 2 * positions * distances * width if relative else 0
    return 2 * feed_forward + projections + products + convolution + positional


def test_a_parakeet_by_hand() -> None:
    model = make("parakeet").model
    counts = flops_by_module(model, frames=201)
    # 201 frames of 16 bins become 101 x 8, 51 x 4 and 26 x 2
    subsampling = 2 * (101 * 8 * 8 * 9 + 51 * 4 * (8 * 9 + 8 * 8) + 26 * 2 * (8 * 9 + 8 * 8) + 26 * 8 * 2 * 16)
    assert counts["encoder.subsampling"] == subsampling
    layer = conformer_layer(26, width=16, ffn=24, kernel=5, relative=True)
    assert counts["encoder.layers.0"] == counts["encoder.layers.1"] == layer
    assert counts["encoder.layers.0.feed_forward1.linear1"] == 2 * 26 * 16 * 24
    assert counts["encoder.layers.0.self_attn.relative_k_proj"] == 2 * 51 * 16 * 16
    assert counts["encoder.layers.0.conv.depthwise_conv"] == 2 * 26 * 16 * 5
    head = 2 * 26 * 16 * model.config.vocab_size
    assert encoder_flops(model, frames=201) == subsampling + 2 * layer + head

    attention = 5 * 16 * 16 + 4 * 16 + 2 * 16  # no bias for positions; two biases of the heads
    feed_forward = 2 * 16 * 24 + 24 + 16
    convolution = (16 + 1) * 32 + 16 * (5 + 1) + 2 * 16 + (16 + 1) * 16
    norms = 5 * 2 * 16
    layers = 2 * (attention + 2 * feed_forward + convolution + norms)
    front = 8 * (9 + 1) + 2 * (8 * (9 + 1) + 8 * (8 + 1)) + (8 * 2 + 1) * 16
    assert count_parameters(model).encoder == front + layers + (16 + 1) * model.config.vocab_size


@pytest.mark.parametrize("relative", [True, False])
def test_a_wav2vec2_conformer_by_hand(relative: bool) -> None:
    model = make("wav2vec2_conformer" if relative else "wav2vec2_conformer_rotary").model
    counts = flops_by_module(model, frames=3200)  # 320, 40 and 10 frames
    assert counts["wav2vec2_conformer.feature_extractor"] == 2 * 8 * (320 * 10 + 40 * 8 * 8 + 10 * 8 * 4)
    layer = conformer_layer(10, width=16, ffn=24, kernel=5, relative=relative)
    assert counts["wav2vec2_conformer.encoder.layers.1"] == layer
    front = counts["wav2vec2_conformer.feature_extractor"] + 2 * 10 * 8 * 16
    assert encoder_flops(model, frames=3200) == front + 2 * layer + 2 * 10 * 16 * model.config.vocab_size

    attention = 4 * 16 * 17 + (16 * 16 + 2 * 16 if relative else 0)
    feed_forward = 2 * 16 * 24 + 24 + 16
    convolution = 16 * 32 + 16 * 5 + 2 * 16 + 16 * 16
    norms = 5 * 2 * 16
    layers = 2 * (attention + 2 * feed_forward + convolution + norms) + 2 * 16
    own = sum(parameter.numel() for parameter in model.wav2vec2_conformer.encoder.layers.parameters()) + 2 * 16
    assert own == layers


def test_what_a_model_keeps_of_its_last_run_is_not_in_the_way() -> None:
    """Rotary positions are kept for the length of the last audio."""
    model = make("wav2vec2_conformer_rotary").model
    before = encoder_flops(model, frames=3200)
    with torch.no_grad():
        expected = model(torch.ones(1, 3200)).logits
        assert encoder_flops(model, frames=3200) == before
        torch.testing.assert_close(model(torch.ones(1, 3200)).logits, expected)


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (lambda model: encoder_flops(model, frames=7), "frames: 7 .* multiple of 2"),
        (lambda model: encoder_flops(model, frames=0), "frames: 0 .* multiple of 2"),
        (lambda model: decoder_flops(model, 41), "tokens: 41 is out of range; this model decodes 1 to 40"),
        (lambda model: decoder_flops(model, 0), "tokens: 0 is out of range"),
        (lambda model: decoder_flops(model, 2, encoder_positions=0), "encoder_positions: 0"),
        (lambda model: flops_by_module(model, tokens=41), "tokens: 41 is out of range"),
    ],
)
def test_impossible_lengths(count, message: str) -> None:
    with pytest.raises(SottoError, match=message):
        count(small_whisper())


def test_ctc_needs_a_length() -> None:
    model = raw_audio_ctc()
    with pytest.raises(SottoError, match="Wav2Vec2ConformerForCTC has no fixed window; give the length"):
        encoder_flops(model)


def test_bytes_of_a_saved_model(tmp_path) -> None:
    """Whatever else lies there: other formats, and copies of the weights in another precision."""
    (tmp_path / "pytorch_model.bin").write_bytes(b"x" * 40)
    (tmp_path / "training_args.bin").write_bytes(b"x" * 3)
    assert bytes_on_disk(tmp_path) == 40
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"x" * 70)
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(b"x" * 30)
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {**shards, "c": shards["a"]}}))
    (tmp_path / "config.json").write_bytes(b"x" * 5)
    assert bytes_on_disk(tmp_path) == 100
    (tmp_path / "model.safetensors").write_bytes(b"x" * 60)
    (tmp_path / "model.fp32-00001-of-00001.safetensors").write_bytes(b"x" * 120)
    assert bytes_on_disk(tmp_path) == 60


def test_bytes_of_nothing(tmp_path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(SottoError, match="no weights in it"):
            bytes_on_disk(folder)
