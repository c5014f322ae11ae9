"""Whatever transcribes: a checkpoint, or what was exported of one."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import torch

from sotto.checkpoint import Recognizer, load
from sotto.errors import SottoError
from sotto.exports import TARGETS, is_export, open_export
from sotto.exports.record import read_record
from sotto.measurement import measure_cost
from sotto.report.numbers import ModelNumbers


def open_model(
    name: str | Path, *, device: str | torch.device | None = None, dtype: torch.dtype | None = None
) -> Recognizer:
    """A checkpoint on `device` in `dtype`, or an export; another runtime than torch has its own of both.

    Raises SottoError where such an export is asked for in another precision than float32, in which it is called.
    """
    if not is_export(name):
        return load(name, device=device, dtype=dtype)
    check_dtype(name, dtype)
    target, found = TARGETS[read_record(Path(name)).target], open_export(name)
    if target.in_torch:
        found.model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"), dtype or torch.float32)
    return found


def check_dtype(name: str | Path, dtype: torch.dtype | None) -> None:
    """Raises SottoError as `open_model` does, before anything is opened."""
    if is_on_cpu(name) and dtype not in (None, torch.float32):
        raise SottoError(f"{name}: an export has the precision that it was written in; leave out dtype")


def import_runtime(name: str | Path) -> None:
    """Import what an export is opened with, which takes its time: what is left of opening is the model's."""
    if is_export(name):
        import_module(TARGETS[read_record(Path(name)).target].module)


def is_on_cpu(name: str | Path) -> bool:
    """Whether it is an export that another runtime than torch computes."""
    return is_export(name) and not TARGETS[read_record(Path(name)).target].in_torch


def runtime_of(name: str | Path) -> str:
    """What computes it: torch, or of an export the target and its precision."""
    if not is_export(name):
        return "torch"
    record = read_record(Path(name))
    return f"{record.target} {record.precision}"


def cost_of(recognizer: Recognizer, name: str) -> ModelNumbers:
    """Parameters and FLOPs; of a graph, which does not tell them, those of the model that it was made of."""
    if not is_on_cpu(name):
        return measure_cost(recognizer, name)
    record, folder = read_record(Path(name)), Path(name)
    return ModelNumbers(
        name=name,
        parameters=record.parameters,
        encoder_flops=record.encoder_flops,
        decoder_flops=record.decoder_flops,
        decoder_tokens=record.decoder_tokens,
        bytes_on_disk=sum(path.stat().st_size for path in folder.glob(TARGETS[record.target].files)),
        layers=(),
        window_seconds=record.window_seconds,
    )
