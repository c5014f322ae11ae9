"""The table of tokens in whole numbers: looked up and multiplied by, stored once."""

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from sotto.exports.precision import HALVED, quantize_table, rounded, store_in_16_bits


def decoder(table: NDArray[np.float32]) -> onnx.ModelProto:
    """Rows of the table for tokens, and the products of those rows with the whole table."""
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "tokens"], ["rows"]),
            helper.make_node("Transpose", ["table"], ["turned"], perm=[1, 0]),
            helper.make_node("MatMul", ["rows", "turned"], ["scores"]),
        ],
        "decoder",
        [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", f"{name}_size"]) for name in ("rows", "scores")],
        [numpy_helper.from_array(table, "table")],
    )
    found = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    found.ir_version = 10
    return found


def test_codes_and_scales_by_hand() -> None:
    codes, scale = rounded(np.array([[127.0, -12.7, 0.4], [0.0, 0.0, 0.0], [-0.5, 0.25, 0.0]], np.float32))
    np.testing.assert_array_equal(codes, [[127, -13, 0], [0, 0, 0], [-127, 64, 0]])
    np.testing.assert_allclose(scale[:, 0], [1.0, 1e-12 / 127, 0.5 / 127], rtol=1e-6)


def test_both_ends_use_one_table_of_whole_numbers() -> None:
    table = np.random.default_rng(0).standard_normal((50, 16)).astype(np.float32)
    table[3] *= 20  # a scale a token keeps the others exact
    model = decoder(table)
    quantize_table(model)
    onnx.checker.check_model(model)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    assert {name: list(tensor.dims) for name, tensor in stored.items()} == {
        "table_codes": [50, 16],
        "table_scale": [50, 1],
    }
    assert stored["table_codes"].data_type == TensorProto.INT8
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    rows, scores = session.run(None, {"tokens": np.array([7, 9])})
    codes, scale = rounded(table)
    np.testing.assert_allclose(rows, (codes * scale)[[7, 9]], rtol=1e-6)
    table_back = codes * scale
    step = (max(rows.max(), 0) - min(rows.min(), 0)) / 255  # states are rounded to 8 bits, by one scale for all
    assert (np.abs(scores - rows @ table_back.T) <= step * np.abs(table_back).sum(1) + 1e-4).all()


def test_a_table_that_is_no_head_stays() -> None:
    model = decoder(np.ones((5, 4), np.float32))
    del model.graph.node[1:]
    before = model.SerializeToString()
    quantize_table(model)
    assert model.SerializeToString() == before


def test_what_is_large_and_floating_is_stored_in_16_bits() -> None:
    generator = np.random.default_rng(0)
    stored = {
        "large": generator.standard_normal(HALVED).astype(np.float32),
        "small": generator.standard_normal(HALVED - 1).astype(np.float32),
        "beyond": np.full(HALVED, 1e5, np.float32),  # more than 16 bits can say
        "whole": np.arange(HALVED),
    }
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name in stored]
    outputs = [
        helper.make_tensor_value_info(f"{name}_out", helper.np_dtype_to_tensor_dtype(values.dtype), [values.size])
        for name, values in stored.items()
    ]
    weights = [numpy_helper.from_array(values, name) for name, values in stored.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "weights", [], outputs, weights), opset_imports=[helper.make_opsetid("", 20)]
    )
    model.ir_version = 10
    store_in_16_bits(model.graph)
    onnx.checker.check_model(model)
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert kinds.pop("large_half") == TensorProto.FLOAT16
    assert kinds == {"small": TensorProto.FLOAT, "beyond": TensorProto.FLOAT, "whole": TensorProto.INT64}
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = dict(zip(stored, session.run(None, {}), strict=True))
    np.testing.assert_array_equal(found["large"], stored["large"].astype(np.float16).astype(np.float32))
    for name in ("small", "beyond", "whole"):
        np.testing.assert_array_equal(found[name], stored[name])
