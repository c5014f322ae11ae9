from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sotto.errors import SottoError
from sotto.examples import IGNORED, Example, Span
from sotto.families.whisper import Whisper
from sotto.families.whisper_labels import WhisperCollator, shift_right
from sotto.objectives import CtcObjective, EncoderCtc, Setting, objectives
from tones import PITCHES, square_wave, tiny_whisper

WORDS = ("one", "two three", "four")


def term(objective: CtcObjective, states: torch.Tensor, labels: list[list[int]], tokens: int) -> torch.Tensor:
    batch = {"input_features": torch.zeros(len(labels), 80, 10), "labels": torch.tensor(labels)}
    return objective(nn.Identity(), batch, SimpleNamespace(encoder_last_hidden_state=states), torch.tensor(tokens))


def of_tokens(weight: float, width: int, text_tokens: int) -> CtcObjective:
    """One whose units are the tokens themselves."""
    return CtcObjective(EncoderCtc(weight), width, 320, torch.arange(text_tokens)[:, None])


def with_probabilities(weight: float, probabilities: list[float]) -> CtcObjective:
    """A head that gives every position the same probabilities; the last is the blank's."""
    objective = of_tokens(weight, 3, len(probabilities) - 1)
    nn.init.zeros_(objective.head.weight)
    objective.head.bias.data = torch.tensor(probabilities).log()
    return objective


def test_two_positions_and_one_token_by_hand() -> None:
    """The paths of "a" over two positions are aa, a-, -a: 1/16 + 3/16 + 3/16."""
    objective = with_probabilities(0.3, [0.25, 0.75])
    loss = term(objective, torch.zeros(1, 2, 3), [[0, IGNORED]], tokens=4)
    assert loss.item() == pytest.approx(0.3 * -np.log(7 / 16) / 4, rel=1e-6)


def test_a_repeated_token_needs_a_blank_between_by_hand() -> None:
    """Over three positions "aa" has the one path a-a."""
    objective = with_probabilities(1.0, [0.2, 0.8])
    loss = term(objective, torch.zeros(1, 3, 3), [[0, 0]], tokens=1)
    assert loss.item() == pytest.approx(-np.log(0.2 * 0.8 * 0.2), rel=1e-6)


def test_special_tokens_and_times_are_left_out() -> None:
    objective = with_probabilities(1.0, [0.1, 0.3, 0.6])  # text tokens 0 and 1; from 2 on all is special
    states = torch.zeros(1, 4, 3)
    plain = term(objective, states, [[0, 1]], tokens=1)
    wrapped = term(objective, states, [[5, 3, 0, 1, 9, 2, IGNORED]], tokens=1)
    assert wrapped.item() == pytest.approx(plain.item(), rel=1e-6)
    assert term(objective, states, [[5, 3, 1, 1, 9, 2, IGNORED]], tokens=1).item() != pytest.approx(
        plain.item(), rel=0.1
    )


def test_a_batch_is_the_sum_of_its_clips_over_all_tokens() -> None:
    torch.manual_seed(0)
    objective = of_tokens(0.7, 6, 5)
    states = torch.randn(3, 9, 6)
    texts = [[0, 1, 1], [4], [2, 3]]
    labels = [[7, *text, 6] + [IGNORED] * (3 - len(text)) for text in texts]
    scores = objective.head(states).log_softmax(-1)
    expected = sum(
        nn.functional.ctc_loss(scores[i], torch.tensor(text), (9,), (len(text),), blank=5, reduction="sum")
        for i, text in enumerate(texts)
    )
    found = term(objective, states, labels, tokens=20)
    torch.testing.assert_close(found, 0.7 * torch.as_tensor(expected) / 20)


def test_a_text_longer_than_the_positions_counts_nothing() -> None:
    objective = of_tokens(0.3, 3, 4)
    states = torch.randn(2, 2, 3, requires_grad=True)
    both = term(objective, states, [[0, 1, 2], [3, IGNORED, IGNORED]], tokens=1)
    alone = term(objective, states[1:], [[3]], tokens=1)
    torch.testing.assert_close(both, alone)
    both.backward()  # type: ignore[no-untyped-call]
    assert states.grad is not None
    assert torch.isfinite(states.grad).all()
    assert (states.grad[0] == 0).all()


def test_on_whisper_the_gradient_reaches_the_encoder_alone() -> None:
    model, processor = tiny_whisper()
    objective = objectives.handler(EncoderCtc(0.5))(EncoderCtc(0.5), Setting(Whisper(model, processor)))
    assert isinstance(objective, CtcObjective)
    end = processor.tokenizer.convert_tokens_to_ids("<|endoftext|>")
    assert objective.head.out_features == end + 1  # all text tokens, and the blank
    spans = (Span(0.0, 0.5, cut=True), None, Span(0.1, 0.4, cut=False))
    audio = square_wave(PITCHES["one"], 0.5)
    examples = [Example(audio, text, None, span) for text, span in zip(WORDS, spans, strict=True)]
    batch = WhisperCollator(processor, "en", maximum_tokens=8)(examples)
    decoder_inputs = shift_right(batch["labels"], model.config.decoder_start_token_id, end)
    outputs = model(input_features=batch["input_features"], decoder_input_ids=decoder_inputs)
    loss = objective(model, batch, outputs, torch.tensor(10))
    loss.backward()

    scores = objective.head(outputs.encoder_last_hidden_state).log_softmax(-1)
    text_ids = [processor.tokenizer.encode(f" {text}", add_special_tokens=False) for text in WORDS]
    expected = sum(
        nn.functional.ctc_loss(scores[i], torch.tensor(ids), (50,), (len(ids),), blank=end, reduction="sum")
        for i, ids in enumerate(text_ids)
    )
    torch.testing.assert_close(loss, 0.5 * torch.as_tensor(expected) / 10)
    assert all(trained(parameter) for parameter in objective.parameters())
    assert trained(model.model.encoder.conv1.weight)
    assert trained(model.model.encoder.layers[0].fc1.weight)
    assert not any(trained(parameter) for parameter in model.model.decoder.parameters())


def test_tokens_are_spelt_out_in_order() -> None:
    """Token 0 is "ab", 1 is "b", 2 is "aba": the same loss as of the letters."""
    spelling = torch.tensor([[0, 1, IGNORED], [1, IGNORED, IGNORED], [0, 1, 0]])
    torch.manual_seed(0)
    spelt_out = CtcObjective(EncoderCtc(1.0), 4, 320, spelling)
    letters = of_tokens(1.0, 4, 2)
    letters.load_state_dict(spelt_out.state_dict())
    states = torch.randn(2, 12, 4)
    found = term(spelt_out, states, [[9, 0, 2, 5], [1, 5, IGNORED, IGNORED]], tokens=3)
    expected = term(letters, states, [[9, 0, 1, 0, 1, 0], [1, 7, IGNORED, IGNORED, IGNORED, IGNORED]], tokens=3)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("text", [" three", " വെള്ളം മൂന്ന്", " naïve €5 😀"])
def test_characters_are_those_of_the_text_whatever_the_tokens(text: str) -> None:
    """The vocabulary learnt English only: a word of it is one token, other characters are a token a byte."""
    model, processor = tiny_whisper()
    objective = objectives.handler(EncoderCtc(units="characters"))(
        EncoderCtc(units="characters"), Setting(Whisper(model, processor))
    )
    assert isinstance(objective, CtcObjective)
    assert objective.blank == 256  # one unit a byte, and then the blank
    tokens = processor.tokenizer.encode(text, add_special_tokens=False)
    assert len(tokens) != len(text)
    found = objective.units_of(torch.tensor([*tokens, processor.tokenizer.eos_token_id, IGNORED]))
    assert found.tolist() == [character.encode()[-1] for character in text]


def test_at_first_the_units_share_the_audio_evenly() -> None:
    """Two units over four of five positions: two positions each; from the step that is named on it is CTC."""
    spelling = torch.arange(2)[:, None]
    objective = CtcObjective(EncoderCtc(0.5, flat_start=3), 3, 320, spelling)
    torch.manual_seed(0)
    states = torch.randn(2, 5, 3)
    examples = [Example(np.zeros(samples, np.float32), "", None, None) for samples in (1000, 1600)]
    assert objective.collate is not None
    batch = {"labels": torch.tensor([[9, 0, 1], [1, 9, IGNORED]]), **objective.collate(examples)}
    outputs = SimpleNamespace(encoder_last_hidden_state=states)
    scores = objective.head(states).log_softmax(-1)
    first = -(scores[0, :2, 0].sum() + scores[0, 2:4, 1].sum()) / 4
    second = -scores[1, :, 1].mean()
    for step in (0, 2):
        objective.after_step(nn.Identity(), step, 0.1)
        found = objective(nn.Identity(), batch, outputs, torch.tensor(4))
        torch.testing.assert_close(found, 0.5 * (2 * first + second) / 4)
    objective.after_step(nn.Identity(), 3, 0.1)
    ctc = CtcObjective(EncoderCtc(0.5), 3, 320, spelling)
    ctc.head.load_state_dict(objective.head.state_dict())
    of_ctc = ctc(nn.Identity(), batch, outputs, torch.tensor(4))
    torch.testing.assert_close(objective(nn.Identity(), batch, outputs, torch.tensor(4)), of_ctc)
    assert objective.state_dict()["steps"] == 3  # a run that goes on knows where it was


def test_a_flat_start_of_clips_without_text_counts_nothing() -> None:
    objective = CtcObjective(EncoderCtc(0.5, flat_start=3), 3, 320, torch.arange(2)[:, None])
    batch = {"labels": torch.tensor([[9, IGNORED]]), "ctc_positions": torch.tensor([4])}
    outputs = SimpleNamespace(encoder_last_hidden_state=torch.randn(1, 5, 3, requires_grad=True))
    loss = objective(nn.Identity(), batch, outputs, torch.tensor(4))
    loss.backward()
    assert loss.item() == 0


def trained(parameter: Any) -> bool:
    return parameter.grad is not None and bool((parameter.grad != 0).any())


def test_recipes_name_it_ctc() -> None:
    assert objectives.parse({"ctc": {"weight": 0.2}}, "objectives[0]") == EncoderCtc(0.2)
    assert objectives.parse("ctc", "objectives[0]") == EncoderCtc(0.3)
    assert objectives.parse({"ctc": {"units": "characters"}}, "objectives[0]") == EncoderCtc(0.3, "characters")


@pytest.mark.parametrize("weight", [0, -0.1])
def test_a_weight_that_is_not_positive_is_refused(weight: float) -> None:
    with pytest.raises(SottoError, match=r"objectives\[0\].ctc: weight must be positive, found"):
        objectives.parse({"ctc": {"weight": weight}}, "objectives[0]")


def test_a_typing_error_names_the_nearest_objective() -> None:
    with pytest.raises(SottoError, match=r"unknown objective 'ctcc'; did you mean 'ctc'\?"):
        objectives.parse({"ctcc": {}}, "objectives[0]")
