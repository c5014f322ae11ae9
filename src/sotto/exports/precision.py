"""ONNX graphs in 16 bits, and in whole numbers of 8 bits."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from sotto.exports.graphs import quiet

Precision = Literal["float32", "float16", "int8"]
HALVED = 4096  # values at least, of what is stored in 16 bits
LARGEST_FILE = 2**31 - 2**24  # bytes; protocol buffers end at 2 GiB


def in_precision(model: onnx.ModelProto, precision: Precision) -> onnx.ModelProto:
    """The graph in that precision; what goes in and out stays as it is."""
    if precision == "float16":
        # Shapes cannot be inferred in memory for a large graph. They are asked for where an operator stays in float32,
        # as Range and Max would; those of our graphs compute whole numbers.
        found: onnx.ModelProto = convert_float_to_float16(
            model, keep_io_types=True, disable_shape_infer=is_large(model)
        )
        OnnxModel(found).topological_sort()  # casts were appended at the end
        return found
    return in_int8(model) if precision == "int8" else model


def in_int8(model: onnx.ModelProto) -> onnx.ModelProto:
    """Weights of matrix products in 8 bits, a scale an output; inputs are rounded as they come.

    The table of tokens too, which is the output head's: onnxruntime's own quantization leaves a transposed weight.
    Convolutions and positions are stored in 16 bits: a small model's file would else be a tenth larger.
    """
    quantize_table(model)
    large = is_large(model)
    with tempfile.TemporaryDirectory() as scratch, quiet():
        before, after = Path(scratch) / "before.onnx", Path(scratch) / "after.onnx"
        write_graph(model, before)
        quantize_dynamic(
            before,
            after,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=large,
            extra_options={"MatMulConstBOnly": True},
        )
        found = onnx.load(after)
    store_in_16_bits(found.graph)
    return found


def store_in_16_bits(graph: onnx.GraphProto) -> None:
    """What is large and still floating; it is computed with in float32, as before."""
    casts = []
    for tensor in list(graph.initializer):
        if tensor.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        if values.size < HALVED or np.abs(values).max() > np.finfo(np.float16).max:
            continue
        name = f"{tensor.name}_half"
        graph.initializer.remove(tensor)
        graph.initializer.append(numpy_helper.from_array(values.astype(np.float16), name))
        casts.append(helper.make_node("Cast", [name], [tensor.name], to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def quantize_table(model: onnx.ModelProto) -> None:
    """Put the table of tokens, looked up and, transposed, multiplied by, in 8 bits: once, with a scale a token."""
    graph = model.graph
    tables = {node.input[0]: node for node in graph.node if node.op_type == "Gather"}
    for tensor in list(graph.initializer):
        turned = next((n for n in graph.node if n.op_type == "Transpose" and n.input[0] == tensor.name), None)
        product = next(
            (n for n in graph.node if turned and n.op_type == "MatMul" and n.input[1] in turned.output), None
        )
        if tensor.name not in tables or turned is None or product is None:
            continue
        codes, scale = rounded(numpy_helper.to_array(tensor))
        name = tensor.name
        graph.initializer.remove(tensor)
        graph.initializer.append(numpy_helper.from_array(codes, f"{name}_codes"))
        graph.initializer.append(numpy_helper.from_array(scale, f"{name}_scale"))
        replace(graph, tables[name], looked_up(name, tables[name]))
        replace(graph, product, multiplied(name, product))
        graph.node.remove(turned)


def rounded(table: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes (tokens, width) and scales (tokens, 1)."""
    scale = np.maximum(np.abs(table).max(1, keepdims=True), 1e-12) / 127
    return np.rint(table / scale).astype(np.int8), scale.astype(np.float32)


def looked_up(table: str, old: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """Rows of the table for `old`, a Gather."""
    tokens, result = old.input[1], old.output[0]
    yield helper.make_node("Gather", [f"{table}_codes", tokens], [f"{table}_rows"])
    yield helper.make_node("Cast", [f"{table}_rows"], [f"{table}_floating"], to=TensorProto.FLOAT)
    yield helper.make_node("Gather", [f"{table}_scale", tokens], [f"{table}_row_scales"])
    yield helper.make_node("Mul", [f"{table}_floating", f"{table}_row_scales"], [result])


def multiplied(table: str, old: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """States times the table, for `old`, a MatMul."""
    states, result = old.input[0], old.output[0]
    rounded_states = [f"{table}_{part}" for part in ("states", "states_scale", "states_zero")]
    yield helper.make_node("DynamicQuantizeLinear", [states], rounded_states)
    yield helper.make_node("Transpose", [f"{table}_codes"], [f"{table}_turned"], perm=[1, 0])
    yield helper.make_node(
        "MatMulInteger", [rounded_states[0], f"{table}_turned", rounded_states[2]], [f"{table}_sums"]
    )
    yield helper.make_node("Cast", [f"{table}_sums"], [f"{table}_sums_floating"], to=TensorProto.FLOAT)
    yield helper.make_node("Transpose", [f"{table}_scale"], [f"{table}_scale_turned"], perm=[1, 0])
    yield helper.make_node("Mul", [f"{table}_sums_floating", f"{table}_scale_turned"], [f"{table}_scaled"])
    yield helper.make_node("Mul", [f"{table}_scaled", rounded_states[1]], [result])


def replace(graph: onnx.GraphProto, old: onnx.NodeProto, new: Iterator[onnx.NodeProto]) -> None:
    """Put `new` where `old` is: nodes stand in the order of computation."""
    nodes = list(graph.node)
    place = nodes.index(old)
    nodes[place : place + 1] = new
    del graph.node[:]
    graph.node.extend(nodes)


def is_large(model: onnx.ModelProto) -> bool:
    """Whether one file cannot hold it. Its own size cannot be asked for: that fails where it is too large."""
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer) > LARGEST_FILE


def write_graph(model: onnx.ModelProto, path: Path) -> None:
    """One file, and where it would be too large, `path`_data with the weights beside it."""
    if is_large(model):
        onnx.save(model, path, save_as_external_data=True, location=f"{path.name}_data")
    else:
        onnx.save(model, path)
