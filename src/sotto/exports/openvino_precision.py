"""OpenVINO models in whole numbers of 8 bits, by NNCF."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout

import nncf
import openvino

from sotto.exports.graphs import quiet
from sotto.exports.signal_stack import signal_stack_kept
from sotto.exports.targets import CALIBRATED
from sotto.families.family import Inputs


def in_precision(model: openvino.Model, precision: str, heard: Sequence[Inputs]) -> openvino.Model:
    """The model in that precision.

    `int8`: weights, tables of tokens too, with a scale an output; `int8-calibrated`: what is multiplied by them as
    well, with scales from what the model `heard`.
    """
    found: openvino.Model = model
    with signal_stack_kept(), quiet(), redirect_stdout(sys.stderr):  # bars of progress
        if precision == "int8":
            found = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
        elif precision == CALIBRATED:
            inputs = [{name: tensor.numpy() for name, tensor in each.items()} for each in heard]
            found = nncf.quantize(
                model, nncf.Dataset(inputs), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(inputs)
            )
    return found
