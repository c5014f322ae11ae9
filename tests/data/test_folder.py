import json
from pathlib import Path

import pytest
import soundfile

from sotto.data import ClipSource, DataConfig, open_data
from sotto.errors import SottoError


def open_at(path: Path | str, *, root: Path | None = None, **options: object) -> ClipSource:
    return open_data(DataConfig(path=str(path), **options), sampling_rate=16000, root=root)


def names(source: ClipSource) -> list[str]:
    return [reference.name for reference in source.references]


def test_plain_folder_is_listed_recursively_and_sorted(tmp_path, write_clip) -> None:
    for name in ("b.wav", "a.flac", "deep/er/c.ogg", "deep/D.WAV", ".hidden.wav", "__MACOSX/x.wav"):
        write_clip(name)
    (tmp_path / "notes.md").write_text("no audio")
    source = open_at(tmp_path)
    assert names(source) == ["a.flac", "b.wav", "deep/D.WAV", "deep/er/c.ogg"]
    assert [clip.name for clip in source] == names(source)
    assert all(reference.text is None for reference in source.references)


def test_metadata_csv_gives_order_text_speaker_language_and_seconds(tmp_path, write_clip) -> None:
    for name in ("audio/a.wav", "audio/b.wav", "audio/unlisted.wav"):
        write_clip(name)
    (tmp_path / "metadata.csv").write_text(
        '\ufefffile_name,text,speaker,language,seconds\naudio/b.wav,"one, two",anna,en,0.30\naudio/a.wav,हाँ,ravi,hi,\n',
        encoding="utf-8",
    )
    first, second = open_at(tmp_path).references
    assert (first.name, first.text, first.speaker, first.language) == (
        "audio/b.wav",
        "one, two",
        "anna",
        "en",
    )
    assert first.seconds == 0.3
    assert (second.name, second.text, second.seconds) == ("audio/a.wav", "हाँ", None)
    clip = next(iter(open_at(tmp_path)))
    assert (clip.name, clip.text, clip.speaker, clip.language) == ("audio/b.wav", "one, two", "anna", "en")
    assert clip.seconds == pytest.approx(0.3)


@pytest.mark.parametrize("column", ["text", "transcription", "sentence"])
def test_metadata_jsonl_and_the_usual_transcript_columns(tmp_path, write_clip, column: str) -> None:
    write_clip("a.wav")
    write_clip("b.wav")
    rows = [{"file_name": "a.wav", column: "hello"}, {"file_name": "b.wav", column: None, "client_id": 7}]
    (tmp_path / "metadata.jsonl").write_text("\n\n".join(json.dumps(row) for row in rows))
    source = open_at(tmp_path)
    assert [reference.text for reference in source.references] == ["hello", None]
    assert source.references[1].speaker == "7"


def test_transcript_column_by_name(tmp_path, write_clip) -> None:
    write_clip("a.wav")
    (tmp_path / "metadata.csv").write_text("file_name,text,raw\na.wav,x,y\n")
    assert open_at(tmp_path, text="raw").references[0].text == "y"
    with pytest.raises(SottoError, match=r"no column 'verbatim'.*file_name, text, raw"):
        open_at(tmp_path, text="verbatim")


def test_splits_as_subfolders(tmp_path, write_clip) -> None:
    for split in ("train", "test"):
        write_clip(f"{split}/audio/a.wav")
        (tmp_path / split / "metadata.csv").write_text(f"file_name,text\naudio/a.wav,{split}\n")
    source = open_at(tmp_path, split="test")
    assert names(source) == ["test/audio/a.wav"]
    assert source.references[0].text == "test"
    with pytest.raises(SottoError, match="has the splits test, train; choose one"):
        open_at(tmp_path)
    with pytest.raises(SottoError, match=r"no split 'dev'.*test, train"):
        open_at(tmp_path, split="dev")


def test_splits_in_one_metadata_file(tmp_path, write_clip) -> None:
    for split in ("train", "test"):
        write_clip(f"{split}/a.wav")
    (tmp_path / "metadata.csv").write_text("file_name,text\ntrain/a.wav,x\ntest/a.wav,y\n")
    assert names(open_at(tmp_path, split="test")) == ["test/a.wav"]
    assert len(open_at(tmp_path)) == 2
    with pytest.raises(SottoError, match=r"no audio in .*split dev"):
        open_at(tmp_path, split="dev")


def test_folder_with_speakers_is_not_taken_for_splits(tmp_path, write_clip) -> None:
    write_clip("anna/a.wav")
    write_clip("test/a.wav")
    assert names(open_at(tmp_path)) == ["anna/a.wav", "test/a.wav"]


def test_single_file_and_relative_root(tmp_path, write_clip) -> None:
    write_clip("clips/a.wav")
    assert names(open_at("clips/a.wav", root=tmp_path)) == ["a.wav"]
    assert names(open_at("clips", root=tmp_path)) == ["a.wav"]
    assert names(open_at(tmp_path / "clips", root=Path("/elsewhere"))) == ["a.wav"]
    with pytest.raises(SottoError, match="is a file, it has no split 'test'"):
        open_at("clips/a.wav", root=tmp_path, split="test")


def test_list_of_files(tmp_path, write_clip) -> None:
    absolute = write_clip("far/b.wav")
    write_clip("lists/a.wav")
    (tmp_path / "lists" / "all.txt").write_text(f"a.wav\n\n{absolute}\n../gone.wav\n")
    source = open_at("lists/all.txt", root=tmp_path)
    assert names(source) == ["a.wav", str(absolute), "../gone.wav"]
    assert [clip.name for clip in source] == ["a.wav", str(absolute)]
    assert [(clip.name, clip.reason) for clip in source.skipped] == [("../gone.wav", "is missing")]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no audio in .*metadata.csv"),
        ({"readme.md": "x"}, "no audio in"),
        ({"a.m4a": "x", "b/c.mp4": "x"}, "convert its .m4a, .mp4 files"),
        ({"metadata.csv": "file_name,text\n"}, "lists no clip"),
        ({"metadata.csv": "file;text\na.wav;x\n"}, r"no column file_name \(columns: file;text\)"),
        ({"metadata.csv": "file_name,text\n,x\n"}, "names no file in clip 1"),
        ({"metadata.jsonl": '{"file_name": "a.wav"}\n{oops\n'}, "line 2 is not JSON"),
        ({"metadata.jsonl": "[1]\n"}, "line 1 is not a JSON object"),
    ],
)
def test_folders_without_usable_clips(tmp_path, files: dict[str, str], message: str) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    with pytest.raises(SottoError, match=message) as caught:
        open_at(tmp_path)
    assert "\n" not in str(caught.value)


def test_text_that_is_not_utf8(tmp_path, write_clip) -> None:
    write_clip("a.wav")
    (tmp_path / "metadata.csv").write_bytes("file_name,text\na.wav,für\n".encode("latin-1"))
    with pytest.raises(SottoError, match=r"metadata.csv is not UTF-8"):
        open_at(tmp_path)
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(SottoError, match="not a list of audio files"):
        open_at(tmp_path / "list.txt")
    (tmp_path / "list.txt").write_text("\n")
    with pytest.raises(SottoError, match="lists no audio file"):
        open_at(tmp_path / "list.txt")


@pytest.mark.parametrize("path", ["gone", "gone/deep/er", "clips/gone", "owner/gone.wav", "./owner/gone", "o/x.txt"])
def test_paths_that_do_not_exist(tmp_path, path: str) -> None:
    (tmp_path / "clips").mkdir()
    with pytest.raises(
        SottoError, match=r"no such file or folder: .*(gone|x\.txt|gone/deep/er|gone\.wav); check the path"
    ):
        open_at(path, root=tmp_path)


def test_bounds_on_seconds_by_metadata_by_header_and_by_decoding(tmp_path, write_clip) -> None:
    for seconds in (0.2, 0.5, 1.0):
        write_clip(f"{seconds}.wav", seconds=seconds)
    source = open_at(tmp_path, minimum_seconds=0.3, maximum_seconds=1.0)
    assert names(source) == ["0.5.wav", "1.0.wav"]
    assert [clip.name for clip in source] == ["0.5.wav", "1.0.wav"]
    with pytest.raises(SottoError, match=r"none of the 3 clips .* is between 2 and inf seconds"):
        open_at(tmp_path, minimum_seconds=2)
    (tmp_path / "metadata.csv").write_text("file_name,seconds\n0.2.wav,0.2\n0.5.wav,oops\n1.0.wav,-1\n")
    assert names(open_at(tmp_path, minimum_seconds=0.3)) == ["0.5.wav", "1.0.wav"]


def test_bound_holds_at_its_very_value_after_resampling(tmp_path, write_clip) -> None:
    write_clip("a.wav", seconds=13231 / 44100, rate=44100)
    source = open_at(tmp_path, minimum_seconds=0.30001)
    assert [clip.name for clip in source] == ["a.wav"]


def test_clip_shorter_than_its_metadata_has_broken_off(tmp_path, write_clip) -> None:
    write_clip("a.wav", seconds=0.5)
    write_clip("b.wav", seconds=0.5)
    (tmp_path / "metadata.csv").write_text("file_name,text,seconds\na.wav,x,2.0\nb.wav,y,0.55\n")
    source = open_at(tmp_path)
    assert [clip.name for clip in source] == ["b.wav"]
    assert source.skipped[0].reason == "breaks off: 0.50 of 2.00 s are there"


def test_samples_are_a_seeded_choice_in_listing_order(tmp_path, write_clip) -> None:
    for index in range(20):
        write_clip(f"{index:02}.wav", seconds=0.01)
    chosen = names(open_at(tmp_path, samples=5))
    assert len(chosen) == 5
    assert chosen == sorted(chosen)
    assert chosen == names(open_at(tmp_path, samples=5))
    assert chosen != names(open_at(tmp_path, samples=5, seed=1))
    assert len(open_at(tmp_path, samples=50)) == 20


def test_unreadable_folder_is_named(tmp_path, write_clip, monkeypatch) -> None:
    write_clip("a.wav")

    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(SottoError, match=r"cannot be read \(Permission denied\)"):
        open_at(tmp_path)


def test_soundfile_reads_what_the_helper_writes(write_clip) -> None:
    assert soundfile.info(write_clip("a.wav", seconds=0.5)).duration == 0.5
