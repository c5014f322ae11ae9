"""What is timed in OpenVINO: models written as exports are, computed as OpenVINO sees fit on the machine."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import openvino
import torch
from torch import nn
from torch.export import Dim

from sotto.checkpoint import Recognizer
from sotto.data import Clip
from sotto.exports.openvino_folder import models
from sotto.exports.openvino_graphs import converted
from sotto.exports.openvino_models import OpenVinoGraph
from sotto.exports.openvino_precision import in_precision
from sotto.families import Inputs

Run = Callable[[], dict[str, torch.Tensor]]


def encoder_run(recognizer: Recognizer, inputs: Inputs, precision: str, folder: Path) -> Run:
    """Where scales are calibrated they are those of silence: time does not depend on them."""
    silence = Clip("silence", np.zeros(recognizer.sampling_rate, dtype=np.float32), recognizer.sampling_rate)
    _, model = next(models(recognizer, precision, [silence]))  # the first is what hears audio
    return run_of(model, inputs, folder)


def module_run(module: nn.Module, heard: torch.Tensor, precision: str, folder: Path) -> Run:
    """The model takes batches of any size, as that of an encoder."""
    model = converted(module, (heard.repeat(2, 1, 1),), ({0: Dim.DYNAMIC},), ["heard"], ["given"])
    return run_of(in_precision(model, precision, [{"heard": heard}]), {"heard": heard}, folder)


def run_of(model: openvino.Model, inputs: Inputs, folder: Path) -> Run:
    path = folder / "model.xml"
    openvino.save_model(model, path, compress_to_fp16=False)
    return partial(OpenVinoGraph(path, exact=False), {name: tensor.numpy() for name, tensor in inputs.items()})
