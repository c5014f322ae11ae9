"""The clock times what it says, the work is the work asked for, and the model comes back as it was."""

import json
import time
from mmap import mmap

import numpy as np
import psutil
import pytest
import torch
from torch import Tensor
from transformers import (
    ParakeetCTCConfig,
    ParakeetForCTC,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)
from transformers.feature_extraction_utils import BatchFeature

from sotto.errors import SottoError
from sotto.metrics.speed import (
    MemoryMeter,
    machine,
    measure_latency,
)

MEGABYTE = 1 << 20


@pytest.fixture
def model() -> WhisperForConditionalGeneration:
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=50,
        d_model=16,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_source_positions=50,
        max_target_positions=12,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        decoder_start_token_id=1,
        init_std=1.0,  # large enough for the next token to depend on all before it
        tie_word_embeddings=False,
    )
    return WhisperForConditionalGeneration(config)


@pytest.fixture
def extractor() -> WhisperFeatureExtractor:
    return WhisperFeatureExtractor(feature_size=80, chunk_length=1)


@pytest.fixture
def audio() -> np.ndarray:
    return np.random.default_rng(0).normal(size=8000).astype(np.float32)


def decoder_steps(model: WhisperForConditionalGeneration) -> list[Tensor]:
    steps: list[Tensor] = []
    model.model.decoder.register_forward_pre_hook(
        lambda _module, _args, given: steps.append(given["input_ids"].clone()), with_kwargs=True
    )
    return steps


def test_report_says_what_was_measured(model, extractor, audio) -> None:
    report = measure_latency(model, extractor, audio, tokens=5, repeats=3, warmup=1, batch=2)
    assert min(report.features, report.encoder, report.decoder) > 0
    assert report.total >= max(report.features, report.encoder, report.decoder)
    assert report.audio_seconds == 0.5
    assert report.real_time_factor == pytest.approx(2 * 0.5 / report.total)
    assert (report.tokens, report.repeats, report.warmup, report.batch) == (5, 3, 1, 2)
    assert (report.device, report.dtype, report.threads) == ("cpu", "float32", torch.get_num_threads())
    assert json.loads(json.dumps(report.to_dict())) == report.to_dict()


def test_decodes_as_many_tokens_as_asked_with_a_cache(model, extractor, audio) -> None:
    steps = decoder_steps(model)
    measure_latency(model, extractor, audio, tokens=7, repeats=2, warmup=1, batch=3)
    assert [tuple(ids.shape) for ids in steps] == [(3, 1)] * 7 * (2 + 1)


def test_decoding_is_greedy(model, extractor, audio) -> None:
    steps = decoder_steps(model)
    measure_latency(model, extractor, audio, tokens=6, repeats=1, warmup=0)
    fed = torch.cat(steps, dim=1)
    features = extractor(audio, sampling_rate=16000, return_tensors="pt")["input_features"]
    with torch.no_grad():
        logits = model.eval()(features, decoder_input_ids=fed).logits
    assert torch.equal(logits[:, :-1].argmax(-1), fed[:, 1:])


def test_tokens_are_capped_at_the_positions_of_the_model(model, extractor, audio) -> None:
    steps = decoder_steps(model)
    report = measure_latency(model, extractor, audio, tokens=100, repeats=1, warmup=0)
    assert report.tokens == len(steps) == 12


def test_each_stage_is_timed_by_itself(model, extractor, audio) -> None:
    model.model.encoder.register_forward_hook(lambda *_: time.sleep(0.2))
    report = measure_latency(model, extractor, audio, tokens=1, repeats=1, warmup=1)
    assert report.encoder >= 0.2 > max(report.features, report.decoder)


def test_warm_up_is_not_counted(model, extractor, audio) -> None:
    calls: list[None] = []

    def slow_at_first(*_: object) -> None:
        time.sleep(0 if calls else 0.4)
        calls.append(None)

    model.model.encoder.register_forward_hook(slow_at_first)
    report = measure_latency(model, extractor, audio, tokens=1, repeats=1, warmup=1)
    assert max(report.encoder, report.total) < 0.15


def test_modes_are_restored_and_evaluation_is_used(model, extractor, audio) -> None:
    model.train()
    model.model.encoder.eval()
    before = [module.training for module in model.modules()]
    during: list[bool] = []
    model.model.decoder.register_forward_hook(lambda module, *_: during.append(module.training))
    measure_latency(model, extractor, audio, tokens=1, repeats=1, warmup=0)
    assert during == [False]
    assert [module.training for module in model.modules()] == before


def test_half_precision_and_a_processor_around_the_extractor(model, extractor, audio) -> None:
    class Processor:
        feature_extractor = extractor

    report = measure_latency(model.to(torch.bfloat16), Processor(), audio, tokens=2, repeats=1, warmup=0)
    assert report.dtype == "bfloat16"


def test_ctc_decodes_no_tokens(audio) -> None:
    class Frames:
        sampling_rate = 16000

        def __call__(self, clips, sampling_rate: int, return_tensors: str) -> BatchFeature:
            frames = torch.stack([torch.as_tensor(clip).view(-1, 80) for clip in clips])
            return BatchFeature({"input_features": frames})

    encoder = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "subsampling_conv_channels": 8,
    }
    model = ParakeetForCTC(ParakeetCTCConfig(vocab_size=20, pad_token_id=19, encoder_config=encoder))
    report = measure_latency(model, Frames(), audio, repeats=1, warmup=0)
    assert report.tokens == 0
    assert min(report.features, report.encoder, report.decoder) > 0


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros((2, 100), np.float32), r"shape \(2, 100\) is not one clip; give mono"),
        (np.zeros(0, np.float32), r"shape \(0,\) is not one clip"),
        (np.zeros(24000, np.float32), "1.5 s is more than the window of 1 s; give a shorter clip"),
    ],
)
def test_bad_audio(model, extractor, samples, message: str) -> None:
    with pytest.raises(SottoError, match=message):
        measure_latency(model, extractor, samples)


@pytest.mark.parametrize(("name", "count"), [("tokens", 0), ("repeats", 0), ("warmup", -1), ("batch", 0)])
def test_bad_counts(model, extractor, audio, name: str, count: int) -> None:
    with pytest.raises(SottoError, match=f"{name}: {count} is too few"):
        measure_latency(model, extractor, audio, **{name: count})


def test_memory_meter_sees_what_comes_and_goes() -> None:
    with MemoryMeter() as meter:
        block = mmap(-1, 64 * MEGABYTE)  # an array could lie where the process has memory left from before
        block.write(bytes(64 * MEGABYTE))
        deadline = time.monotonic() + 20  # on a busy machine the meter's own thread may wait for its turn
        while meter.increase < 60 * MEGABYTE and time.monotonic() < deadline:
            time.sleep(0.02)
        block.close()
    with MemoryMeter() as idle:
        time.sleep(0.03)
    assert 60 * MEGABYTE < meter.increase < 192 * MEGABYTE
    assert meter.peak == meter.start + meter.increase
    assert 0 <= idle.increase < 8 * MEGABYTE


def test_machine_names_the_versions_but_not_the_host() -> None:
    described = machine()
    assert described["torch"] == torch.__version__
    assert described["threads"] == torch.get_num_threads()
    assert described["cores"] == psutil.cpu_count()
    assert described["cpu"]
    assert json.loads(json.dumps(described)) == described
    assert not {"host", "node", "user"} & described.keys()
