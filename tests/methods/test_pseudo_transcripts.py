"""Transcripts that a teacher writes: kept, resumed, and left out where they are not to be learnt."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from conformers import make
from digits import MODEL, some_clips
from sotto import compress
from sotto.checkpoint import Recognizer, load
from sotto.data import ClipSource, DataConfig, open_data
from sotto.decoding import Transcription
from sotto.errors import SottoError
from sotto.methods import DistilWhisper, FineTuning
from sotto.methods.pseudo_transcripts import is_learnt, line_of, transcribed, written_by
from sotto.text import get_normalizer
from sotto.training import Training
from tones import write_folder

BASIC = get_normalizer("basic")
Says = Callable[[dict[str, str]], list[str]]


@pytest.fixture
def source(tmp_path: Path) -> ClipSource:
    write_folder(tmp_path / "clips", ["one", "two", "three"], [0.5, 0.6, 0.7])
    return open_data(DataConfig(str(tmp_path / "clips")), sampling_rate=16_000)


@pytest.fixture
def teacher() -> Recognizer:
    return make("parakeet")


@pytest.fixture
def says(teacher: Recognizer, monkeypatch: pytest.MonkeyPatch) -> Says:
    """Has the teacher say the given texts of the clips; gives a list that the names of the clips it heard come into."""

    def told(texts: dict[str, str]) -> list[str]:
        heard: list[str] = []

        def transcribe(self: Any, clips: Any, decoding: Any) -> Iterator[Transcription]:
            assert decoding.batch_size > 1  # one by one, hours of clips would take days
            for clip in clips:
                heard.append(clip.name)
                yield Transcription(clip.name, texts[clip.text], clip.seconds, ())

        monkeypatch.setattr(type(teacher.family), "transcribe", transcribe)
        return heard

    return told


def test_they_are_written_once_and_kept(source: ClipSource, teacher: Recognizer, says: Says, tmp_path: Path) -> None:
    heard = says({"one": "uno", "two": " ", "three": "tres"})
    for _ in range(2):
        found = transcribed(source, lambda: teacher, "en", tmp_path / "work" / "transcripts.json", BASIC)
        assert [clip.text for clip in found] == ["uno", "tres"]  # nothing was heard in the second
    assert len(heard) == 3
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["transcripts.json"]
    says(dict.fromkeys(["one", "two", "three"], ""))
    with pytest.raises(SottoError, match="no transcript of the teacher can be learnt; train on the clips' own"):
        transcribed(source, lambda: teacher, "en", tmp_path / "other.json", BASIC)


def test_a_second_start_goes_on_where_the_first_was_stopped(
    source: ClipSource, teacher: Recognizer, says: Says, tmp_path: Path
) -> None:
    says({"one": "uno"})  # and no more: it stops at the second clip
    path = tmp_path / "work" / "transcripts.json"
    with pytest.raises(KeyError):
        transcribed(source, lambda: teacher, "en", path, BASIC)
    assert not path.exists()
    (lines,) = path.parent.iterdir()
    lines.write_text(lines.read_text() + '["audio/broken o')  # as a kill in the middle of a line leaves it
    heard = says({"two": "dos", "three": "tres"})
    assert [clip.text for clip in transcribed(source, lambda: teacher, "en", path, BASIC)] == ["uno", "dos", "tres"]
    assert len(heard) == 2


def test_where_all_is_written_the_teacher_is_not_opened(source: ClipSource, tmp_path: Path) -> None:
    """As a run leaves it that was stopped while others still wrote their shares."""
    texts = {reference.name: str(reference.text) for reference in source.references}
    lines = "".join(line_of(name, text) for name, text in texts.items())
    (tmp_path / "transcripts.0.jsonl").write_text(lines)
    assert written_by(source, make_none, "en", tmp_path / "transcripts.json") == texts


def test_what_more_processes_had_written_is_taken_and_cleared_away(
    source: ClipSource, teacher: Recognizer, says: Says, tmp_path: Path
) -> None:
    names = [reference.name for reference in source.references]
    for process, text in enumerate(["uno", "dos"]):
        (tmp_path / f"transcripts-1.{process}.jsonl").write_text(line_of(names[process], text))
    of_others = tmp_path / "transcripts-11.1.jsonl"
    of_others.write_text(line_of(names[2], "otro"))
    heard = says({"three": "tres"})
    found = transcribed(source, lambda: teacher, "en", tmp_path / "transcripts-1.json", BASIC)
    assert [clip.text for clip in found] == ["uno", "dos", "tres"]
    assert heard == [names[2]]
    assert sorted(tmp_path.glob("*.json*")) == [tmp_path / "transcripts-1.json", of_others]


def test_clips_that_name_their_language_are_written_in_it(
    source: ClipSource, teacher: Recognizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    references = [
        replace(each, language=code) for each, code in zip(source.references, ("hi", "hi", None), strict=True)
    ]
    monkeypatch.setattr(source, "references", references)

    def transcribe(self: Any, clips: Any, decoding: Any) -> Iterator[Transcription]:
        for clip in clips:
            yield Transcription(clip.name, f"{clip.text} in {decoding.language}", clip.seconds, ())

    monkeypatch.setattr(type(teacher.family), "transcribe", transcribe)
    written = written_by(source, lambda: teacher, "en", tmp_path / "transcripts.json")
    assert list(written.values()) == ["one in hi", "two in hi", "three in en"]


def make_none() -> Recognizer:
    raise AssertionError("a teacher was opened")


def test_what_is_far_from_the_clips_own_text_is_left_out(
    source: ClipSource, teacher: Recognizer, says: Says, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    says({"one": "One!", "two": "too", "three": "three " * 9})
    found = transcribed(source, lambda: teacher, "en", tmp_path / "transcripts.json", BASIC, within=0.1)
    assert [clip.text for clip in found] == ["One!"]
    assert "1 clips with the teacher's transcripts, 2 left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("own", "text", "within", "expected"),
    [
        ("", "anything at all", 0.0, True),  # there is nothing to hold it against
        ("", "so so so so so so so so so", None, False),
        ("so so so so so so so so so", "so so so so so so so so so", None, True),  # that is what was said
        ("a b c d", "a b c x", 0.25, True),
        ("a b c d", "a b c x", 0.24, False),
        ("a b", "c d", None, True),
        ("a b", " ?! ", None, False),
    ],
)
def test_what_is_learnt_by_hand(own: str, text: str, within: float | None, expected: bool) -> None:
    assert is_learnt(own, text, BASIC, within) == expected


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """Clips of the bundled recogniser's words, without transcripts."""
    folder = some_clips("test", tmp_path / "plain", 4)
    (folder / "metadata.csv").unlink()
    return folder


def test_plain_audio_gets_what_a_model_hears(plain: Path, tmp_path: Path) -> None:
    spoken = open_data(DataConfig(str(some_clips("test", tmp_path / "spoken", 4))), sampling_rate=16_000)
    source = open_data(DataConfig(str(plain)), sampling_rate=16_000)
    assert [reference.text for reference in source.references] == [None] * 4
    found = transcribed(source, lambda: load(MODEL), "en", tmp_path / "transcripts.json", BASIC, within=0.1)
    assert {clip.name: clip.text for clip in found} == {clip.name: clip.text for clip in spoken}


def test_a_student_learns_from_plain_audio(plain: Path, tmp_path: Path) -> None:
    training = Training(steps=1, batch_size=2, workers=0, learning_rate=1e-3, evaluate_every=1, keep="last")
    step = FineTuning(training, (DistilWhisper(str(MODEL)),), transcripts_from=str(MODEL))
    validation = some_clips("test", tmp_path / "validation", 1)
    student = compress(MODEL, step, train=plain, validation=validation, language="en").model
    learnt, before = (each.model.decoder.layers[0].fc1.weight for each in (student, load(MODEL).model))
    assert not torch.equal(learnt, before)
    with pytest.raises(SottoError, match="no transcripts in .*plain"):
        compress(MODEL, FineTuning(training), train=plain, validation=validation, language="en")


@pytest.mark.parametrize(
    "settings", [{"transcripts_within": 0.1}, {"transcripts_within": -1.0, "transcripts_from": "x"}]
)
def test_settings_are_checked(settings: Any) -> None:
    with pytest.raises(SottoError, match="transcripts_within must not be negative, and goes with transcripts_from"):
        FineTuning(Training(steps=1), **settings)
