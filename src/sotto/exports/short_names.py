"""Short names for what is inside of an ONNX graph: in a small model in 8 bits long ones would be much of the file."""

from __future__ import annotations

import onnx


def short_names(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph itself, changed; nodes lose their names, and what goes in and out keeps its own."""
    graph = model.graph
    kept = {value.name: value.name for value in (*graph.input, *graph.output)}
    rename(graph, kept | {"": ""})
    return model


def rename(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    """Old name -> new one in `names`, to which those found here are added: graphs within branches see them too."""

    def short(name: str) -> str:
        return names.setdefault(name, f"_{len(names)}")

    del graph.value_info[:]
    for value in graph.input:
        value.name = short(value.name)
    for tensor in graph.initializer:
        tensor.name = short(tensor.name)
    for node in graph.node:
        node.name = ""
        node.input[:] = map(short, node.input)
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                rename(inner, names)
        node.output[:] = map(short, node.output)
    for value in graph.output:
        value.name = short(value.name)
