"""Sizes by the rules of papers, to compare with what they print; what a file takes is measured (`bytes_on_disk`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def whisper_kdq_bytes(model: PreTrainedModel, bits: int = 16) -> int:
    """Bytes of a Whisper by the rule of Whisper-KDQ's released code (Shao et al., 2023, arXiv:2305.10788).

    Every weight of the decoder takes `bits` bits: linears, the table of tokens once, and norms too. All else takes 16,
    biases, positions and the encoder among it.
    """
    total = 0
    for name, tensor in model.model.state_dict().items():
        is_weight = name.startswith("decoder.") and name.endswith(".weight") and "embed_positions" not in name
        total += tensor.numel() * (bits if is_weight else 16)
    return total // 8
