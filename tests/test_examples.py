import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sotto.augmentation import Augmentation, Splicing
from sotto.data import Clip, ClipSource
from sotto.errors import SottoError
from sotto.examples import IGNORED, ClipExamples, Example, Span, SplicedExamples
from sotto.families.whisper_labels import WhisperCollator
from tones import PITCHES, RATE, clip, open_folder, pitch_of, square_wave, tiny_whisper, write_folder

VARIED = Augmentation(speed=(0.95, 1.0, 1.05), gain_db=6, noise_snr_db=(10, 30))


@pytest.fixture(scope="module")
def processor() -> Any:
    return tiny_whisper(languages=("en", "hi"), window_seconds=2.0, maximum_tokens=40)[1]


@pytest.fixture
def collator(processor: Any) -> WhisperCollator:
    return WhisperCollator(processor, "en", maximum_tokens=40)


def example(text: str, span: Span | None = None, language: str | None = None, seconds: float = 0.1) -> Example:
    return Example(square_wave(440, seconds), text, language, span)


def ids_of(processor: Any, tokens: list[str]) -> list[int]:
    found = processor.tokenizer.convert_tokens_to_ids(tokens)
    assert processor.tokenizer.unk_token_id not in found[:-1]
    return [int(token) for token in found]


def text_ids(processor: Any, text: str) -> list[int]:
    return list(processor.tokenizer.encode(text, add_special_tokens=False))


def test_labels_without_times_are_whispers_own(processor: Any, collator: WhisperCollator) -> None:
    labels = collator.label_ids(example("two three"))
    start = ids_of(processor, ["<|en|>", "<|transcribe|>", "<|notimestamps|>"])
    end = ids_of(processor, ["<|endoftext|>"])
    assert labels == [*start, *text_ids(processor, " two three"), *end]
    processor.tokenizer.set_prefix_tokens(language="en", task="transcribe", predict_timestamps=False)
    assert labels == processor.tokenizer(" two three").input_ids[1:]  # what transformers would train on
    assert processor.tokenizer.decode(labels, skip_special_tokens=True) == " two three"


def test_an_english_only_model_is_prompted_with_neither_language_nor_task(processor: Any) -> None:
    collator = WhisperCollator(processor, "en", maximum_tokens=40, multilingual=False)
    start, end = (ids_of(processor, [token]) for token in ("<|notimestamps|>", "<|endoftext|>"))
    assert collator.label_ids(example("two three")) == [*start, *text_ids(processor, " two three"), *end]
    with pytest.raises(SottoError, match="knows English only; it cannot be trained on language 'hi'"):
        WhisperCollator(processor, "hi", multilingual=False)


def test_a_clips_own_language_goes_before_the_recipes(processor: Any, collator: WhisperCollator) -> None:
    assert collator.label_ids(example("one", language="hi"))[:1] == ids_of(processor, ["<|hi|>"])
    assert collator.label_ids(example("one"))[:1] == ids_of(processor, ["<|en|>"])


@pytest.mark.parametrize(
    ("start", "end", "written"),
    [(0.0, 0.52, ("0.00", "0.52")), (0.109, 1.731, ("0.10", "1.74")), (0.111, 2.0, ("0.12", "2.00"))],
)
def test_times_are_rounded_to_a_fiftieth(
    processor: Any, collator: WhisperCollator, start: float, end: float, written: tuple[str, str]
) -> None:
    labels = collator.label_ids(example("two", Span(start, end, cut=False)))
    first, last = ids_of(processor, [f"<|{time}|>" for time in written])
    prompt = ids_of(processor, ["<|en|>", "<|transcribe|>"])
    assert labels == [*prompt, first, *text_ids(processor, " two"), last, *ids_of(processor, ["<|endoftext|>"])]
    decoded = processor.tokenizer.decode(labels, decode_with_timestamps=True)
    assert f"<|{written[0]}|> two<|{written[1]}|>" in decoded


def test_a_cut_string_says_its_end_twice(processor: Any, collator: WhisperCollator) -> None:
    labels = collator.label_ids(example("two one", Span(0.1, 0.9, cut=True)))
    first, last = ids_of(processor, ["<|0.10|>", "<|0.90|>"])
    assert labels[2:] == [first, *text_ids(processor, " two one"), last, last, *ids_of(processor, ["<|endoftext|>"])]


def test_a_batch_is_padded_to_a_multiple_of_sixteen(collator: WhisperCollator) -> None:
    examples = [example("one"), example("one two three four three two", seconds=1.5)]
    batch = collator(examples)
    assert batch["labels"].shape == (2, 16)
    assert batch["labels"].dtype == torch.int64
    assert batch["input_features"].shape == (2, 80, 200)
    assert batch["input_features"].dtype == torch.float32
    for row, item in zip(batch["labels"].tolist(), examples, strict=True):
        ids = collator.label_ids(item)
        assert row == ids + [IGNORED] * (16 - len(ids))


def test_a_longer_text_takes_the_next_multiple_and_no_more_than_the_model_has(collator: WhisperCollator) -> None:
    text_length = [len(collator.label_ids(example(" ".join(["one"] * count)))) for count in (13, 32)]
    assert [16 < text_length[0] <= 32, 32 < text_length[1] <= 40] == [True, True]
    assert collator([example(" ".join(["one"] * 13))])["labels"].shape == (1, 32)
    assert collator([example(" ".join(["one"] * 32))])["labels"].shape == (1, 40)


def test_a_text_beyond_the_model_is_refused(collator: WhisperCollator) -> None:
    long = " ".join(["one"] * 37)
    with pytest.raises(SottoError, match=r"a text of 41 tokens, where the model takes 40: 'one one .*'; leave"):
        collator([example("two"), example(long)])


def test_an_unknown_language_is_refused(processor: Any, collator: WhisperCollator) -> None:
    with pytest.raises(SottoError, match="the model has no language 'english'"):
        WhisperCollator(processor, "english")
    with pytest.raises(SottoError, match="the model has no language 'xx'"):
        collator.label_ids(example("one", language="xx"))


def same(one: Example, other: Example) -> bool:
    return one.text == other.text and one.span == other.span and np.array_equal(one.audio, other.audio)


@pytest.fixture
def source(tmp_path: Path) -> ClipSource:
    return open_folder(write_folder(tmp_path / "clips", list(PITCHES), [0.3, 0.4, 0.5, 0.6]))


def clip_examples(source: ClipSource, seed: int = 0, augmentation: Augmentation = VARIED) -> ClipExamples:
    return ClipExamples(source, augmentation, 1.0, seed)


def spliced_examples(seed: int = 0, **changes: Any) -> SplicedExamples:
    clips = [clip(word, 0.1) for word in PITCHES]
    values: dict[str, Any] = {"augmentation": VARIED, "window_seconds": 1.0, "timestamp_share": 0.5}
    return SplicedExamples(clips, Splicing(cut_probability=0.3, strings=50), seed=seed, **(values | changes))


@pytest.mark.parametrize("kind", ["clips", "spliced"])
def test_index_epoch_and_seed_give_the_example(source: ClipSource, kind: str) -> None:
    def build(seed: int = 0) -> Any:
        return clip_examples(source, seed) if kind == "clips" else spliced_examples(seed)

    examples, again, other_seed = build(), build(), build(seed=1)
    backwards = {index: again[index] for index in reversed(range(4))}
    assert all(same(examples[index], backwards[index]) for index in range(4))
    assert not same(examples[0], examples[1])
    assert not all(same(examples[index], other_seed[index]) for index in range(4))
    examples.set_epoch(1)
    assert not all(same(examples[index], backwards[index]) for index in range(4))
    again.set_epoch(1)
    assert all(same(examples[index], again[index]) for index in range(4))
    examples.set_epoch(0)
    assert all(same(examples[index], backwards[index]) for index in range(4))


def test_clips_are_as_they_were_recorded_without_augmentation(source: ClipSource) -> None:
    examples = clip_examples(source, augmentation=Augmentation())
    assert len(examples) == 4
    assert examples.lengths == [0.3, 0.4, 0.5, 0.6]
    for index, recorded in enumerate(source):
        np.testing.assert_array_equal(examples[index].audio, recorded.audio)
        assert examples[index].text == recorded.text
        assert examples[index].span is None


@pytest.mark.parametrize("with_lengths", [True, False])
def test_clips_longer_than_the_window_or_without_text_are_left_out(tmp_path: Path, with_lengths: bool) -> None:
    folder = write_folder(tmp_path / "clips", ["one", "two", "three"], [0.3, 1.2, 1.0], columns=with_lengths)
    with (folder / "metadata.csv").open("a", newline="") as file:
        csv.writer(file).writerow(["0.wav", "", "a", "0.30"])
    examples = clip_examples(open_folder(folder), augmentation=Augmentation())
    assert [examples[index].text for index in range(len(examples))] == ["one", "three"]
    assert examples.lengths == [0.3, 1.0]


def test_no_usable_clip_is_an_error(tmp_path: Path) -> None:
    source = open_folder(write_folder(tmp_path / "clips", ["one"], [1.2]))
    with pytest.raises(SottoError, match="no clip has a transcript and fits the window of 1 s"):
        clip_examples(source)


def test_the_next_clip_takes_the_place_of_a_bad_one(source: ClipSource, caplog: pytest.LogCaptureFixture) -> None:
    for reference in source.references[2:]:
        assert reference.path is not None
        reference.path.write_bytes(b"no audio")
    examples = clip_examples(source)
    assert [examples[index].text for index in range(4)] == ["one", "two", "one", "one"]
    assert "2.wav left out: " in caplog.text


def test_all_clips_bad_is_an_error(source: ClipSource) -> None:
    for reference in source.references:
        assert reference.path is not None
        reference.path.unlink()
    with pytest.raises(SottoError, match=r"none of the 4 clips in .* can be used; check the files"):
        clip_examples(source)[1]


def test_a_clip_slowed_down_past_the_window_keeps_its_speed(tmp_path: Path) -> None:
    source = open_folder(write_folder(tmp_path / "clips", ["one", "two"], [0.5, 0.9]))
    slow = clip_examples(source, augmentation=Augmentation(speed=(0.8,)))
    assert [len(slow[index].audio) / RATE for index in range(2)] == pytest.approx([0.5 / 0.8, 0.9], abs=1e-4)


def test_spliced_spans_are_where_the_speech_is() -> None:
    """Speed moves the times with the audio: before and after the span there is nothing but faint noise."""
    augmentation = Augmentation(speed=(0.9, 1.1))
    examples = spliced_examples(augmentation=augmentation, timestamp_share=1.0)
    kept = [examples[index] for index in range(50)]
    assert {example.span.cut for example in kept if example.span} == {True, False}
    for item in kept:
        assert item.span is not None
        assert len(item.audio) <= RATE
        assert item.span.end <= 1.0
        loud = np.flatnonzero(np.abs(item.audio) > 0.2) / RATE
        assert item.span.start == pytest.approx(loud[0], abs=1e-3)
        if not item.span.cut:
            assert item.span.end == pytest.approx(loud[-1], abs=1e-3)


def test_a_string_slowed_down_past_the_window_keeps_its_speed() -> None:
    examples = SplicedExamples(
        [Clip("long", square_wave(300, 0.45), RATE, "one")],
        Splicing(2, 2, pause_seconds=(0.0, 0.0), lead_seconds=(0.0, 0.05), strings=5),
        Augmentation(speed=(0.8,)),
        1.0,
        1.0,
        seed=0,
    )
    for index in range(5):
        item = examples[index]
        assert item.text == "one one"
        assert item.span is not None
        assert item.span.end - item.span.start == pytest.approx(0.9)
        assert pitch_of(item.audio) == pytest.approx(300, abs=3)


@pytest.mark.parametrize(("share", "least", "most"), [(0.0, 0, 0), (0.5, 20, 80), (1.0, 100, 100)])
def test_a_share_of_strings_and_all_cut_ones_are_timed(share: float, least: int, most: int) -> None:
    examples = spliced_examples(timestamp_share=share)
    spans = [examples[index].span for index in range(50)]
    cut = sum(span is not None and span.cut for span in spans)
    whole = 50 - cut
    timed = sum(span is not None and not span.cut for span in spans)
    assert 5 <= cut <= 25
    assert least <= 100 * timed / whole <= most


def test_spliced_examples_make_a_batch(processor: Any) -> None:
    examples = spliced_examples()
    batch = WhisperCollator(processor, "en")([examples[index] for index in range(8)])
    assert batch["input_features"].shape == (8, 80, 200)
    for row, index in zip(batch["labels"].tolist(), range(8), strict=True):
        text = processor.tokenizer.decode([token for token in row if token != IGNORED], skip_special_tokens=True)
        assert text.strip() == examples[index].text
    assert len(examples) == len(examples.lengths) == 50
