import shutil
from pathlib import Path

import pytest

from sotto.data import ClipSource, DataConfig, check_disjoint, disjoint, open_data
from sotto.errors import SottoError


def open_at(path: Path, **options: object) -> ClipSource:
    return open_data(DataConfig(path=str(path), **options), sampling_rate=16000)


def test_other_content_of_the_same_name_and_size_is_another_clip(tmp_path, write_clip) -> None:
    write_clip("train/a.wav", pitch=440)
    write_clip("test/a.wav", pitch=441)
    check_disjoint({"train": open_at(tmp_path / "train"), "test": open_at(tmp_path / "test")})


def test_same_content_under_another_name_is_found(tmp_path, write_clip) -> None:
    write_clip("train/a.wav", pitch=440)
    write_clip("train/b.wav", pitch=450)
    write_clip("validation/c.wav", pitch=460)
    (tmp_path / "test").mkdir()
    shutil.copy(tmp_path / "train" / "b.wav", tmp_path / "test" / "z.wav")
    sources = {role: open_at(tmp_path / role) for role in ("train", "validation", "test")}
    with pytest.raises(SottoError, match=r"train and test share a clip \(b.wav = z.wav\)"):
        check_disjoint(sources)


def test_a_clip_twice_in_one_role_is_allowed(tmp_path, write_clip) -> None:
    write_clip("train/a.wav", pitch=440)
    write_clip("train/b.wav", pitch=440)
    write_clip("test/c.wav", pitch=450)
    check_disjoint({"train": open_at(tmp_path / "train"), "test": open_at(tmp_path / "test")})


def test_only_chosen_clips_count(tmp_path, write_clip) -> None:
    for index in range(10):
        write_clip(f"{index}.wav", pitch=440 + index)
    with pytest.raises(SottoError, match="calibration and test share a clip"):
        check_disjoint({"calibration": open_at(tmp_path, samples=2), "test": open_at(tmp_path)})
    choices = [open_at(tmp_path, samples=2, seed=seed) for seed in range(20)]
    names = {reference.name for reference in choices[0].references}
    apart = next(one for one in choices if not names & {r.name for r in one.references})
    check_disjoint({"calibration": choices[0], "test": apart})


def test_missing_files_are_left_to_the_reader(tmp_path, write_clip) -> None:
    for role in ("train", "test"):
        write_clip(f"{role}/{role}.wav", pitch=440 + len(role))
        (tmp_path / role / "metadata.csv").write_text(f"file_name\n{role}.wav\ngone.wav\n")
    check_disjoint({"train": open_at(tmp_path / "train"), "test": open_at(tmp_path / "test")})


def test_files_of_different_size_are_not_read(tmp_path, write_clip, monkeypatch) -> None:
    write_clip("train/a.wav", seconds=0.2)
    write_clip("test/a.wav", seconds=0.3)

    def refuse(path: Path) -> bytes:
        raise AssertionError(f"{path} was read")

    monkeypatch.setattr(disjoint, "_digest", refuse)
    check_disjoint({"train": open_at(tmp_path / "train"), "test": open_at(tmp_path / "test")})
