"""The sentences and the readings in Malayalam; a stand-in reads where clips are made."""

import csv
import shutil
import subprocess
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import synthetic_malayalam
from synthetic_malayalam import LONGEST, plain, plan, read_texts, sentences

TEXTS = ["അടിതെറ്റിയാൽ ആനയും വീഴും", "പാലം കടക്കുവോളം നാരായണ", "സിനിമ"]


def folder_with(path: Path, texts: list[str]) -> Path:
    path.mkdir(parents=True)
    with (path / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [("file_name", "text"), *((f"{index}.opus", text) for index, text in enumerate(texts))]
        )
    return path


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("അടിതെറ്റിയാൽ, ആനയും വീഴും.", "അടിതെറ്റിയാൽ ആനയും വീഴും"),
        ("“അവന്\u200d വന്നു”", "അവന്\u200d വന്നു"),
        ("നല്ല-വാക്ക്!", "നല്ല വാക്ക്"),
    ],
)
def test_a_text_keeps_its_words_and_the_marks_in_them(text: str, kept: str) -> None:
    assert plain(text) == kept


def test_each_text_is_taken_once_and_long_ones_are_not(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "train", ["സിനിമ.", "സിനിമ", "വാക്ക് " * (LONGEST + 1), "!", TEXTS[0]])
    assert read_texts(folder) == ["സിനിമ", TEXTS[0]]


def test_every_second_sentence_begins_with_one_text_and_ends_with_another() -> None:
    found = list(islice(sentences(TEXTS, np.random.default_rng(0)), 40))
    assert set(found[::2]) == set(TEXTS)
    halves = [
        " ".join([*head.split()[: (len(head.split()) + 1) // 2], *tail.split()[len(tail.split()) // 2 :]])
        for head in TEXTS
        for tail in TEXTS
    ]
    assert set(found[1::2]) <= set(halves)
    assert len(set(found[1::2])) > len(TEXTS)


def test_a_larger_plan_begins_with_the_smaller_one() -> None:
    few, many = plan(TEXTS, 5, seed=0), plan(TEXTS, 12, seed=0)
    assert many[:5] == few
    assert len(set(many)) == 12
    assert {reading.language for reading in many} == {"ml"}
    assert plan(TEXTS, 5, seed=1) != few


def test_the_folder_is_in_malayalam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[list[str]] = []

    def run(arguments: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        told.append(arguments)
        wav = next(argument for argument in arguments if argument.endswith(".wav"))
        soundfile.write(wav, 0.1 * np.sin(0.1 * np.arange(22_050)), 22_050)
        return subprocess.CompletedProcess(arguments, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(shutil, "which", lambda program: f"/bin/{program}")
    source = folder_with(tmp_path / "train", TEXTS)
    monkeypatch.setattr("sys.argv", ["synthetic_malayalam.py", str(source), str(tmp_path / "out"), "--clips=3"])
    synthetic_malayalam.main()
    assert all(arguments[0] == "espeak-ng" and arguments[2].startswith("ml+") for arguments in told)
    with (tmp_path / "out" / "metadata.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["language"] for row in rows] == ["ml"] * 3
    assert rows[0]["text"] in TEXTS


@pytest.mark.parametrize(
    ("rows", "clips", "message"),
    [
        (None, 3, r"no .*metadata.csv; give the audio folder of msc_malayalam's training split"),
        (
            [("file_name", "sentence"), ("a.opus", "സിനിമ")],
            3,
            r"no text of 1 to 8 words in .*; it should have the columns",
        ),
        ([("file_name", "text"), ("a.opus", "സിനിമ")], 5000, "1 texts give only 500 readings; ask for fewer"),
    ],
)
def test_what_cannot_be_read_is_said(
    rows: list[tuple[str, str]] | None, clips: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if rows is not None:
        with (tmp_path / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
    monkeypatch.setattr(
        "sys.argv", ["synthetic_malayalam.py", str(tmp_path), str(tmp_path / "out"), f"--clips={clips}"]
    )
    with pytest.raises(SystemExit, match=message):
        synthetic_malayalam.main()
