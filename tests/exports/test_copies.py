"""A model in the shapes of its base, for those who have transformers and no Sotto."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import ParakeetForCTC, Wav2Vec2ConformerForCTC, WhisperForConditionalGeneration

from mixed_shapes import mixed
from recognizers import ARCHITECTURES, scores
from recognizers import recognizer as of_architecture
from sotto.checkpoint import Recognizer
from sotto.decoding import Decoding
from sotto.exports import export, open_export
from sotto.exports.copies import dense_copy
from sotto.methods import LayerDropping, Quantization, StepContext, methods
from sotto.opening import cost_of
from sotto.surgery import keep_heads
from tones import clip, tiny_whisper, write_folder

PLAIN = {
    "whisper": WhisperForConditionalGeneration,
    "parakeet": ParakeetForCTC,
    "wav2vec2_conformer": Wav2Vec2ConformerForCTC,
    "wav2vec2_conformer_rotary": Wav2Vec2ConformerForCTC,
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_dense_copy_computes_the_same(architecture: str, tmp_path: Path) -> None:
    found = mixed(of_architecture(architecture))
    step = Quantization(dynamic=False)
    methods.handler(step)(found, step, StepContext(tmp_path))
    before, record = scores(found), found.structure
    plain = dense_copy(found)
    assert type(plain) is PLAIN[architecture]
    assert found.structure == record
    torch.testing.assert_close(scores(Recognizer(plain, found.processor)), before, atol=1e-5, rtol=1e-4)
    base = of_architecture(architecture).model
    shapes = {name: weight.shape for name, weight in base.named_parameters()}
    assert {name: weight.shape for name, weight in plain.named_parameters()} == shapes


def test_layers_that_are_gone_stay_away() -> None:
    found = Recognizer(*tiny_whisper(encoder_layers=3, decoder_layers=2))
    step = LayerDropping(encoder=2, decoder=1)
    methods.handler(step)(found, step, StepContext(Path()))
    plain = dense_copy(mixed(found))
    assert (plain.config.encoder_layers, plain.config.decoder_layers) == (2, 1)
    torch.testing.assert_close(scores(Recognizer(plain, found.processor)), scores(found), atol=1e-5, rtol=1e-4)


def test_alignment_heads_have_the_numbers_of_the_base_again() -> None:
    found = Recognizer(*tiny_whisper(attention_heads=4, decoder_layers=2))
    found.model.generation_config.alignment_heads = [[0, 1], [0, 3], [1, 2]]
    stack = found.architecture.stack("decoder")
    keep_heads(found.model, stack, 0, stack.attentions[1], [1, 3])
    assert found.model.generation_config.alignment_heads == [[0, 0], [0, 1], [1, 2]]
    assert dense_copy(found).generation_config.alignment_heads == [[0, 1], [0, 3], [1, 2]]
    assert found.model.generation_config.alignment_heads == [[0, 0], [0, 1], [1, 2]]


def test_the_export_opens_where_sotto_was_never_heard_of(tmp_path: Path) -> None:
    found = mixed(Recognizer(*tiny_whisper(encoder_layers=2, decoder_layers=2)))
    found.model.eval()
    clips = write_folder(tmp_path / "clips", ["one", "two"], [0.6, 0.9])
    record = export(found, tmp_path / "plain", to="transformers", audio=clips)
    assert (record.agreement.transcripts, record.agreement.decisions) == (0, 0)
    numbers = cost_of(open_export(tmp_path / "plain"), str(tmp_path / "plain"))
    assert numbers.parameters.total > cost_of(found, "").parameters.total  # zeros are computed again
    assert numbers.parameters.total == cost_of(Recognizer(dense_copy(found), found.processor), "").parameters.total
    code = f"""
import sys
import numpy
from transformers import pipeline
heard = numpy.load({str(tmp_path / "heard.npy")!r})
print(pipeline("automatic-speech-recognition", {str(tmp_path / "plain")!r})(heard)["text"])
assert "sotto" not in sys.modules
"""
    heard = clip("three", 0.8)
    np.save(tmp_path / "heard.npy", heard.audio)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    (expected,) = found.family.transcribe([heard], Decoding())
    assert done.stdout.strip() == expected.text.strip()
