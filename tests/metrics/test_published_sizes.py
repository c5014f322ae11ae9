import pytest
import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

from sotto.metrics.published_sizes import whisper_kdq_bytes

MEBIBYTE = 2**20


def whisper(width: int, layers: int, heads: int) -> WhisperForConditionalGeneration:
    config = WhisperConfig(
        vocab_size=51865,
        d_model=width,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
    )
    with torch.device("meta"):
        return WhisperForConditionalGeneration(config)


def test_the_published_ratios_come_out_of_the_rule() -> None:
    """The paper prints 5.18x and 10.48x: the sizes of its models, rounded to MiB, divided by one another."""
    small, base, tiny = whisper(768, 12, 12), whisper(512, 6, 8), whisper(384, 4, 6)
    teacher = whisper_kdq_bytes(small) / MEBIBYTE
    students = [whisper_kdq_bytes(model, 8) / MEBIBYTE for model in (base, tiny)]
    assert [round(size) for size in (teacher, *students)] == [461, 89, 44]
    assert [round(461 / round(size), 2) for size in students] == [5.18, 10.48]
    assert teacher == pytest.approx(461.07, abs=0.01)
    assert students == pytest.approx([89.13, 44.02], abs=0.01)
    assert [whisper_kdq_bytes(model) / MEBIBYTE for model in (base, tiny)] == pytest.approx([138.5, 72.0], abs=0.1)
