"""Conformers (Gulati et al., 2020) with a CTC head, as transformers' ParakeetForCTC and Wav2Vec2ConformerForCTC.

A layer is half a feed-forward network, self-attention with relative positions (Dai et al., 2019), a convolution module
and the other half of the feed-forward network, in this order. Wav2Vec2-Conformer also comes with rotary positions.
"""

from dataclasses import replace

from transformers.models.parakeet.modeling_parakeet import ParakeetEncoderAttention
from transformers.models.wav2vec2_conformer.modeling_wav2vec2_conformer import Wav2Vec2ConformerSelfAttention

from sotto.architectures.table import Architecture, Attention, Convolution, FeedForward, Stack

PARAKEET = Architecture(
    name="parakeet",
    model_types=("parakeet_ctc", "sotto_parakeet_ctc"),
    stacks=(
        Stack(
            name="encoder",
            layers="encoder.layers",
            modules=(
                FeedForward("feed_forward1", "feed_forward1.linear1", "feed_forward1.linear2", "norm_feed_forward1"),
                Attention(
                    "self_attn",
                    ParakeetEncoderAttention,
                    output="o_proj",
                    position="relative_k_proj",
                    head_biases=("bias_u", "bias_v"),
                    head_count="config.num_attention_heads",
                    layer_norm="norm_self_att",
                ),
                Convolution("conv", "pointwise_conv1", "depthwise_conv", "norm", "pointwise_conv2", "norm_conv"),
                FeedForward("feed_forward2", "feed_forward2.linear1", "feed_forward2.linear2", "norm_feed_forward2"),
            ),
            layer_count="encoder_config.num_hidden_layers",
            width="encoder_config.hidden_size",
            heads="encoder_config.num_attention_heads",
            ffn="encoder_config.intermediate_size",
            bias="encoder_config.attention_bias",
            without_bias=("self_attn.relative_k_proj",),
        ),
    ),
    activation="encoder_config.hidden_act",
)

RELATIVE = Attention(
    "self_attn",
    Wav2Vec2ConformerSelfAttention,
    query="linear_q",
    key="linear_k",
    value="linear_v",
    output="linear_out",
    position="linear_pos",
    head_biases=("pos_bias_u", "pos_bias_v"),
    layer_norm="self_attn_layer_norm",
)

ROTARY = replace(
    RELATIVE,
    position=None,
    head_biases=(),
    head_count=None,  # transformers turns the attention's input, cut into heads, and not the queries and keys
    same_input=("query", "key"),
)


def wav2vec2_conformer(name: str, positions: str, attention: Attention) -> Architecture:
    return Architecture(
        name=name,
        model_types=("wav2vec2-conformer", "sotto_wav2vec2_conformer"),
        stacks=(
            Stack(
                name="encoder",
                layers="wav2vec2_conformer.encoder.layers",
                modules=(
                    FeedForward("ffn1", "ffn1.intermediate_dense", "ffn1.output_dense", "ffn1_layer_norm"),
                    attention,
                    Convolution("conv_module", "pointwise_conv1", "depthwise_conv", "batch_norm", "pointwise_conv2"),
                    FeedForward("ffn2", "ffn2.intermediate_dense", "ffn2.output_dense", "ffn2_layer_norm"),
                ),
                layer_count="num_hidden_layers",
                width="hidden_size",
                heads="num_attention_heads",
                ffn="intermediate_size",
                without_bias=("self_attn.linear_pos",),
            ),
        ),
        activation="hidden_act",
        settings={"position_embeddings_type": positions, "add_adapter": False},
    )


WAV2VEC2_CONFORMER = wav2vec2_conformer("wav2vec2_conformer", "relative", RELATIVE)
WAV2VEC2_CONFORMER_ROTARY = wav2vec2_conformer("wav2vec2_conformer_rotary", "rotary", ROTARY)
