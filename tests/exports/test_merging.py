"""Two small graphs, merged by hand-made rules."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from sotto.exports.merging import merged
from sotto.exports.short_names import short_names


def model(
    name: str, inputs: dict[str, list[object]], nodes: list[onnx.NodeProto], outputs: list[str]
) -> onnx.ModelProto:
    """With two weights of the same value under names of its own."""
    weights = [
        numpy_helper.from_array(np.array([2.0, 3.0], np.float32), f"{name}_weight"),
        numpy_helper.from_array(np.array([2.0, 3.0], np.float32), "again"),
    ]
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info(key, TensorProto.FLOAT, shape) for key, shape in inputs.items()],
        [helper.make_tensor_value_info(key, TensorProto.FLOAT, None) for key in outputs],
        weights,
    )
    found = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    found.ir_version = 10
    return found


def two() -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """first: y = 2x, 3x and what is heard; following: y = past + weight. Inner names are the same in both."""
    first = model(
        "first",
        {"x": ["n"], "heard": ["n"]},
        [
            helper.make_node("Mul", ["x", "first_weight"], ["inner"]),
            helper.make_node("Add", ["inner", "again"], ["inner2"]),
            helper.make_node("Sub", ["inner2", "again"], ["y"]),
            helper.make_node("Identity", ["heard"], ["kept"]),
        ],
        ["y", "kept"],
    )
    following = model(
        "following",
        {"x": ["n"], "past.key": ["n", 4]},
        [helper.make_node("Add", ["x", "following_weight"], ["y"])],
        ["y"],
    )
    return first, following


def run(found: onnx.ModelProto, choice: bool, past: tuple[int, int] = (0, 0)) -> list[np.ndarray]:
    onnx.checker.check_model(found)
    session = onnxruntime.InferenceSession(found.SerializeToString(), providers=["CPUExecutionProvider"])
    names = {value.name for value in session.get_inputs()}
    assert names == {"x", "heard", "past.key", "use_cache_branch"}
    arrays = {
        "x": np.array([1.0, 10.0], np.float32),
        "heard": np.array([5.0, 6.0], np.float32),
        "past.key": np.zeros(past, np.float32),
        "use_cache_branch": np.array([choice]),
    }
    return session.run(None, arrays)


def test_each_branch_computes_its_graph() -> None:
    found = merged(*two())
    y, kept = run(found, choice=False)
    np.testing.assert_array_equal(y, [2.0, 30.0])
    np.testing.assert_array_equal(kept, [5.0, 6.0])
    y, kept = run(found, choice=True, past=(2, 3))  # keys of another size than the graph was traced with
    np.testing.assert_array_equal(y, [3.0, 13.0])
    assert kept.size == 0  # it did not change


def test_equal_weights_are_there_once() -> None:
    first, following = two()
    assert len(merged(first, following).graph.initializer) == 1
    other = numpy_helper.from_array(np.array([2.0, 4.0], np.float32), "again")
    first.graph.initializer[1].CopyFrom(other)
    assert len(merged(first, following).graph.initializer) == 2
    same_bytes = numpy_helper.from_array(np.array([[2.0, 4.0]], np.float32), "again")  # of another shape
    following.graph.initializer[1].CopyFrom(same_bytes)
    assert len(merged(first, following).graph.initializer) == 3


def test_graphs_within_a_graph_are_refused() -> None:
    first, following = two()
    following.graph.node[0].attribute.append(helper.make_attribute("then_branch", first.graph))
    with pytest.raises(ValueError, match="a graph within a branch is not looked into"):
        merged(first, following)


def test_short_names_change_nothing_but_names() -> None:
    found = short_names(merged(*two()))
    for choice, wanted in ((False, [2.0, 30.0]), (True, [3.0, 13.0])):
        np.testing.assert_array_equal(run(found, choice)[0], wanted)
    assert [value.name for value in found.graph.output] == ["y", "kept"]
    (node,) = found.graph.node
    graphs = [found.graph, *(attribute.g for attribute in node.attribute)]
    assert len(graphs) == 3
    own = {"x", "heard", "past.key", "use_cache_branch", "y", "kept"}
    names = {tensor.name for tensor in found.graph.initializer}
    names |= {name for graph in graphs for inner in graph.node for name in (*inner.input, *inner.output)}
    assert all(len(name) <= 3 for name in names - own)
    assert not any(inner.name for graph in graphs for inner in graph.node)


def test_what_is_left_out_has_no_name() -> None:
    """Clip takes its bounds by place: the lower one is left out."""
    found = short_names(model("clip", {"x": ["n"]}, [helper.make_node("Clip", ["x", "", "top"], ["y"])], ["y"]))
    assert found.graph.node[0].input[1] == ""
