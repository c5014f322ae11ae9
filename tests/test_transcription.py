import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from transformers.utils import logging as transformers_logging

from sotto.checkpoint import Recognizer
from sotto.configuration import parse
from sotto.data import Clip
from sotto.decoding import Decoding, Segment, Transcription
from sotto.errors import SottoError
from sotto.families.family import batches
from sotto.new_models.whisper import NewWhisper, new_model, new_processor
from sotto.transcription import transcribe

RATE = 16000
TEXTS = ["one two three four five", "six seven eight nine zero"]


def recognizer(window_seconds: float = 6.0, languages: tuple[str, ...] = ("en",), seed: int = 0) -> Recognizer:
    config = NewWhisper(
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        attention_heads=2,
        vocabulary=300,
        languages=languages,
        window_seconds=window_seconds,
        maximum_tokens=24,
    )
    processor = new_processor(config, TEXTS)
    model = new_model(config, processor.tokenizer, seed)
    with torch.no_grad():
        for parameter in model.parameters():  # at the usual scale an untrained model says one token for ever
            parameter.mul_(8.0)
    return Recognizer(model.eval(), processor)


def clip(seconds: float, seed: int = 0, rate: int = RATE) -> Clip:
    rng = np.random.default_rng(seed)
    loudness = np.repeat(rng.uniform(0.01, 0.5, size=1 + round(10 * seconds)), rate // 10)[: round(seconds * rate)]
    audio = loudness * rng.standard_normal(round(seconds * rate))
    return Clip(f"clip-{seed}", audio.astype(np.float32), rate)


class Script(torch.nn.Module):
    """Stands in for the output layer: says the tokens of `passes`, one pass a window, then the end of the text."""

    def __init__(self, passes: list[list[int]], vocabulary: int, end: int) -> None:
        super().__init__()
        self.passes = iter(passes)
        self.vocabulary = vocabulary
        self.end = end
        self.started = 0

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if hidden.shape[1] > 1:  # the prompt
            self.line = iter(next(self.passes, []))
            self.started += 1
        logits = torch.zeros(*hidden.shape[:2], self.vocabulary)
        logits[:, -1, next(self.line, self.end)] = 100.0
        return logits


def scripted(found: Recognizer, *passes: list[str | float]) -> Script:
    """Let the recogniser say these words and, where a number stands, timestamps."""
    tokenizer = found.processor.tokenizer
    begin = tokenizer.convert_tokens_to_ids("<|0.00|>")

    def ids(part: str | float) -> list[int]:
        if isinstance(part, str):
            return list(tokenizer.encode(part, add_special_tokens=False))
        return [begin + round(part / 0.02)]

    lines = [[token for part in line for token in ids(part)] for line in passes]
    found.model.proj_out = Script(lines, found.model.config.vocab_size, tokenizer.eos_token_id)
    return found.model.proj_out


def run(found: Recognizer, clips: list[Clip], **decoding: Any) -> list[Transcription]:
    return list(transcribe(found, clips, Decoding(**decoding)))


def prompt(found: Recognizer, **decoding: Any) -> list[str]:
    """The tokens that decoding begins with."""
    seen: list[list[int]] = []
    decoder = found.model.get_decoder()
    hook = decoder.register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(kwargs["input_ids"][0].tolist()), with_kwargs=True
    )
    run(found, [clip(1.0)], **decoding)
    hook.remove()
    longest = max(seen, key=len)
    return [token.strip("<|>") for token in found.processor.tokenizer.convert_ids_to_tokens(longest)]


@pytest.mark.parametrize(
    ("decoding", "line"),
    [
        (Decoding(language="en"), "greedy, language en, no timestamps, batch 8"),
        (
            Decoding(task="translate", beams=5, timestamps=True, maximum_tokens=9, batch_size=1),
            "5 beams, language automatic, translated to English, timestamps, at most 9 tokens, batch 1",
        ),
    ],
)
def test_describe(decoding: Decoding, line: str) -> None:
    assert decoding.describe() == line


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"beams": 0}, "beams must be a whole number above 0, not 0"),
        ({"beams": 1.5}, "beams must be a whole number above 0, not 1.5"),
        ({"batch_size": True}, "batch_size must be a whole number above 0, not True"),
        ({"maximum_tokens": -1}, "maximum_tokens must be a whole number above 0, or left out, not -1"),
        ({"task": "sing"}, "task must be one of transcribe, translate, not 'sing'"),
        ({"language": " "}, "language must be a language, or left out, not ' '"),
        ({"timestamps": "yes"}, "timestamps must be true or false, not 'yes'"),
    ],
)
def test_bad_settings_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SottoError, match=message):
        Decoding(**values)


def test_settings_can_be_parsed() -> None:
    assert parse(Decoding, {"task": "translate", "beams": 2}, "decoding") == Decoding(task="translate", beams=2)


def test_batches_keep_the_order_and_leave_long_clips_alone() -> None:
    clips = [clip(seconds, seed) for seed, seconds in enumerate([1, 6, 2, 3, 7, 9, 1])]
    found = [[int(one.name.removeprefix("clip-")) for one in batch] for batch in batches(clips, 6.0, 3)]
    assert found == [[0, 1, 2], [3], [4], [5], [6]]


@pytest.mark.parametrize("options", [{}, {"timestamps": True}, {"beams": 3}, {"timestamps": True, "beams": 2}])
def test_a_batch_gives_what_single_clips_give(options: dict[str, Any]) -> None:
    found = recognizer()
    clips = [clip(seconds, seed) for seed, seconds in enumerate([0.4, 6.0, 2.5, 7.1, 3.3, 5.0])]
    together = run(found, clips, batch_size=4, **options)
    assert together == run(found, clips, batch_size=1, **options)
    assert together == run(found, clips, batch_size=4, **options)
    assert [one.name for one in together] == [one.name for one in clips]
    assert [one.seconds for one in together] == [one.seconds for one in clips]
    assert len({one.text for one in together}) > 2


def test_beams_find_another_text_than_greedy() -> None:
    found = recognizer()
    clips = [clip(seconds, seed) for seed, seconds in enumerate([2.0, 5.0])]
    assert [one.text for one in run(found, clips, beams=4)] != [one.text for one in run(found, clips)]


def test_short_clips_are_decoded_as_transformers_does() -> None:
    found = recognizer()
    one = clip(3.0)
    inputs = found.processor(one.audio, sampling_rate=RATE, return_tensors="pt")
    scripted(found, [" one two"], [" one two"])
    ids = found.model.generate(inputs.input_features, language="en", task="transcribe")
    assert run(found, [one])[0].text == found.processor.decode(ids[0], skip_special_tokens=True).strip() == "one two"


@pytest.mark.parametrize("timestamps", [False, True])
def test_a_long_clip_has_segments_within_its_length(timestamps: bool) -> None:
    (heard,) = run(recognizer(), [clip(14.0)], timestamps=timestamps)
    assert heard.segments
    assert heard.seconds == 14.0
    times = [time for segment in heard.segments for time in (segment.start, segment.end)]
    assert times == sorted(times)
    assert times[0] >= 0.0
    assert times[-1] <= 14.0
    assert max(times) > 6.0
    assert "".join(heard.text.split()) == "".join("".join(one.text.split()) for one in heard.segments)


def test_a_long_clip_goes_on_where_its_last_whole_segment_ended() -> None:
    found = recognizer()
    script = scripted(
        found,
        [0.0, " one", 2.5, 2.5, " two", 4.0, 4.0],  # cut off: the next window begins at 4 s
        [0.5, " three", 3.0],  # closed: the next begins at 4 + 6 s
        [0.2, " four"],  # never closed, lasts until the clip ends
    )
    (heard,) = run(found, [clip(14.0)])
    assert script.started == 3
    assert heard.text == "one two three four"
    assert [one.text for one in heard.segments] == ["one", "two", "three", "four"]
    times = [(one.start, one.end) for one in heard.segments]
    np.testing.assert_allclose(times, [(0.0, 2.5), (2.5, 4.0), (4.5, 7.0), (10.2, 14.0)])


def test_a_segment_that_is_never_closed_lasts_until_its_window_ends() -> None:
    found = recognizer()
    scripted(found, [0.4, " one two"], [0.0, " three", 2.0])
    (heard,) = run(found, [clip(9.0)])
    np.testing.assert_allclose([(one.start, one.end) for one in heard.segments], [(0.4, 6.0), (6.0, 8.0)])


def test_timestamps_beyond_a_short_clip_are_clamped() -> None:
    found = recognizer()
    scripted(found, [0.2, " one", 5.0])
    assert run(found, [clip(1.5)], timestamps=True)[0].segments == (Segment(0.2, 1.5, "one"),)


def test_what_is_heard_in_the_padding_alone_is_left_out() -> None:
    found = recognizer()
    script = scripted(found, [0.0, " one", 2.0, 2.0], [0.0, " thank you", 1.0])
    (heard,) = run(found, [clip(2.0)], timestamps=True)
    assert script.started == 2
    assert heard == Transcription("clip-0", "one", 2.0, (Segment(0.0, 2.0, "one"),))


def test_a_segment_without_text_is_no_segment() -> None:
    found = recognizer()
    scripted(found, [0.0, " ", 1.0, 1.0, " one", 2.0])
    assert [one.text for one in run(found, [clip(2.0)], timestamps=True)[0].segments] == ["one"]


def test_without_timestamps_a_model_cannot_say_any() -> None:
    found = recognizer()
    script = scripted(found, [0.0, 0.0, " one", 2.0, 2.0, " two"])
    (heard,) = run(found, [clip(2.0)])
    assert script.started == 1
    assert heard.segments == ()
    assert "one" in heard.text
    assert "two" in heard.text


@pytest.mark.parametrize(("maximum", "count"), [(5, 5), (None, 20), (1000, 20)])
def test_the_number_of_tokens_is_limited(maximum: int | None, count: int) -> None:
    found = recognizer()
    scripted(found, ["x" * 100])
    tokens = found.processor.tokenizer.encode("x" * 100, add_special_tokens=False)
    assert len(tokens) == 100
    assert run(found, [clip(1.0)], maximum_tokens=maximum)[0].text == "x" * count


def test_no_clips_give_nothing() -> None:
    assert run(recognizer(), []) == []


def test_clips_are_read_as_they_are_needed() -> None:
    read = []

    def reading() -> Iterator[Clip]:
        for seed in range(100):
            read.append(seed)
            yield clip(1.0, seed)

    heard = transcribe(recognizer(), reading(), Decoding(batch_size=3))
    assert read == []
    assert next(heard).name == "clip-0"
    assert len(read) == 3


def test_a_window_of_thirty_seconds() -> None:
    found = recognizer(30.0)
    scripted(found, [0.0, " one", 20.0], [0.0, " two", 29.0], [1.0, " three", 2.0])
    short, long = run(found, [clip(15.0), clip(33.0, 1)], timestamps=True, batch_size=2)
    assert short.segments == (Segment(0.0, 15.0, "one"),)
    assert long.segments == (Segment(0.0, 29.0, "two"), Segment(31.0, 32.0, "three"))


@pytest.mark.parametrize(
    ("decoding", "tokens"),
    [
        ({}, ["startoftranscript", "en", "transcribe", "notimestamps"]),
        ({"timestamps": True}, ["startoftranscript", "en", "transcribe"]),
        ({"task": "translate"}, ["startoftranscript", "en", "translate", "notimestamps"]),
    ],
)
def test_the_only_language_is_taken(decoding: dict[str, Any], tokens: list[str]) -> None:
    found = recognizer()
    scripted(found, [0.0, " one", 1.0])
    assert prompt(found, **decoding) == tokens


@pytest.mark.parametrize("language", ["hi", "Hindi", "<|hi|>"])
def test_a_language_has_several_names(language: str) -> None:
    assert prompt(recognizer(languages=("en", "hi")), language=language)[1] == "hi"


def test_the_language_is_detected_where_there_are_several() -> None:
    found = recognizer(languages=("en", "hi"))
    audio = found.processor(clip(1.0).audio, sampling_rate=RATE, return_tensors="pt").input_features
    detected = found.processor.tokenizer.convert_ids_to_tokens(found.model.detect_language(audio).tolist())
    assert prompt(found) == ["startoftranscript", detected[0].strip("<|>"), "transcribe", "notimestamps"]


def test_an_unknown_language_is_an_error_before_anything_is_read() -> None:
    message = "language 'klingon' is unknown to the checkpoint; known: en, hi"
    with pytest.raises(SottoError, match=message):
        transcribe(recognizer(languages=("hi", "en")), [], Decoding(language="klingon"))


def english_only() -> Recognizer:
    found = recognizer()
    generation = found.model.generation_config
    generation.is_multilingual = False
    del generation.lang_to_id, generation.task_to_id
    return found


@pytest.mark.parametrize("language", [None, "en", "English"])
def test_an_english_only_checkpoint_is_told_no_language(language: str | None) -> None:
    assert prompt(english_only(), language=language) == ["startoftranscript", "notimestamps"]


def test_an_english_only_checkpoint_refuses_the_rest() -> None:
    with pytest.raises(SottoError, match="language 'hi' is unknown to the checkpoint; known: en"):
        transcribe(english_only(), [], Decoding(language="hi"))
    with pytest.raises(SottoError, match="cannot translate"):
        transcribe(english_only(), [], Decoding(task="translate"))


def test_a_generation_config_without_languages_is_named() -> None:
    found = recognizer()
    del found.model.generation_config.lang_to_id
    with pytest.raises(SottoError, match="'en' is unknown to the checkpoint; its generation config has no lang_to_id"):
        transcribe(found, [], Decoding(language="en"))


def test_timestamps_of_a_checkpoint_without_them() -> None:
    found = recognizer()
    del found.model.generation_config.no_timestamps_token_id
    assert len(run(found, [clip(1.0)])) == 1
    with pytest.raises(SottoError, match=r"clip-0: needs timestamps, .* no_timestamps_token_id"):
        run(found, [clip(7.0)])


def test_another_sampling_rate_is_an_error() -> None:
    with pytest.raises(SottoError, match="clip-0: is at 8000 Hz and the recogniser hears 16000 Hz"):
        run(recognizer(), [clip(1.0, rate=8000)])


@pytest.mark.parametrize("training", [True, False])
def test_the_model_keeps_its_mode(training: bool) -> None:
    found = recognizer()
    found.model.train(training)
    modes = []
    found.model.get_encoder().register_forward_hook(lambda module, *_: modes.append(module.training))
    run(found, [clip(1.0), clip(7.0)])
    assert set(modes) == {False}
    assert found.model.training is training


def test_the_model_keeps_its_mode_when_decoding_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    found = recognizer()
    found.model.train()
    before = transformers_logging.get_verbosity()
    monkeypatch.setattr(found.model, "generate", lambda **_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(found, [clip(1.0)])
    assert found.model.training
    assert transformers_logging.get_verbosity() == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_features_take_the_dtype_of_the_model(dtype: torch.dtype) -> None:
    found = recognizer()
    found.model.to(dtype)
    assert len(run(found, [clip(1.0), clip(8.0)], timestamps=True)) == 2


class Heard(logging.Handler):
    """Keeps the messages that a logger gives it."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@pytest.fixture
def transformers_log() -> Iterator[Heard]:
    """What transformers logs, from its information on."""
    heard, before = Heard(), transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_info()
    transformers_logging.add_handler(heard)
    yield heard
    transformers_logging.remove_handler(heard)
    transformers_logging.set_verbosity(before)


@pytest.mark.filterwarnings("error")
def test_transformers_stays_quiet_and_can_speak_again(transformers_log: Heard) -> None:
    found = recognizer()
    transformers_log.messages.clear()
    run(found, [clip(1.0), clip(14.0)])
    run(found, [clip(1.0)], timestamps=True, beams=2, maximum_tokens=7, language="en")
    assert transformers_log.messages == []
    transformers_logging.get_logger("transformers").info("audible")
    assert transformers_log.messages == ["audible"]


def test_the_attention_mask_says_what_is_audio(monkeypatch: pytest.MonkeyPatch) -> None:
    found = recognizer()
    seen = []
    generate = found.model.generate

    def spy(**inputs: Any) -> Any:
        seen.append(inputs)
        return generate(**inputs)

    monkeypatch.setattr(found.model, "generate", spy)
    run(found, [clip(1.0), clip(6.0), clip(8.0)])
    assert [call["input_features"].shape for call in seen] == [(2, 80, 600), (1, 80, 800)]
    assert [call["attention_mask"].shape for call in seen] == [(2, 600), (1, 800)]
    assert [call["attention_mask"].sum(-1).tolist() for call in seen] == [[100, 600], [800]]
