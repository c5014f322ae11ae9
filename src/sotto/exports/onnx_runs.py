"""What is timed in onnxruntime: graphs written as exports are."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import onnx
import torch
from torch import nn
from torch.export import Dim

from sotto.checkpoint import Recognizer
from sotto.exports.graphs import to_onnx
from sotto.exports.onnx_folder import graphs
from sotto.exports.onnx_models import OnnxGraph
from sotto.exports.precision import Precision, in_precision, write_graph
from sotto.families import Inputs

Run = Callable[[], dict[str, torch.Tensor]]


def encoder_run(recognizer: Recognizer, inputs: Inputs, precision: Precision, folder: Path) -> Run:
    _, graph = next(graphs(recognizer, precision))  # the first is what hears audio
    return run_of(graph, inputs, folder)


def module_run(module: nn.Module, heard: torch.Tensor, precision: Precision, folder: Path) -> Run:
    """The graph takes batches of any size, as that of an encoder."""
    graph = to_onnx(module, (heard.repeat(2, 1, 1),), ["heard"], ["given"], ({0: Dim("batch")},))
    return run_of(in_precision(graph, precision), {"heard": heard}, folder)


def run_of(graph: onnx.ModelProto, inputs: Inputs, folder: Path) -> Run:
    path = folder / "model.onnx"
    write_graph(graph, path)
    return partial(OnnxGraph(path, spins=False), {name: tensor.numpy() for name, tensor in inputs.items()})
