"""What is measured of a recogniser: cost, errors and speed, as the numbers of a report."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import gather_object
from numpy.typing import NDArray

from sotto.calibration import places, share
from sotto.checkpoint import Recognizer, load
from sotto.data import Clip, ClipSource
from sotto.decoding import Decoding
from sotto.errors import SottoError
from sotto.families.whisper_transcription import LONGEST_PROMPT, has_pipeline
from sotto.layers import FactoredLinear
from sotto.metrics.cost import (
    bytes_on_disk,
    count_flops,
    count_parameters,
    weights_of,
)
from sotto.metrics.errors import ErrorReport, measure_errors
from sotto.metrics.speed import LatencyReport, measure_latency
from sotto.progress import track
from sotto.quantized_layers import QuantizedLinear
from sotto.report.numbers import LayerNumbers, ModelNumbers
from sotto.surgery import get_any_linear, layer_path
from sotto.text import Normalizer
from sotto.transcription import transcribe

TOKENS = 32  # decoder FLOPs and latency are given for a transcript of this length, or the longest the model can write


def measure_cost(recognizer: Recognizer, name: str) -> ModelNumbers:
    """Parameters, FLOPs of one window and of one transcript, and bytes of the weights it was loaded from."""
    model, family = recognizer.model, recognizer.family
    tokens = min(TOKENS, model.config.max_target_positions) if model.config.is_encoder_decoder else 0
    flops = count_flops(model, family.window_frames, tokens)
    return ModelNumbers(
        name=name,
        parameters=count_parameters(model),
        encoder_flops=flops.encoder,
        decoder_flops=flops.decoder,
        decoder_tokens=tokens,
        bytes_on_disk=bytes_on_disk(recognizer.folder) if recognizer.folder is not None else None,
        layers=tuple(layer_numbers(recognizer, flops.by_module)),
        window_seconds=family.window_seconds,
    )


def layer_numbers(recognizer: Recognizer, flops: Mapping[str, int]) -> Iterable[LayerNumbers]:
    """Every linear of every layer, with its FLOPs by the module's name; in reduced attention only the first factor runs
    by itself and is counted."""
    for stack, index, linear in places(recognizer, [stack.name for stack in recognizer.architecture.stacks]):
        module, path = get_any_linear(recognizer.model, stack, index, linear), layer_path(stack, index, linear)
        yield LayerNumbers(
            stack=stack.name,
            layer=index,
            linear=linear,
            inputs=module.in_features,
            outputs=module.out_features,
            rank=module.rank if isinstance(module, FactoredLinear) else None,
            parameters=sum(weights.numel() for weights in weights_of(module).values()),
            flops=flops.get(path, flops.get(f"{path}.first", 0)),
            bits=next((part.bits for part in module.modules() if isinstance(part, QuantizedLinear)), None),
        )


def evaluate(recognizer: Recognizer, clips: ClipSource, decoding: Decoding, normalizer: Normalizer) -> ErrorReport:
    """Transcribe all clips and measure corpus WER and CER; each process of a distributed run transcribes its share.

    Raises SottoError where clips have no transcripts.
    """
    clips.require_transcripts()
    part = share(clips)
    texts: dict[str, str] = {}

    def noted() -> Iterable[Clip]:
        for clip in part:
            texts[clip.name] = clip.text or ""
            yield clip

    results = track(transcribe(recognizer, noted(), decoding), "transcribing", total=size_of(part))
    heard = sorted(gather_object([(result.name, texts[result.name], result.text) for result in results]))
    if not heard:
        raise SottoError(f"no clip of {clips.config.path} could be transcribed")
    names, references, hypotheses = (list(column) for column in zip(*heard, strict=True))
    return measure_errors(names, references, hypotheses, normalizer)


def skipped_lines(clips: ClipSource) -> tuple[str, ...]:
    """The clips that any process skipped, each with its reason; processes may have heard different ones."""
    return tuple(dict.fromkeys(gather_object([f"{clip.name}: {clip.reason}" for clip in clips.skipped])))


def size_of(clips: ClipSource) -> int | None:
    """The number of clips, where it is known."""
    try:
        return len(clips)
    except TypeError:
        return None


def measure_speed(
    recognizer: Recognizer, audio: NDArray[np.float32], repeats: int = 5, warmup: int = 2, tokens: int = TOKENS
) -> LatencyReport:
    """Latency of one clip, cut to the window."""
    samples = int(recognizer.window_seconds * recognizer.sampling_rate)
    model, processor = recognizer.model, recognizer.processor
    return measure_latency(model, processor, audio[:samples], tokens=tokens, repeats=repeats, warmup=warmup)


def measure_pipeline(
    recognizer: Recognizer, audio: NDArray[np.float32], repeats: int = 5, tokens: int = TOKENS
) -> float | None:
    """Median seconds of the runtime's own pipeline for that clip and as many tokens, or as fit behind its prompt.

    None where there is no such pipeline.
    """
    model = recognizer.model
    if not has_pipeline(model, Decoding()):
        return None
    samples = int(recognizer.window_seconds * recognizer.sampling_rate)
    tokens = min(tokens, model.config.max_target_positions - LONGEST_PROMPT)
    seconds = []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        model.pipeline.write(recognizer.family, audio[:samples], tokens)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def measure_speeds(
    checkpoints: Sequence[str | Path], audio: NDArray[np.float32], device: torch.device, rounds: int = 3
) -> list[LatencyReport]:
    """Latency of each checkpoint: its median visit."""
    visits = visit_in_turn([partial(load, checkpoint, device=device) for checkpoint in checkpoints], audio, rounds)
    return [sorted(each, key=lambda visit: visit.total)[rounds // 2] for each in visits]


def visit_in_turn(
    openers: Sequence[Callable[[], Recognizer]], audio: NDArray[np.float32], rounds: int
) -> list[list[LatencyReport]]:
    """The visits to each model, which is opened anew. They take turns: a machine that slows down slows all."""
    visits: list[list[LatencyReport]] = [[] for _ in openers]
    for _ in track(range(rounds), "measuring speed"):
        for own, opener in zip(visits, openers, strict=True):
            own.append(measure_speed(opener(), audio, repeats=3, warmup=1))
    return visits
