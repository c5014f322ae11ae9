"""Whisper (Radford et al., 2022), as transformers' WhisperForConditionalGeneration builds it."""

from transformers.models.whisper.modeling_whisper import WhisperAttention

from sotto.architectures.table import Architecture, Attention, FeedForward, Stack

FEED_FORWARD = FeedForward("ffn", up="fc1", down="fc2", layer_norm="final_layer_norm")

WHISPER = Architecture(
    name="whisper",
    model_types=("whisper", "sotto_whisper"),
    stacks=(
        Stack(
            name="encoder",
            layers="model.encoder.layers",
            modules=(
                Attention(
                    "self_attn",
                    WhisperAttention,
                    head_dim="head_dim",
                    layer_norm="self_attn_layer_norm",
                    reducible=True,
                ),
                FEED_FORWARD,
            ),
            layer_count="encoder_layers",
            width="d_model",
            heads="encoder_attention_heads",
            ffn="encoder_ffn_dim",
            positions="max_source_positions",
            without_bias=("self_attn.k_proj",),
        ),
        Stack(
            name="decoder",
            layers="model.decoder.layers",
            modules=(
                Attention(
                    "self_attn",
                    WhisperAttention,
                    head_dim="head_dim",
                    layer_norm="self_attn_layer_norm",
                    cached=True,
                ),
                Attention(
                    "encoder_attn",
                    WhisperAttention,
                    head_dim="head_dim",
                    same_input=("key", "value"),
                    layer_norm="encoder_attn_layer_norm",
                    cached=True,
                ),
                FEED_FORWARD,
            ),
            layer_count="decoder_layers",
            width="d_model",
            heads="decoder_attention_heads",
            ffn="decoder_ffn_dim",
            without_bias=("self_attn.k_proj", "encoder_attn.k_proj"),
        ),
    ),
    activation="activation_function",
    tied_embedding=("model.decoder.embed_tokens", "proj_out"),
)
