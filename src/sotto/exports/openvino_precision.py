"""OpenVINO models in bfloat16, and, by NNCF, in whole numbers of 8 bits."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout

import nncf
import numpy as np
import openvino
import torch
from openvino import opset13

from sotto.exports.graphs import quiet
from sotto.exports.openvino_graphs import redirect
from sotto.exports.signal_stack import signal_stack_kept
from sotto.exports.targets import CALIBRATED
from sotto.families.family import Inputs

LARGEST = torch.finfo(torch.bfloat16).max


def in_precision(model: openvino.Model, precision: str, heard: Sequence[Inputs]) -> openvino.Model:
    """The model in that precision; `float16` is for OpenVINO to store.

    `int8`: weights, tables of tokens too, with a scale an output; `int8-calibrated`: what is multiplied by them as
    well, with scales from what the model `heard`.
    """
    found = model
    if precision == "bfloat16":
        store_in_bfloat16(model)
    with signal_stack_kept(), quiet(), redirect_stdout(sys.stderr):  # bars of progress
        if precision == CALIBRATED:
            inputs = [{name: tensor.numpy() for name, tensor in each.items()} for each in heard]
            found = nncf.quantize(
                model, nncf.Dataset(inputs), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(inputs)
            )
        if precision in ("int8", CALIBRATED):  # calibrating leaves a Conformer's projections of positions as they were
            found = nncf.compress_weights(found, mode=nncf.CompressWeightsMode.INT8_SYM)
    return found


def store_in_bfloat16(model: openvino.Model) -> None:
    """Every floating constant, which is then computed with as before; the largest do not become infinite.

    numpy, and so OpenVINO from Python, has no such numbers: their bits are torch's.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Constant" and node.get_element_type() == openvino.Type.f32:
            stored = openvino.Tensor(openvino.Type.bf16, node.shape)
            values = torch.from_numpy(node.data.copy())
            finite = values.clamp(-LARGEST, LARGEST)
            stored.data.view(np.int16)[...] = torch.where(values.isinf(), values, finite).bfloat16().view(torch.int16)
            redirect(node.output(0).get_target_inputs(), opset13.convert(opset13.constant(stored), "f32"))
