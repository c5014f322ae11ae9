import copy
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import WhisperProcessor

from sotto.errors import SottoError
from sotto.new_models.whisper import NewWhisper, distances, new_model, new_processor

UP_TO_HINDI = (
    "en",
    "zh",
    "de",
    "es",
    "ru",
    "ko",
    "fr",
    "ja",
    "pt",
    "tr",
    "pl",
    "ca",
    "nl",
    "ar",
    "sv",
    "it",
    "id",
    "hi",
)
TEXTS = ["one two three", "एक दो तीन"]
CONFIG = NewWhisper(
    d_model=16,
    encoder_layers=1,
    decoder_layers=3,
    attention_heads=2,
    vocabulary=300,
    languages=("hi", "en"),
    window_seconds=2.0,
    mel_bins=80,
    maximum_tokens=24,
)


@pytest.fixture(scope="module")
def processor() -> WhisperProcessor:
    return new_processor(CONFIG, TEXTS)


@pytest.fixture(scope="module")
def model(processor: WhisperProcessor) -> Any:
    return new_model(CONFIG, processor.tokenizer, seed=0).eval()


@pytest.mark.parametrize("text", ["one two three", "एक दो तीन", "never seen: ß 漢 🎤\n\ttab", ""])
def test_any_text_survives_the_tokenizer(text: str, processor: WhisperProcessor) -> None:
    tokens = processor.tokenizer(text).input_ids
    assert processor.tokenizer.decode(tokens, skip_special_tokens=True) == text
    assert max(tokens) < len(processor.tokenizer)


def test_texts_that_were_trained_on_are_short(processor: WhisperProcessor) -> None:
    tokenizer = processor.tokenizer
    assert tokenizer.vocab_size <= CONFIG.vocabulary
    seen, unseen = (
        len(tokenizer(text, add_special_tokens=False).input_ids) for text in (" one two three", " eno owt eerht")
    )
    assert seen < unseen


def test_special_tokens_stand_in_the_order_of_whisper(processor: WhisperProcessor) -> None:
    tokenizer: Any = processor.tokenizer
    special = [
        "<|endoftext|>",
        "<|startoftranscript|>",
        *(f"<|{code}|>" for code in UP_TO_HINDI),
        "<|translate|>",
        "<|transcribe|>",
        "<|startoflm|>",
        "<|startofprev|>",
        "<|nospeech|>",
        "<|notimestamps|>",
    ]
    first = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    timestamps = [f"<|{step / 50:.2f}|>" for step in range(101)]
    assert tokenizer.convert_tokens_to_ids(special + timestamps) == list(range(first, len(tokenizer)))
    assert len(special + timestamps) == len(tokenizer) - first
    assert timestamps[-1] == "<|2.00|>"
    for language in ("hi", "en"):
        tokenizer = copy.deepcopy(tokenizer)
        names = ["<|startoftranscript|>", f"<|{language}|>", "<|transcribe|>", "<|notimestamps|>"]
        assert tokenizer.convert_ids_to_tokens(tokenizer("one").input_ids)[:4] == names
        tokenizer.set_prefix_tokens(language="en")
    assert tokenizer.pad_token == tokenizer.eos_token == "<|endoftext|>"
    words = tokenizer("one", add_special_tokens=False).input_ids
    said = tokenizer.convert_tokens_to_ids(["<|0.00|>"]) + words + tokenizer.convert_tokens_to_ids(["<|1.20|>"])
    assert tokenizer.decode(said, skip_special_tokens=True) == "one"
    assert tokenizer.decode(said, decode_with_timestamps=True) == "<|0.00|>one<|1.20|>"
    assert tokenizer.decode(said, output_offsets=True)["offsets"] == [{"text": "one", "timestamp": (0.0, 1.2)}]


@pytest.mark.parametrize(("seconds", "mels"), [(1.0, 80), (2.0, 80), (30.0, 128)])
def test_model_and_processor_agree_on_the_window(seconds: float, mels: int) -> None:
    config = replace(CONFIG, window_seconds=seconds, mel_bins=mels)
    processor = new_processor(config, TEXTS)
    model = new_model(config, processor.tokenizer, seed=0).eval()
    audio = np.random.default_rng(0).standard_normal(8000).astype(np.float32)
    features = processor.feature_extractor(audio, sampling_rate=16000, return_tensors="pt").input_features
    assert features.shape == (1, mels, 100 * seconds)
    with torch.no_grad():
        states = model.model.encoder(features).last_hidden_state
    assert states.shape == (1, 50 * seconds, 16)


def test_the_model_has_the_sizes_asked_for(model: Any, processor: WhisperProcessor) -> None:
    config = model.config
    assert (config.d_model, config.encoder_layers, config.decoder_layers) == (16, 1, 3)
    assert (config.encoder_attention_heads, config.decoder_attention_heads) == (2, 2)
    assert (config.encoder_ffn_dim, config.decoder_ffn_dim) == (64, 64)  # four times the width
    assert (config.max_source_positions, config.max_target_positions) == (100, 24)
    assert config.vocab_size == len(processor.tokenizer)
    assert model.proj_out.weight is model.model.decoder.embed_tokens.weight


def test_the_seed_fixes_the_weights(model: Any, processor: WhisperProcessor) -> None:
    same, other = (new_model(CONFIG, processor.tokenizer, seed) for seed in (0, 1))
    for name, weight in model.state_dict().items():
        assert torch.equal(same.state_dict()[name], weight)
    assert not torch.equal(other.proj_out.weight, model.proj_out.weight)


def test_an_untrained_model_expects_anything(model: Any) -> None:
    features = torch.randn(1, 80, 200, generator=torch.Generator().manual_seed(0))
    tokens = torch.arange(10)[None]
    loss = model(input_features=features, labels=tokens).loss.item()
    assert loss == pytest.approx(math.log(model.config.vocab_size), rel=0.1)


def test_the_decoding_settings_are_whole(model: Any, processor: WhisperProcessor) -> None:
    settings, ids = model.generation_config, processor.tokenizer.convert_tokens_to_ids
    assert settings.lang_to_id == {"<|hi|>": ids("<|hi|>"), "<|en|>": ids("<|en|>")}
    assert settings.task_to_id == {task: ids(f"<|{task}|>") for task in ("translate", "transcribe")}
    assert settings.no_timestamps_token_id == ids("<|notimestamps|>")
    assert settings.decoder_start_token_id == model.config.decoder_start_token_id == ids("<|startoftranscript|>")
    assert settings.eos_token_id == settings.pad_token_id == ids("<|endoftext|>")
    assert settings.max_length == 24
    assert settings.alignment_heads == [[1, 0], [1, 1], [2, 0], [2, 1]]  # the upper half of the layers
    features = torch.randn(1, 80, 200, generator=torch.Generator().manual_seed(0))
    for language in ("hi", "en"):
        for task in ("transcribe", "translate"):
            said = model.generate(
                features, language=language, task=task, return_timestamps=True, return_token_timestamps=True
            )
            assert said["token_timestamps"].shape == said["sequences"].shape
    said = model.generate(torch.randn(1, 80, 500), return_timestamps=True, return_segments=True)  # long-form
    assert said["segments"][0][-1]["end"] > 2.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_model": 18, "attention_heads": 4}, "d_model 18 is not a multiple of attention_heads 4"),
        ({"d_model": 15, "attention_heads": 3}, "d_model must be even and at least 4, found 15"),
        ({"d_model": 2, "attention_heads": 1}, "d_model must be even and at least 4, found 2"),
        ({"attention_heads": 0}, "attention_heads must be at least 1, found 0"),
        ({"encoder_layers": 0}, "encoder_layers must be at least 1, found 0"),
        ({"decoder_layers": -1}, "decoder_layers must be at least 1, found -1"),
        ({"ffn_dim": 0}, "ffn_dim must be at least 1, found 0"),
        ({"mel_bins": 1}, "mel_bins must be at least 2, found 1"),
        ({"maximum_tokens": 0}, "maximum_tokens must be at least 1, found 0"),
        ({"vocabulary": 255}, "vocabulary must be at least 256 (one entry a byte), found 255"),
        ({"window_seconds": 2.5}, "window_seconds must be a whole number of seconds, found 2.5"),
        ({"window_seconds": 0.0}, "window_seconds must be a whole number of seconds, found 0.0"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, found 1.0"),
        ({"languages": ()}, "languages must name at least one language, such as 'en'"),
        ({"languages": ("en", "tok")}, "unknown language 'tok'; give one of Whisper's codes, such as 'en'"),
    ],
)
def test_sizes_that_make_no_model_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SottoError) as refused:
        replace(CONFIG, **changes)
    assert str(refused.value) == message


def test_the_smallest_sizes_make_a_model() -> None:
    config = NewWhisper(4, 1, 1, 1, ffn_dim=1, vocabulary=256, window_seconds=1.0, mel_bins=2, maximum_tokens=8)
    processor = new_processor(config, ["a"])
    model = new_model(config, processor.tokenizer, seed=0).eval()
    features = processor.feature_extractor(np.zeros(100, np.float32), sampling_rate=16000, return_tensors="pt")
    assert model.generate(features.input_features).shape[0] == 1


@pytest.mark.parametrize(("start", "low", "high"), [("scaled", 0.2, 5.0), ("transformers", 0.0, 0.1)])
def test_audio_is_heard_beside_the_positions_where_the_start_is_scaled(start: str, low: float, high: float) -> None:
    config = replace(CONFIG, d_model=64, start=start)
    processor = new_processor(config, TEXTS)
    encoder = new_model(config, processor.tokenizer, seed=0).model.encoder
    audio = 0.1 * np.random.default_rng(0).standard_normal(32_000).astype(np.float32)
    features = processor.feature_extractor(audio, sampling_rate=16_000, return_tensors="pt").input_features
    with torch.no_grad():
        heard = torch.nn.functional.gelu(encoder.conv2(torch.nn.functional.gelu(encoder.conv1(features))))
    ratio = heard.square().mean().sqrt() / encoder.embed_positions.weight.square().mean().sqrt()
    assert low < ratio.item() < high


def test_a_scaled_start_follows_the_seed_and_leaves_norms_and_embeddings() -> None:
    processor = new_processor(CONFIG, TEXTS)
    plain, first, again = (
        dict(new_model(replace(CONFIG, start=start), processor.tokenizer, seed=0).named_parameters())
        for start in ("transformers", "scaled", "scaled")
    )
    changed = {name for name in plain if not torch.equal(plain[name], first[name])}
    assert changed == {
        name for name in plain if name.endswith("weight") and ("proj" in name or "fc" in name or "conv" in name)
    }
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_heads_that_start_local_look_where_their_distance_says(processor: WhisperProcessor) -> None:
    config = replace(CONFIG, d_model=128, attention_heads=4, window_seconds=2.0, start="local")
    encoder = new_model(config, processor.tokenizer, seed=0).model.encoder
    positions = encoder.embed_positions.weight.detach()
    middle = len(positions) // 2
    attention = encoder.layers[0].self_attn
    queries, keys = (linear.weight.detach().view(4, 32, 128) for linear in (attention.q_proj, attention.k_proj))
    for head, distance in enumerate(distances(4)):
        scores = (positions[middle] @ queries[head].T) @ (positions @ keys[head].T).T / 32**0.5
        nearest = scores.topk(2).indices.sort().values - middle
        assert nearest.tolist() == [math.floor(distance), math.ceil(distance)]
        near = scores.softmax(0)[middle + math.floor(distance) - 2 : middle + math.ceil(distance) + 3]
        assert near.sum() > 0.9
    assert distances(4) == [-1.5, 1.5, -4.5, 4.5]
