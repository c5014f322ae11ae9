"""Changes of shape. Nothing else in Sotto may change one, and nothing here decides anything.

Every function changes the model in place and writes what it did into the record at `model.config.sotto`, so that the
record and the shapes never part.
"""

from sotto.surgery.alignment_heads import alignment_heads_of
from sotto.surgery.applying import apply_structure
from sotto.surgery.attention import expand_attention, head_dim_of, keep_heads, narrow_heads, reduce_attention
from sotto.surgery.linears import factor, gather_inputs, merge, pack_linear, restore_inputs, unpack_linear
from sotto.surgery.modules import drop_module, keep_channels, narrow_ffn
from sotto.surgery.places import (
    get_any_linear,
    get_linear,
    layer_path,
    layers_of,
    linears_of,
    parts_of,
    present,
    structure_of,
)
from sotto.surgery.quantizing import Codes, dequantize, quantize_embedding, quantize_linear, tied_embedding
from sotto.surgery.stacks import keep_layers

__all__ = [
    "Codes",
    "alignment_heads_of",
    "apply_structure",
    "dequantize",
    "drop_module",
    "expand_attention",
    "factor",
    "gather_inputs",
    "get_any_linear",
    "get_linear",
    "head_dim_of",
    "keep_channels",
    "keep_heads",
    "keep_layers",
    "layer_path",
    "layers_of",
    "linears_of",
    "merge",
    "narrow_ffn",
    "narrow_heads",
    "pack_linear",
    "parts_of",
    "present",
    "quantize_embedding",
    "quantize_linear",
    "reduce_attention",
    "restore_inputs",
    "structure_of",
    "tied_embedding",
    "unpack_linear",
]
