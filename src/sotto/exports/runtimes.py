"""The runtimes in which an encoder and its parts can be timed on this machine."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import nn

from sotto.checkpoint import Recognizer
from sotto.errors import SottoError
from sotto.exports.copies import floating_copy
from sotto.exports.targets import CALIBRATED, target_named
from sotto.families import Inputs
from sotto.progress import track

ROUNDS = 7
TURNS = 7  # of parts in a round: they are short, and much else that a machine does is not

RuntimeName = Literal["torch", "onnx", "onnx-int8", "openvino", "openvino-int8", "openvino-int8-calibrated"]
Run = Callable[[], object]
"""Computes once, and is done when it returns."""
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Runtime:
    """Module with the functions `encoder_run` and `module_run`; imported only when asked for, as with a `Target`."""

    module: str
    target: str | None = None
    """what has to be installed, and how graphs are written; None is torch itself"""
    precision: str = "float32"
    rank_multiple: int = 16
    """up to which a rank is rounded for next to nothing (benchmarks/rank_times.py)"""

    def prepared(self, recognizer: Recognizer) -> Recognizer:
        """What is computed there: the model as it is in torch, elsewhere a copy in floats on the CPU."""
        return recognizer if self.target is None else replace(recognizer, model=floating_copy(recognizer))

    def encoder_run(self, recognizer: Recognizer, folder: Path) -> Run:
        """The encoder over one window; files are put in `folder`, which must stay: OpenVINO goes on reading them."""
        return self.written("encoder_run", recognizer, window_inputs(recognizer), folder)

    def module_run(self, module: nn.Module, heard: torch.Tensor, folder: Path) -> Run:
        """A module of one tensor (batch, rows, inputs) that gives one, over `heard`."""
        return self.written("module_run", module, heard, folder)

    def written(self, function: str, what: object, heard: object, folder: Path) -> Run:
        found: Run = getattr(import_module(self.module), function)(
            what, heard, self.precision, Path(tempfile.mkdtemp(dir=folder))
        )
        return found


RUNTIMES: Mapping[str, Runtime] = {
    "torch": Runtime("sotto.exports.torch_runs"),
    "onnx": Runtime("sotto.exports.onnx_runs", "onnx"),
    "onnx-int8": Runtime("sotto.exports.onnx_runs", "onnx", "int8", rank_multiple=32),
    "openvino": Runtime("sotto.exports.openvino_runs", "openvino", rank_multiple=32),
    "openvino-int8": Runtime("sotto.exports.openvino_runs", "openvino", "int8", rank_multiple=32),
    "openvino-int8-calibrated": Runtime("sotto.exports.openvino_runs", "openvino", CALIBRATED, rank_multiple=64),
}


def place_of(name: str | None, device: torch.device) -> str:
    """What computes a model of that device where time is measured in that runtime: all but torch take the CPU."""
    runtime, threads = name or "torch", torch.get_num_threads()
    if runtime == "torch" and device.type != "cpu":
        return f"torch on {device}"
    return f"{runtime} with {threads} thread{'' if threads == 1 else 's'}"


def check_runtime(name: str | None, share: float | None) -> None:
    """Raises SottoError for a runtime without a `time` to measure in it, one that is not known, or not installed."""
    if name is None:
        return
    if share is None:
        raise SottoError("runtime is where time is measured; give time, the share of it that is to be left")
    if name not in RUNTIMES:
        raise SottoError(f"runtime '{name}' is not one of {', '.join(RUNTIMES)}")
    runtime = RUNTIMES[name]
    if runtime.target is not None:
        target_named(runtime.target, runtime.precision)


def window_inputs(recognizer: Recognizer) -> Inputs:
    """One window of silence."""
    silence = np.zeros(round(recognizer.window_seconds * recognizer.sampling_rate), dtype=np.float32)
    return recognizer.family.inputs([silence])


def median_seconds(whole: Run, groups: Iterable[Mapping[Key, Run]]) -> tuple[float, dict[Key, float]]:
    """Of the whole, and of its parts, where those of a group are to be compared and so take turns.

    In every round the whole runs and all groups do: what else the machine does falls on all alike. One more, before, is
    not counted.
    """
    groups = list(groups)
    wholes: list[float] = []
    parts: dict[Key, list[float]] = {}
    for _ in track(range(ROUNDS + 1), "timing"):
        wholes.append(seconds_of(whole))
        for group in groups:
            for _ in range(TURNS):
                for key, run in group.items():
                    parts.setdefault(key, []).append(seconds_of(run))
    return statistics.median(wholes[1:]), {key: statistics.median(own[TURNS:]) for key, own in parts.items()}


def seconds_of(run: Run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
