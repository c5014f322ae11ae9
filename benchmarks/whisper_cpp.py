"""A Whisper as a file of whisper.cpp in `q8_0`, and its speed there (pywhispercpp).

whisper.cpp has the published shapes only: no factors, no fewer heads, no narrower networks. It tells its special tokens
by the size of the vocabulary, so that a model with another one is timed but writes no text.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.convert_slow_tokenizer import bytes_to_unicode

from sotto.checkpoint import Recognizer
from sotto.errors import SottoError
from sotto.metrics.speed import LatencyReport, MemoryMeter
from sotto.report.numbers import ModelNumbers
from sotto.side_by_side import Timing, audio_for

MAGIC, Q8_0_FILE = 0x67676D6C, 2007  # version 2 of the quantized formats, q8_0
FLOAT32, FLOAT16, Q8_0 = 0, 1, 8  # numbers of ggml's types
BLOCK = 32  # weights that share a scale
WARMUP = 2
NAMES = {
    "model.": "",
    "layers": "blocks",
    "self_attn_layer_norm": "attn_ln",
    "self_attn": "attn",
    "encoder_attn_layer_norm": "cross_attn_ln",
    "encoder_attn": "cross_attn",
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    "out_proj": "out",
    "final_layer_norm": "mlp_ln",
    "fc1": "mlp.0",
    "fc2": "mlp.2",
    "encoder.layer_norm": "encoder.ln_post",
    "decoder.layer_norm": "decoder.ln",
    "embed_positions.weight": "positional_embedding",
    "embed_tokens": "token_embedding",
}
"""transformers' names and, in the order in which they are replaced, whisper.cpp's"""


def write_ggml(recognizer: Recognizer, path: Path) -> Path:
    """The dense model in `q8_0`: matrices in blocks of 8 bits, convolutions in 16, all else in 32.

    Raises SottoError for a width that is no multiple of a block.
    """
    if recognizer.model.config.d_model % BLOCK:
        raise SottoError(f"a width of {recognizer.model.config.d_model} is no multiple of the {BLOCK} that q8_0 needs")
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        write_head(recognizer, file)
        for name, tensor in recognizer.model.state_dict().items():
            if name != "proj_out.weight":  # the table of tokens again
                write_tensor(ggml_name(name), tensor.float().cpu().numpy(), file)
    return partial.replace(path)


def write_head(recognizer: Recognizer, file: BinaryIO) -> None:
    """Sizes, mel filters (bins, 201) and the bytes of all tokens."""
    config, filters = recognizer.model.config, recognizer.processor.feature_extractor.mel_filters.T
    audio = (config.max_source_positions, config.d_model, config.encoder_attention_heads, config.encoder_layers)
    text = (config.max_target_positions, config.d_model, config.decoder_attention_heads, config.decoder_layers)
    file.write(struct.pack("<I11i", MAGIC, config.vocab_size, *audio, *text, config.num_mel_bins, Q8_0_FILE))
    file.write(struct.pack("<2i", *filters.shape))
    file.write(np.ascontiguousarray(filters, np.float32).tobytes())
    tokens = list(token_bytes(recognizer.processor.tokenizer))
    file.write(struct.pack("<i", len(tokens)))
    for token in tokens:
        file.write(struct.pack("<I", len(token)) + token)


def token_bytes(tokenizer: Any) -> Iterator[bytes]:
    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1]):
        is_text = all(character in byte_of for character in token)
        yield bytes(byte_of[character] for character in token) if is_text else token.encode()


def ggml_name(name: str) -> str:
    for own, other in NAMES.items():
        name = name.replace(own, other)
    return name


def write_tensor(name: str, values: NDArray[np.float32], file: BinaryIO) -> None:
    """Shape (its last axis first), name, numbers."""
    kind, written = FLOAT32, values.astype(np.float32)
    if "conv" in name:
        kind = FLOAT16 if values.ndim == 3 else FLOAT32
        written = values.astype(np.float16) if values.ndim == 3 else values[:, None]  # a bias is a column
    elif values.ndim == 2 and "positional" not in name:
        kind, written = Q8_0, values
    encoded = name.encode()
    file.write(struct.pack("<3i", written.ndim, len(encoded), kind))
    file.write(struct.pack(f"<{written.ndim}i", *reversed(written.shape)) + encoded)
    file.write(blocks(written) if kind == Q8_0 else np.ascontiguousarray(written).tobytes())


def blocks(values: NDArray[np.float32]) -> bytes:
    """A 16-bit scale and 32 codes for every 32 numbers of a row."""
    rows = values.reshape(-1, BLOCK)
    scales = np.abs(rows).max(1, keepdims=True) / 127
    codes = np.rint(rows / np.maximum(scales, 1e-12)).astype(np.int8)
    return np.concatenate([scales.astype(np.float16).view(np.int8), codes], 1).tobytes()


def visit(path: str, timing: Timing, dense: ModelNumbers) -> ModelNumbers:
    """As `side_by_side.visit`, of a file of whisper.cpp whose model costs what `dense` does; in its own process."""
    import _pywhispercpp as runtime
    from pywhispercpp.utils import redirect_stderr

    threads = timing.threads or torch.get_num_threads()
    audio = audio_for(timing, 16_000, dense.window_seconds or 30.0)
    with MemoryMeter() as meter, redirect_stderr(to=None):
        start = time.perf_counter()
        context = runtime.whisper_init_from_file_with_params(path, runtime.whisper_context_default_params())
        load_seconds = time.perf_counter() - start
        passes = [timed_pass(runtime, context, audio, timing.tokens, threads) for _ in range(WARMUP + timing.repeats)]
    features, encoder, decoder = (median(stage) for stage in zip(*passes[WARMUP:], strict=True))
    total, seconds = median(sum(stages) for stages in passes[WARMUP:]), len(audio) / 16_000
    latency = LatencyReport(
        features,
        encoder,
        decoder,
        total,
        real_time_factor=seconds / total,
        repeats=timing.repeats,
        warmup=WARMUP,
        audio_seconds=seconds,
        tokens=timing.tokens,
        device="cpu",
        dtype="q8_0",
        threads=threads,
        batch=1,
    )
    return replace(
        dense,
        name=path,
        bytes_on_disk=Path(path).stat().st_size,
        layers=(),
        latency=latency,
        peak_memory=meter.peak,
        memory_increase=meter.increase,
        load_seconds=load_seconds,
    )


def timed_pass(
    runtime: Any, context: Any, audio: NDArray[np.float32], tokens: int, threads: int, positions: int | None = None
) -> tuple[float, float, float]:
    """Seconds of features, encoder and decoder, which gets the same token again and again; `positions` of the encoder
    are heard, or, where none are named, as many as before."""
    start = time.perf_counter()
    runtime.whisper_pcm_to_mel(context, audio, len(audio), threads)
    if positions is not None:
        hear_at_most(runtime, context, positions)
    extracted = time.perf_counter()
    runtime.whisper_encode(context, 0, threads)
    listened = time.perf_counter()
    for position in range(tokens):
        runtime.whisper_decode(context, 0, 1, position, threads)
    return extracted - start, listened - extracted, time.perf_counter() - listened


def hear_at_most(runtime: Any, context: Any, positions: int) -> None:
    """What follows hears that many positions of the encoder, as with whisper.cpp's `audio_ctx`; 0 is all of them.

    `whisper_full` alone takes that setting, and keeps it: here its callback stops it before it hears anything. It goes
    by the features that are there already, which it wants 0.1 s of.
    """
    from pywhispercpp.utils import redirect_stderr

    settings = runtime.whisper_full_default_params(runtime.whisper_sampling_strategy.WHISPER_SAMPLING_GREEDY)
    settings.audio_ctx, settings.print_progress = positions, False
    settings.set_encoder_begin_callback(lambda *_: False)
    with redirect_stderr(to=None):  # it tells of being stopped
        runtime.whisper_full(context, settings, np.zeros(0, np.float32), 0)
