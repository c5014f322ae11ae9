"""What a CTC model hears: batches, words with their times, long audio in pieces."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conformers import (
    CONFORMERS,
    RATE,
    characters,
    make,
    noise,
    parakeet,
    shape_weights,
    wav2vec2_conformer,
    word_pieces,
)
from sotto.checkpoint import Recognizer
from sotto.data import Clip
from sotto.decoding import Decoding, Segment
from sotto.errors import SottoError
from sotto.families.frames import Token, pieces, text_of, tokens_of, words_of
from sotto.transcription import transcribe

every_conformer = pytest.mark.parametrize("architecture", CONFORMERS)

SECONDS = (1.0, 0.43, 1.7, 0.2)


def clip(seconds: float, seed: int = 0) -> Clip:
    return Clip(f"clip {seed}", noise(seconds, seed), RATE)


def clips() -> list[Clip]:
    return [clip(seconds, seed) for seed, seconds in enumerate(SECONDS)]


def texts(recognizer: Recognizer, heard: list[Clip], **settings: object) -> list[str]:
    return [result.text for result in transcribe(recognizer, heard, Decoding(**settings))]  # type: ignore[arg-type]


@every_conformer
def test_a_clip_in_a_batch_is_heard_as_alone(architecture: str) -> None:
    recognizer = make(architecture)
    family = recognizer.family
    alone = [text for each in clips() for text in texts(recognizer, [each])]
    assert sum(len(text) for text in alone) > 10
    assert len(set(alone)) == len(SECONDS)
    assert texts(recognizer, clips()) == alone
    assert texts(recognizer, clips(), batch_size=3) == alone
    with torch.no_grad():
        together = family.run(family.inputs([each.audio for each in clips()]))
        for row, each in zip(together, clips(), strict=True):
            own = family.logits(family.inputs([each.audio]))
            torch.testing.assert_close(row[: len(own)], own, atol=1e-4, rtol=1e-4)


def test_padding_would_be_heard_by_a_plain_wav2vec2_conformer() -> None:
    """Or the test above would show nothing of how it is kept out."""
    recognizer = make("wav2vec2_conformer")
    inputs = recognizer.family.inputs([each.audio for each in clips()])
    own = recognizer.family.logits(recognizer.family.inputs([clips()[3].audio]))
    assert (recognizer.model(**inputs).logits[3, : len(own)] - own).abs().max() > 0.1
    assert not any(module._forward_pre_hooks for module in recognizer.model.modules())


def test_a_norm_over_the_whole_length_takes_clips_one_by_one() -> None:
    recognizer = wav2vec2_conformer(feat_extract_norm="group")
    shape_weights(recognizer.model, torch.Generator().manual_seed(0))
    alone = [text for each in clips() for text in texts(recognizer, [each])]
    assert texts(recognizer, clips()) == alone


@every_conformer
def test_the_text_is_what_the_tokenizer_makes_of_the_best_labels(architecture: str) -> None:
    recognizer = make(architecture)
    family = recognizer.family
    (best,) = family.run(family.inputs([noise(1.0)])).argmax(-1).tolist()
    count = int(family.frame_counts(family.inputs([noise(1.0)])))
    tokenizer = recognizer.processor.tokenizer
    special = {*tokenizer.all_special_ids} - {tokenizer.pad_token_id}
    assert not special & set(best[:count]) or architecture != "parakeet"
    (found,) = transcribe(recognizer, [clip(1.0)], Decoding())
    expected = tokenizer.decode(best[:count])
    for token in tokenizer.convert_ids_to_tokens(sorted(special)):
        if token != "|":
            expected = expected.replace(token, "")
    assert " ".join(found.text.split()) == " ".join(expected.split())
    assert found.segments == ()
    assert found.seconds == 1.0


@every_conformer
def test_segments_are_the_words_with_their_times(architecture: str) -> None:
    recognizer = make(architecture)
    (found,) = transcribe(recognizer, [clip(1.7)], Decoding(timestamps=True))
    assert " ".join(segment.text for segment in found.segments) == " ".join(found.text.split())
    assert len(found.segments) > 0
    edges = [edge for segment in found.segments for edge in (segment.start, segment.end)]
    assert edges == sorted(edges)
    assert all(segment.start < segment.end <= 1.7 for segment in found.segments)


def test_words_of_characters_and_of_word_pieces() -> None:
    letters = characters()
    frames = letters.convert_tokens_to_ids(["<pad>", "|", "t", "t", "<pad>", "w", "o", "|", "|", "<pad>", "s", "e"])
    frames += letters.convert_tokens_to_ids(["<pad>", "e", "|", "<pad>"])
    tokens = tokens_of(frames, letters.pad_token_id)
    assert text_of(letters, [token.label for token in tokens]) == "two see"
    assert words_of(letters, tokens, 0.5) == [Segment(1.0, 3.5, "two"), Segment(5.0, 7.0, "see")]

    wordlike = word_pieces()
    one, three = wordlike("one").input_ids, wordlike("three").input_ids
    frames = [wordlike.pad_token_id, *one, *one[-1:], wordlike.pad_token_id, *three]
    tokens = tokens_of(frames, wordlike.pad_token_id)
    assert text_of(wordlike, [token.label for token in tokens]) == "one three"
    end = 1 + len(one) + 1
    assert words_of(wordlike, tokens, 2.0) == [
        Segment(2.0, 2.0 * end, "one"),
        Segment(2.0 * (end + 1), 2.0 * (end + 1 + len(three)), "three"),
    ]


def test_tokens_are_what_stands_between_blanks_and_changes() -> None:
    assert tokens_of([0, 0, 5, 5, 0, 5, 3, 3, 3, 0], blank=0) == [Token(5, 2, 4), Token(5, 5, 6), Token(3, 6, 9)]
    assert tokens_of([0, 0], blank=0) == []
    assert tokens_of([], blank=0) == []
    assert words_of(characters(), [], 0.02) == []


@given(st.integers(1, 400_000), st.sampled_from([40, 320, 1280]), st.integers(0, 3))
def test_pieces_keep_every_frame_once(samples: int, frame: int, seed: int) -> None:
    """Frames of `frame` samples each, numbered; a piece's own start with it, wherever it begins."""
    rate = 2000
    numbers = (np.arange(samples) // frame).astype(np.float32)
    audio = numbers + (np.random.default_rng(seed).random(samples) / 2).astype(np.float32)
    found = pieces(audio, rate, frame, longest_seconds=30.0)
    kept = []
    for piece in found:
        assert len(piece.audio) <= 30 * rate
        own = np.floor(piece.audio[::frame]).astype(int).tolist()
        kept += own[piece.first : piece.end]
        assert (piece.first > 0) == (piece is not found[0])
    assert kept == list(range(-(-samples // frame)))
    assert len(found) == 1 or samples > 30 * rate
    for piece in found[:-1]:  # sound on both sides of a seam
        assert len(piece.audio) // frame - (piece.end or 0) >= 3 * rate // frame
    for piece in found[1:]:
        assert piece.first == 3 * rate // frame


def test_long_audio_is_cut_where_it_is_quiet() -> None:
    rate, frame = 1000, 10
    audio = np.random.default_rng(0).standard_normal(70 * rate).astype(np.float32)
    audio[20_300:20_900] *= 0.01
    audio[41_000:41_500] *= 0.01
    ends = np.cumsum(
        [(piece.end or len(piece.audio) // frame) - piece.first for piece in pieces(audio, rate, frame, 30)]
    )
    assert 2030 <= ends[0] <= 2090
    assert 4100 <= ends[1] <= 4150
    assert ends[-1] == 7000


def local(recognizer: Recognizer) -> Recognizer:
    """Attention silenced: a frame then depends on what is near it alone."""
    (stack,) = recognizer.architecture.stacks
    with torch.no_grad():
        for index in range(len(recognizer.model.get_submodule(stack.layers))):
            layer = recognizer.model.get_submodule(stack.layers)[index]
            output = layer.get_submodule(stack.attentions[0].linears[-1])
            output.weight.zero_()
            output.bias.zero_()
    return recognizer


def test_pieces_of_long_audio_are_put_together_without_loss() -> None:
    recognizer = wav2vec2_conformer(normalized=False)
    shape_weights(recognizer.model, torch.Generator().manual_seed(0))
    family = local(recognizer).family
    audio = noise(75.0)
    with torch.no_grad():
        whole = family.run(family.inputs([audio])).argmax(-1)[0].tolist()
    cut = pieces(audio, RATE, family.samples_per_frame, 30.0)
    assert len(cut) > 2
    assert [label for labels in family.labels(cut, 2) for label in labels] == whole
    long = Clip("long", audio, RATE)
    results = list(transcribe(recognizer, [clip(1.0), long, clip(0.5, 1)], Decoding(timestamps=True)))
    assert [result.name for result in results] == ["clip 0", "long", "clip 1"]
    tokenizer = recognizer.processor.tokenizer
    assert results[1].text == text_of(tokenizer, [token.label for token in tokens_of(whole, family.blank)])
    assert results[1].segments[-1].end > 74.0


def test_frames_of_long_audio_for_word_pieces() -> None:
    family = make("parakeet").family
    audio = noise(40.0)
    labels = family.labels(pieces(audio, RATE, family.samples_per_frame, 30.0), 8)
    assert len(labels) == 2
    whole = int(family.frame_counts(family.inputs([audio])))
    assert sum(len(each) for each in labels) == whole


@every_conformer
def test_a_blink_of_audio_is_heard(architecture: str) -> None:
    recognizer = make(architecture)
    (found,) = transcribe(recognizer, [Clip("blink", noise(0.003), RATE)], Decoding(timestamps=True))
    assert found.seconds == pytest.approx(0.003)
    assert all(segment.end <= found.seconds for segment in found.segments)
    assert family_is_finite(recognizer)


def family_is_finite(recognizer: Recognizer) -> bool:
    return bool(recognizer.family.logits(recognizer.family.inputs([noise(0.003)])).isfinite().all())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beams": 4}, "a CTC model has no beam search; leave out beams, or set them to 1"),
        ({"task": "translate"}, "a CTC model cannot translate; leave out task: translate"),
    ],
)
@every_conformer
def test_what_it_cannot_do_is_refused_at_once(architecture: str, settings: dict[str, object], message: str) -> None:
    with pytest.raises(SottoError, match=message):
        transcribe(make(architecture), [], Decoding(**settings))  # type: ignore[arg-type]


def test_a_language_is_for_others() -> None:
    recognizer = make("parakeet")
    assert texts(recognizer, clips(), language="hi") == texts(recognizer, clips())


def test_another_rate_is_refused() -> None:
    slow = Clip("slow", noise(0.5), 8000)
    with pytest.raises(SottoError, match="slow: is at 8000 Hz and the recogniser hears 16000 Hz"):
        list(transcribe(make("parakeet"), [slow], Decoding()))


def test_the_model_keeps_its_mode() -> None:
    recognizer = parakeet(dropout=0.5)
    recognizer.model.train()
    first, second = (texts(recognizer, [clip(1.0)]) for _ in range(2))
    assert first == second
    assert recognizer.model.training
