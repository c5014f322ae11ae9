"""What is timed in torch: the model's own modules, on its device and in its precision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from sotto.checkpoint import Recognizer
from sotto.families import Inputs, evaluating

Run = Callable[[], None]


def encoder_run(recognizer: Recognizer, inputs: Inputs, _precision: str, _folder: Path) -> Run:
    def run() -> None:
        with evaluating(recognizer.model), torch.inference_mode():
            recognizer.family.encode(inputs)
        synchronize(recognizer.model.device)

    return run


def module_run(module: nn.Module, heard: torch.Tensor, _precision: str, _folder: Path) -> Run:
    module.eval()

    def run() -> None:
        with torch.inference_mode():
            module(heard)
        synchronize(heard.device)

    return run


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
