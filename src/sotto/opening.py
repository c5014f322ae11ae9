"""Whatever transcribes: a checkpoint, or what was exported of one."""

from __future__ import annotations

from pathlib import Path

import torch

from sotto.checkpoint import Recognizer, load
from sotto.export import is_export, open_export
from sotto.export.record import read_record
from sotto.measurement import measure_cost
from sotto.report.numbers import ModelNumbers

WEIGHTS = (".onnx", ".onnx_data", ".safetensors")


def open_model(
    name: str | Path, *, device: str | torch.device | None = None, dtype: torch.dtype | None = None
) -> Recognizer:
    """A checkpoint on `device` in `dtype`; an export on the CPU, in its own precision."""
    return open_export(name) if is_export(name) else load(name, device=device, dtype=dtype)


def cost_of(recognizer: Recognizer, name: str) -> ModelNumbers:
    """Parameters and FLOPs, for an export those of the model that it was made of; bytes on disk."""
    if not is_export(name):
        return measure_cost(recognizer, name)
    record, folder = read_record(Path(name)), Path(name)
    return ModelNumbers(
        name=name,
        parameters=record.parameters,
        encoder_flops=record.encoder_flops,
        decoder_flops=record.decoder_flops,
        decoder_tokens=record.decoder_tokens,
        bytes_on_disk=sum(path.stat().st_size for path in folder.rglob("*") if path.suffix in WEIGHTS),
        layers=(),
        window_seconds=record.window_seconds,
    )
