"""The numbers of a run, as data: what is measured of each model, and what the measurements stand on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sotto.metrics.cost import Parameters
from sotto.metrics.errors import Comparison, ErrorReport
from sotto.metrics.speed import LatencyReport


@dataclass(frozen=True)
class LayerNumbers:
    """One linear of one layer. `rank` is None where it is not factored; FLOPs as those of the model."""

    stack: str
    layer: int
    linear: str
    inputs: int
    outputs: int
    rank: int | None
    parameters: int
    flops: int
    bits: int | None = None
    """of the weights, where they are quantized"""


@dataclass(frozen=True)
class ModelNumbers:
    """One model of a run: the base, or what a step made of it. Bytes are of the weights on disk."""

    name: str
    parameters: Parameters
    encoder_flops: int
    decoder_flops: int
    decoder_tokens: int
    bytes_on_disk: int | None
    layers: tuple[LayerNumbers, ...]
    notes: tuple[str, ...] = ()
    """what the step says of its own work, a line each"""
    errors: ErrorReport | None = None
    comparison: Comparison | None = None
    """against the base, on the same clips"""
    latency: LatencyReport | None = None
    peak_memory: int | None = None
    """resident bytes while transcribing"""
    memory_increase: int | None = None
    """those beyond what the process had before the model was loaded"""
    load_seconds: float | None = None
    """from the files to a model that is ready to run"""
    pipeline_seconds: float | None = None
    """that the runtime's own pipeline, where there is one, takes for the same audio and as many tokens, or as fit"""
    seconds: float = 0.0
    """how long the step took"""
    window_seconds: float | None = None
    """length of audio that the FLOPs are of"""


@dataclass(frozen=True)
class RunNumbers:
    """A whole run."""

    title: str
    base: str
    models: tuple[ModelNumbers, ...]
    decoding: str
    test_clips: str
    """what the errors were measured on, in words: path, clips, seconds"""
    skipped: Mapping[str, tuple[str, ...]]
    """role -> clips that were skipped, each with its reason"""
    machine: Mapping[str, str | int]
    recipe: str
    """the resolved recipe as YAML"""
    commit: str | None = None
    exports: tuple[ModelNumbers, ...] = ()
    """the last model in other runtimes"""
