from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sotto.data import BadClip, ClipReference, ClipSource, DataConfig, open_data
from sotto.errors import SottoError


def open_at(path: Path, **options: object) -> ClipSource:
    return open_data(DataConfig(path=str(path), **options), sampling_rate=16000)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": ""}, "path must be a text"),
        ({"path": 3}, "path must be a text"),
        ({"text": ""}, "text must be a text"),
        ({"split": ""}, "split must be a text"),
        ({"name": 1}, "name must be a text"),
        ({"samples": 0}, "samples must be a whole number"),
        ({"samples": 1.5}, "samples must be a whole number"),
        ({"samples": True}, "samples must be a whole number"),
        ({"seed": "x"}, "seed must be a whole number"),
        ({"minimum_seconds": 0}, "minimum_seconds must be a number"),
        ({"maximum_seconds": float("nan")}, "maximum_seconds must be a number"),
        ({"minimum_seconds": 3, "maximum_seconds": 2}, "minimum_seconds 3 is above maximum_seconds 2"),
    ],
)
def test_config_validates_itself(options: dict[str, object], message: str) -> None:
    with pytest.raises(SottoError, match=f"data: {message}"):
        DataConfig(**{"path": "clips", **options})


def test_clips_are_mono_float32_at_the_asked_rate(tmp_path, write_clip) -> None:
    write_clip("a.wav", seconds=0.5, rate=44100)
    (clip,) = open_at(tmp_path)
    assert clip.audio.dtype == np.float32
    assert clip.audio.shape == (8000,)
    assert clip.sampling_rate == 16000
    assert clip.seconds == 0.5


def test_bad_clips_are_skipped_and_noted_once(tmp_path, write_clip) -> None:
    write_clip("good.wav")
    (tmp_path / "a_empty.wav").touch()
    (tmp_path / "b_text.wav").write_text("hello")
    (tmp_path / "metadata.csv").write_text("file_name,text\na_empty.wav,x\nb_text.wav,x\ngone.wav,x\ngood.wav,yes\n")
    source = open_at(tmp_path)
    assert source.skipped == []
    assert len(source) == 4
    for _ in range(2):
        assert [clip.text for clip in source] == ["yes"]
    assert [clip.name for clip in source.skipped] == ["a_empty.wav", "b_text.wav", "gone.wav"]
    reasons = [clip.reason.split(":")[0] for clip in source.skipped]
    assert reasons == ["is empty", "does not decode", "is missing"]


def test_all_bad_is_an_error_with_count_and_reasons(tmp_path) -> None:
    for index in range(5):
        (tmp_path / f"{index}.wav").touch()
    source = open_at(tmp_path)
    with pytest.raises(SottoError, match=r"none of the 5 clips in .* can be used: 0.wav is empty; 1.wav is empty"):
        list(source)
    assert len(source.skipped) == 5
    assert list(source.shard(0, 5)) == []


def test_clips_are_decoded_one_at_a_time(tmp_path, write_clip, monkeypatch) -> None:
    for index in range(3):
        write_clip(f"{index}.wav")
    source = open_at(tmp_path)
    decoded: list[str] = []
    read = source.read

    def noting(reference: ClipReference) -> object:
        decoded.append(reference.name)
        return read(reference)

    monkeypatch.setattr(source, "read", noting)
    clips = iter(source)
    assert decoded == []
    next(clips)
    assert decoded == ["0.wav"]


def test_read_gives_one_clip_or_its_fault(tmp_path, write_clip) -> None:
    write_clip("a.wav")
    source = open_at(tmp_path)
    reference = source.references[0]
    np.testing.assert_array_equal(source.read(reference).audio, next(iter(source)).audio)
    with pytest.raises(BadClip, match="neither a file nor bytes"):
        source.read(ClipReference(name="x"))
    with pytest.raises(BadClip, match="torn"):
        source.read(ClipReference(name="x", path=reference.path, fault="torn"))


@given(total=st.integers(1, 40), count=st.integers(1, 9), inner=st.integers(1, 4))
def test_shards_partition_also_when_sharded_again(total: int, count: int, inner: int) -> None:
    references = [ClipReference(name=str(index)) for index in range(total)]
    source = ClipSource(DataConfig(path="x"), references, sampling_rate=16000)
    shards = [source.shard(i, count).shard(j, inner) for i in range(count) for j in range(inner)]
    assert sorted(r.name for shard in shards for r in shard.references) == sorted(r.name for r in references)
    assert [len(shard) for shard in shards] == [len(shard.references) for shard in shards]
    sizes = [len(source.shard(i, count)) for i in range(count)]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(("index", "count"), [(-1, 2), (2, 2), (0, 0)])
def test_shard_out_of_range(index: int, count: int) -> None:
    source = ClipSource(DataConfig(path="x"), [ClipReference(name="a")], sampling_rate=16000)
    with pytest.raises(SottoError, match=f"shard {index} of {count}"):
        source.shard(index, count)


def test_no_transcripts_at_all_is_an_error(tmp_path, write_clip) -> None:
    write_clip("a.wav")
    with pytest.raises(SottoError, match=r"no transcripts in .*metadata.csv with columns file_name,text"):
        open_at(tmp_path).require_transcripts()
    (tmp_path / "metadata.csv").write_text("file_name,text\na.wav,\n")
    with pytest.raises(SottoError, match="no transcripts"):
        open_at(tmp_path).require_transcripts()


def test_clip_without_transcript_is_skipped_only_where_text_is_needed(tmp_path, write_clip) -> None:
    for name in ("a.wav", "b.wav", "c.wav"):
        write_clip(name)
    rows = '{"file_name": "a.wav", "text": "x"}\n{"file_name": "b.wav"}\n{"file_name": "c.wav", "text": ""}\n'
    (tmp_path / "metadata.jsonl").write_text(rows)
    source = open_at(tmp_path)
    assert [clip.text for clip in source] == ["x", None, ""]
    source.require_transcripts()
    assert [clip.text for clip in source] == ["x", ""]
    assert [(clip.name, clip.reason) for clip in source.skipped] == [("b.wav", "has no transcript")]
    assert [clip.text for clip in source.shard(1, 2)] == []


def test_sampling_rate_must_be_positive(tmp_path, write_clip) -> None:
    write_clip("a.wav")
    with pytest.raises(SottoError, match="sampling_rate must be above 0"):
        open_data(DataConfig(path=str(tmp_path)), sampling_rate=0)
