"""Two graphs of a decoder as one, with every weight once: what optimum and transformers.js call a merged decoder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import onnx
from onnx import TensorProto, helper

CHOICE = "use_cache_branch"


def merged(first: onnx.ModelProto, following: onnx.ModelProto) -> onnx.ModelProto:
    """A graph that takes the inputs of both and `use_cache_branch`, and computes `following` where that is true.

    Outputs are those of `first`. What `following` does not give, the keys and values of what is heard, which do not
    change from token to token, is then empty.
    """
    weights = Weights()
    branches = [branch(model, name, weights) for model, name in ((following, "following"), (first, "first"))]
    outputs = [output.name for output in first.graph.output]
    for graph, model in zip(branches, (following, first), strict=True):
        add_outputs(graph, [output.name for output in model.graph.output], outputs)
    choice = helper.make_tensor_value_info(CHOICE, TensorProto.BOOL, [1])
    node = helper.make_node("If", [CHOICE], outputs, "choice", then_branch=branches[0], else_branch=branches[1])
    inputs = {value.name: value for model in (first, following) for value in model.graph.input}
    graph = helper.make_graph(
        [node],
        "merged_decoder",
        [*map(free, inputs.values()), choice],
        [free(value) for value in first.graph.output],
        list(weights.tensors.values()),
    )
    found = helper.make_model(graph, opset_imports=first.opset_import, producer_name="sotto")
    found.ir_version = first.ir_version
    return found


class Weights:
    """Tensors of several graphs, those that are equal only once."""

    def __init__(self) -> None:
        self.tensors: dict[bytes, onnx.TensorProto] = {}

    def add(self, tensor: onnx.TensorProto) -> str:
        """The name under which all graphs find it."""
        kind = f"{tensor.data_type} {list(tensor.dims)}".encode()
        key = hashlib.sha256(kind + onnx.numpy_helper.to_array(tensor).tobytes()).digest()
        if key not in self.tensors:
            kept = onnx.TensorProto()
            kept.CopyFrom(tensor)
            kept.name = f"weight_{len(self.tensors)}"
            self.tensors[key] = kept
        return self.tensors[key].name


def branch(model: onnx.ModelProto, prefix: str, weights: Weights) -> onnx.GraphProto:
    """The nodes of a graph under names of their own; inputs keep theirs, which are those of the outer graph."""
    names = {tensor.name: weights.add(tensor) for tensor in model.graph.initializer}
    names |= {value.name: value.name for value in model.graph.input} | {"": ""}
    nodes = []
    for number, old in enumerate(model.graph.node):
        if any(
            attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for attribute in old.attribute
        ):
            raise ValueError(f"{old.name}: a graph within a branch is not looked into")
        node = onnx.NodeProto()
        node.CopyFrom(old)
        node.name = f"{prefix}/{number}"
        names |= {name: f"{prefix}/{name}" for name in old.output if name}
        node.input[:] = [names[name] for name in old.input]
        node.output[:] = [names[name] for name in old.output]
        nodes.append(node)
    for output in model.graph.output:  # also where it is an input or a weight as it is
        nodes.append(helper.make_node("Identity", [names[output.name]], [inner(prefix, output.name)]))
    return helper.make_graph(nodes, prefix, [], [])


def inner(prefix: str, output: str) -> str:
    return f"{prefix}/output/{output}"


def add_outputs(graph: onnx.GraphProto, given: Sequence[str], wanted: Iterable[str]) -> None:
    """`wanted` as outputs of a branch; those that are not `given` are empty."""
    for name in wanted:
        found = inner(graph.name, name)
        if name not in given:
            nothing = helper.make_tensor(found, TensorProto.FLOAT, [0, 0, 0, 0], [])
            graph.node.append(helper.make_node("Constant", [], [found], value=nothing))
        graph.output.append(helper.make_tensor_value_info(found, TensorProto.FLOAT, None))


def free(value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    """The value; keys and values of any size: clients make empty ones by the config, whatever a layer has left."""
    kind = value.type.tensor_type
    shape = [dim.dim_param or dim.dim_value for dim in kind.shape.dim]
    if ".key" in value.name or ".value" in value.name:
        shape = [shape[0], *(f"{value.name}_{place}" for place in range(1, len(shape)))]
        if ".encoder." in value.name:
            shape[0] = f"{value.name}_0"
    return helper.make_tensor_value_info(value.name, kind.elem_type, shape)
