"""Whisper and Conformers as OpenVINO models; a decoder keeps keys and values by itself, as openvino-genai expects."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import torch
from openvino import opset13
from openvino.op import assign, read_value, util
from torch import nn
from torch.export import Dim
from transformers.cache_utils import DynamicCache, DynamicLayer, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from sotto.exports.graphs import Encoder, Sizes, frame_graph, past_names, quiet
from sotto.exports.precision import write_graph
from sotto.families import Ctc
from sotto.surgery import structure_of

BEAMS = "beam_idx"  # by which openvino-genai says whose keys and values each row goes on with


class Tokens(nn.Module):
    """Tokens (batch, tokens), states, and what is kept of tokens before them, which may be none.

    -> logits, and for each layer keys and values of both attentions.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, encoder_hidden_states: torch.Tensor, past: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, ...]:
        own, cross = DynamicCache(), Heard()
        own.layers = [kept(key, value) for key, value in zip(past[::2], past[1::2], strict=True)]
        outputs = self.model(
            encoder_outputs=BaseModelOutput(encoder_hidden_states),
            decoder_input_ids=input_ids,
            past_key_values=EncoderDecoderCache(own, cross),
            use_cache=True,
        )
        layers: Any = zip(own.layers, cross.pairs, strict=True)
        pairs = [(layer.keys, layer.values, *pair) for layer, pair in layers]
        return (outputs.logits, *(tensor for pair in pairs for tensor in pair))


class Heard(DynamicCache):
    """Keys and values of the audio as they are computed: transformers' own are joined to empty ones first."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs: list[tuple[torch.Tensor, torch.Tensor]] = []

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        # Sums, since OpenVINO finds no name for an output that is a constant, as an absent attention's keys are.
        self.pairs.append((key_states + 0, value_states + 0))
        return self.pairs[-1]


def kept(keys: torch.Tensor, values: torch.Tensor) -> DynamicLayer:
    """A layer of a cache that holds these."""
    layer = DynamicLayer()
    layer.lazy_initialization(keys, values)
    layer.keys, layer.values = keys, values
    return layer


class FreeEncoder(Encoder):
    """As `Encoder`, for windows of any length up to the model's own: transformers' encoder takes that alone."""

    def forward(self, input_features: torch.Tensor) -> torch.Tensor:
        encoder = self.encoder
        states = nn.functional.gelu(encoder.conv2(nn.functional.gelu(encoder.conv1(input_features)))).transpose(1, 2)
        states = states + encoder.embed_positions.weight[: states.shape[1]]
        for layer in encoder.layers:
            states = layer(states, None)
        normalized: torch.Tensor = encoder.layer_norm(states)
        return normalized


def encoder_model(model: Any, fitted: bool) -> openvino.Model:
    """Where windows are `fitted`, the model takes those that are shorter than its own."""
    config = model.config
    features = torch.randn(Sizes.batch, config.num_mel_bins, 2 * config.max_source_positions)
    encoder = FreeEncoder(model) if fitted else Encoder(model)
    free = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC} if fitted else {0: Dim.DYNAMIC}
    return converted(encoder, (features,), (free,), ["input_features"], ["last_hidden_state"])


def decoder_model(model: Any, fitted: bool) -> openvino.Model:
    """Takes tokens, states and `beam_idx`; keys and values are states of the model, which a request may reset."""
    config = model.config
    states = torch.randn(Sizes.batch, config.max_source_positions, config.d_model)
    ids = torch.arange(Sizes.batch * Sizes.tokens).view(Sizes.batch, -1) % config.vocab_size
    past = tuple(past_of(model))
    free = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    names, own = past_names(config.decoder_layers), past_names(config.decoder_layers, ["decoder"])
    found = converted(
        Tokens(model),
        (ids, states, past),
        (free, free if fitted else {0: Dim.DYNAMIC}, tuple({0: Dim.DYNAMIC, 2: Dim.DYNAMIC} for _ in past)),
        ["input_ids", "encoder_hidden_states", *(f"past.{name}" for name in own)],
        ["logits", *(f"present.{name}" for name in names)],
    )
    layers = structure_of(model).stacks["decoder"].layers
    deaf = [f"{index}.encoder." for index, layer in enumerate(layers) if "encoder_attn" in layer.absent]
    heard = [name for name in names if name not in own and not name.startswith(tuple(deaf))]
    keep_states(found, own, heard)
    name_cross_attentions(found, config.decoder_layers)
    return found


def past_of(model: Any) -> Sequence[torch.Tensor]:
    """Keys and values of some tokens in the shapes of each layer."""
    config = model.config
    ids = torch.arange(Sizes.batch * Sizes.past).view(Sizes.batch, -1) % config.vocab_size
    states = torch.randn(Sizes.batch, config.max_source_positions, config.d_model)
    with torch.no_grad():
        cache = model(encoder_outputs=BaseModelOutput(states), decoder_input_ids=ids, use_cache=True).past_key_values
    return [tensor for layer in cache.self_attention_cache.layers for tensor in (layer.keys, layer.values)]


def frame_model(family: Ctc) -> openvino.Model:
    """By way of ONNX, whose exporter finds the sizes that are free where torch's own gives up."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.onnx"
        write_graph(frame_graph(family), path)
        found: openvino.Model = openvino.convert_model(path)
    return found


def converted(
    module: nn.Module, example: tuple[Any, ...], shapes: tuple[Any, ...], inputs: list[str], outputs: list[str]
) -> openvino.Model:
    """OpenVINO's model of `module`, traced on `example`; `shapes` names the sizes that are free."""
    with torch.no_grad(), quiet():
        program = torch.export.export(module.eval(), example, dynamic_shapes=shapes)
        found: openvino.Model = openvino.convert_model(program)
    for ports, names in ((found.inputs, inputs), (found.outputs, outputs)):
        for port, name in zip(ports, names, strict=True):
            port.set_names({name})
    return found


State = tuple[util.Variable, openvino.Node]
"""A variable, and the node that writes it."""


def keep_states(model: openvino.Model, own: Sequence[str], heard: Sequence[str]) -> None:
    """Make keys and values states: `own` grow with every token, `heard` are computed at the first and then kept."""
    beams = opset13.parameter(openvino.PartialShape([-1]), dtype=openvino.Type.i32, name=BEAMS)
    beams.output(0).set_names({BEAMS})
    model.add_parameters([beams])
    ends = [output.get_node() for output in model.outputs if output.get_any_name() != "logits"]
    starts = [model.input(f"past.{name}").get_node() for name in own]
    states = [*(growing(model, name, beams) for name in own), *(held(model, name) for name in heard)]
    model.add_variables([variable for variable, _ in states])
    for end in ends:
        model.remove_result(end)
    for start in starts:
        model.remove_parameter(start)
    model.add_sinks([sink for _, sink in states])
    model.validate_nodes_and_infer_types()


def name_cross_attentions(model: openvino.Model, layers: int) -> None:
    """For times of words openvino-genai 2026.4 finds attention to the audio by `encoder_attn` in its name.

    It numbers what it finds, and takes that for the layer: where a layer has none, none gets the name, so that times of
    words are refused instead of wrong.
    """
    nodes = [node for node in model.get_ordered_ops() if node.get_type_name() == "ScaledDotProductAttention"]
    found = [node for node in nodes if node.input_value(1).get_node().get_type_name() == "ReadValue"]
    if len(found) == layers:
        for index, node in enumerate(found):
            node.set_friendly_name(f"decoder.layers.{index}.encoder_attn")


def growing(model: openvino.Model, name: str, beams: openvino.Node) -> State:
    """Read in place of the input `past.name`, by row as `beams` says; written by what the output `present.name` is."""
    past = model.input(f"past.{name}")
    targets = past.get_target_inputs()
    variable = variable_like(name, past)
    read = read_value(nothing(model, past.get_partial_shape()).output(0), variable)
    redirect(targets, opset13.gather(read, beams, opset13.constant(0)))
    return variable, assign(source(model, name).get_node(), variable)


def held(model: openvino.Model, name: str) -> State:
    """Read in place of what the output `present.name` is, which computes it where nothing was written yet."""
    computed = source(model, name)
    targets = computed.get_target_inputs()
    variable = variable_like(name, computed)
    read = read_value(computed, variable)
    redirect(targets, read)
    return variable, assign(read, variable)


def source(model: openvino.Model, name: str) -> Any:
    """The port whose value is the output `present.name`."""
    return model.output(f"present.{name}").get_node().input_value(0)


def variable_like(name: str, port: Any) -> util.Variable:
    info = util.VariableInfo()
    info.variable_id, info.data_type, info.data_shape = name, port.get_element_type(), port.get_partial_shape()
    return util.Variable(info)


def nothing(model: openvino.Model, shape: openvino.PartialShape) -> openvino.Node:
    """Keys or values of no tokens, for as many rows as there are tokens to come."""
    rows = opset13.gather(opset13.shape_of(model.input("input_ids")), opset13.constant([0]), opset13.constant(0))
    heads, width = (opset13.constant(np.array([shape[axis].get_length()])) for axis in (1, 3))
    sizes = opset13.concat([rows, heads, opset13.constant(np.array([0])), width], 0)
    return opset13.broadcast(opset13.constant(np.float32(0)), sizes)


def redirect(targets: Iterable[Any], node: openvino.Node) -> None:
    """Let `targets`, inputs of other nodes, take what `node` gives."""
    for target in targets:
        target.replace_source_output(node.output(0))
