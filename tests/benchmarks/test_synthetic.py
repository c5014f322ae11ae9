"""The sentences and the plan of voices, on made-up transcripts; a stand-in reads where clips are made."""

import csv
import shutil
import subprocess
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import synthetic
from sotto.data import DataConfig, open_data
from sotto.errors import SottoError
from synthetic import VOICES, Reading, command, install_voices, make_folder, plan
from synthetic_text import (
    GRAMMAR,
    LONGEST,
    ROLES,
    Source,
    clauses_of,
    make_source,
    read_as_written,
    read_transcripts,
    role_of,
    sentences,
)

TRAIN = [
    "The boy walked to the market, and his sister stayed at home.",
    "She went to the river with a heavy bag",
    "HE SENT A LETTER TO THE OLD KING",
    "They came from the village with their sheep.",
    "We were known to the doctor",
]
HELD_OUT = ["She went to the old king.", "THEY CAME FROM THE MARKET"]


@pytest.fixture(scope="module")
def source() -> Source:
    return make_source(TRAIN, HELD_OUT)


@pytest.mark.parametrize(
    ("transcript", "clauses"),
    [
        ("In fact, it's true.", ["in fact", "it's true"]),
        ("LOOK AT ANN’S PANTS", ["look at ann's pants"]),
        ("'Who's there?' he asked", ["who's there", "he asked"]),
        ("fourteen sixty-five -- or later", ["fourteen sixty five", "or later"]),
        ("Go!", []),
        ("It was 1465, he said", ["he said"]),
        ("n l n s one seventy five", []),
        ("the old MSS. of Rome, they say", ["of rome", "they say"]),
        ("as, e.g., that of Rubeus", []),
        ("Mr. Neild came", ["neild came"]),
        ("in the café we met", []),
    ],
)
def test_clauses_are_words_that_are_read_as_written(transcript: str, clauses: list[str]) -> None:
    assert clauses_of(transcript) == clauses


def test_a_long_clause_is_cut_at_the_joint_nearest_its_middle() -> None:
    transcript = "one two of three four five six seven and eight nine ten eleven twelve thirteen fourteen"
    assert clauses_of(transcript) == [
        "one two of three four five six seven",
        "and eight nine ten eleven twelve thirteen fourteen",
    ]


def test_a_long_clause_without_joints_is_left_out() -> None:
    assert clauses_of("very " * (LONGEST + 1)) == []


def test_a_splice_goes_on_from_the_same_joint(source: Source) -> None:
    assert ("she went", "to") in source.heads
    assert "to the old king" in source.tails["to"]
    assert all(tail.split()[0] == joint for joint, tails in source.tails.items() for tail in tails)


@pytest.mark.parametrize("role", ROLES)
def test_no_sentence_is_a_held_out_text_of_the_corpus(source: Source, role: str) -> None:
    spliced = "she went to the old king"  # a head and a tail that are both there
    assert spliced in source.excluded
    assert not source.excluded & set(islice(sentences(source, role, seed=0), 150))


def test_a_training_transcript_that_is_held_out_too_gives_nothing() -> None:
    assert make_source(["We met, and she left"], ["we met and she LEFT!"]).clauses == ()


def test_roles_share_no_text_whatever_the_seeds(source: Source) -> None:
    texts = [set(islice(sentences(source, role, seed), 150)) for seed, role in enumerate(ROLES)]
    assert [len(some) for some in texts] == [150, 150, 150]
    assert not texts[0] & texts[1] | texts[0] & texts[2] | texts[1] & texts[2]


def test_one_new_sentence_in_twenty_is_for_the_test() -> None:
    shares = np.mean([[role_of(f"sentence {index}") == role for role in ROLES] for index in range(4000)], axis=0)
    assert shares == pytest.approx([0.05, 0.05, 0.9], abs=0.015)


@pytest.mark.parametrize("role", ["validation", "test"])
def test_held_out_sentences_are_new_and_of_familiar_words(source: Source, role: str) -> None:
    said = [f" {text.lower().strip('.')} " for text in TRAIN]
    for text in islice(sentences(source, role, seed=0), 150):
        assert source.familiar.issuperset(text.split())
        assert not any(f" {text} " in transcript for transcript in said)


def test_a_word_is_familiar_in_three_clauses_or_in_the_grammar() -> None:
    source = make_source(["alpha beta", "alpha gamma", "alpha delta"], [])
    assert {"alpha", "window"} <= source.familiar
    assert "beta" not in source.familiar


def test_the_grammar_says_only_what_is_read_as_written() -> None:
    words = {word for lines in GRAMMAR.values() for line in lines for word in line.split()}
    assert {word for word in words if word.isupper()} < GRAMMAR.keys()
    assert all(read_as_written(word) for word in words if not word.isupper())


def test_too_few_sentences_are_an_error_that_says_how_many(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("synthetic_text.GRAMMAR", {"SENTENCE": ("good day", "good night")})
    with pytest.raises(SottoError, match=r"only \d+ sentences for the role train"):
        list(sentences(source, "train", seed=0))


def test_transcripts_are_english_and_split_by_folder(tmp_path: Path) -> None:
    rows = {"a/train": ("we met", "en"), "a/test": ("we left", "en"), "b/train": ("hum yahan", "hi")}
    for split, (text, language) in rows.items():
        (tmp_path / split).mkdir(parents=True)
        (tmp_path / split / "metadata.csv").write_text(f"file_name,text,language\nx.opus,{text},{language}\n")
    assert read_transcripts(tmp_path) == (["we met"], ["we left"])


def test_a_corpus_without_training_transcripts_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SottoError, match="no English training transcripts"):
        read_transcripts(tmp_path)


def test_the_same_seed_gives_the_same_plan_and_a_larger_one_begins_with_it(source: Source) -> None:
    assert plan(source, "train", 60, seed=1)[:40] == plan(source, "train", 40, seed=1)
    assert plan(source, "train", 40, seed=1) != plan(source, "train", 40, seed=2)


def test_no_voice_nor_variant_is_in_two_roles() -> None:
    voices = [{(engine, voice) for engine, names in VOICES[role].items() for voice in names} for role in ROLES]
    assert not voices[0] & voices[1] | voices[0] & voices[2] | voices[1] & voices[2]
    variants = [{voice.split("+")[1] for voice in VOICES[role]["espeak-ng"]} for role in ROLES]
    assert not variants[0] & variants[1] | variants[0] & variants[2] | variants[1] & variants[2]
    assert len(VOICES["test"]) >= 2


def test_readings_keep_to_the_voices_of_their_role_and_use_each_engine(source: Source) -> None:
    for role in ROLES:
        readings = plan(source, role, 100, seed=0)
        assert {reading.engine for reading in readings} == VOICES[role].keys()
        assert all(reading.voice in VOICES[role][reading.engine] for reading in readings)


def test_a_file_name_tells_apart_everything_that_is_heard() -> None:
    readings = [
        Reading("we met", "flite", "rms", 1.0),
        Reading("we left", "flite", "rms", 1.0),
        Reading("we met", "flite", "slt", 1.0),
        Reading("we met", "flite", "rms", 1.1),
        Reading("we met", "espeak-ng", "en-us+f1", 1.0, 35),
        Reading("we met", "espeak-ng", "en-us+f1", 1.0, 50),
    ]
    assert len({reading.file_name for reading in readings}) == len(readings)
    assert readings[4].speaker == readings[5].speaker == "espeak-ng-en-us-f1-1"


@pytest.mark.parametrize(
    ("engine", "voice", "slow", "fast"),
    [
        ("espeak-ng", "en-us+f1", "140", "210"),
        ("flite", "rms", "duration_stretch=1.250", "duration_stretch=0.833"),
        ("festival", "kal_diphone", "'Duration_Stretch 1.250", "'Duration_Stretch 0.833"),
        ("festival", "cmu_us_slt_arctic_hts", '("-r" 0.8)', '("-r" 1.2)'),
    ],
)
def test_each_engine_is_told_the_voice_and_the_speed(engine: str, voice: str, slow: str, fast: str) -> None:
    for speed, words in ((0.8, slow), (1.2, fast)):
        told = " ".join(command(Reading("we met", engine, voice, speed), Path("out.wav")))
        assert voice in told
        assert words in told
        assert told.endswith("out.wav") or "-w out.wav" in told


@pytest.fixture
def read_aloud(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that the stand-in for the programs has read, as a tone at 22050 Hz."""
    texts: list[str] = []

    def run(arguments: list[str], input: str, **_: Any) -> subprocess.CompletedProcess[str]:
        wav = next(argument for argument in arguments if argument.endswith(".wav"))
        soundfile.write(wav, 0.1 * np.sin(0.1 * np.arange(22_050)), 22_050)
        texts.append(input)
        return subprocess.CompletedProcess(arguments, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    return texts


def test_a_folder_of_clips_can_be_opened(source: Source, tmp_path: Path, read_aloud: list[str]) -> None:
    readings = plan(source, "train", 4, seed=0)
    make_folder(tmp_path, readings, jobs=2)
    clips = list(open_data(DataConfig(str(tmp_path)), sampling_rate=16_000))
    assert [clip.text for clip in clips] == [reading.text for reading in readings]
    assert [len(clip.audio) for clip in clips] == pytest.approx([16_000] * 4, abs=20)
    assert np.abs(clips[0].audio).max() == pytest.approx(0.7, abs=0.1)


def test_a_second_run_makes_only_what_is_missing(source: Source, tmp_path: Path, read_aloud: list[str]) -> None:
    readings = plan(source, "train", 6, seed=0)
    make_folder(tmp_path, readings[:4], jobs=1)
    (tmp_path / readings[1].file_name).unlink()
    read_aloud.clear()
    make_folder(tmp_path, readings, jobs=1)
    assert read_aloud == [readings[index].text for index in (1, 4, 5)]


def test_a_run_that_breaks_off_leaves_a_list_of_what_is_there(
    source: Source, tmp_path: Path, read_aloud: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    readings = plan(source, "train", 6, seed=0)
    monkeypatch.setattr(synthetic, "CHUNK", 2)
    make = synthetic.make_clip

    def break_off(folder: Path, reading: Reading) -> float:
        if reading == readings[4]:
            raise SottoError("broken off")
        return make(folder, reading)

    monkeypatch.setattr(synthetic, "make_clip", break_off)
    with pytest.raises(SottoError, match="broken off"):
        make_folder(tmp_path, readings, jobs=1)
    with (tmp_path / "metadata.csv").open(encoding="utf-8") as file:
        assert [row["text"] for row in csv.DictReader(file)] == [reading.text for reading in readings[:4]]


def test_a_voice_that_reads_nothing_is_an_error(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "no such voice")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(SottoError, match=r"did not read .* no such voice"):
        make_folder(tmp_path, plan(source, "train", 1, seed=0), jobs=1)


@pytest.mark.parametrize(
    ("apt_get", "user", "message"),
    [(None, 0, "no apt-get here to install espeak-ng flite"), ("/bin/apt-get", 1, "run as root: apt-get install espe")],
)
def test_missing_programs_that_cannot_be_installed_are_named(
    apt_get: str | None, user: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda program: apt_get if program == "apt-get" else None)
    monkeypatch.setattr("os.geteuid", lambda: user)
    with pytest.raises(SottoError, match=message):
        install_voices()


def test_nothing_is_installed_where_every_program_and_voice_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    voices = "kal_diphone ked_diphone cmu_us_slt_arctic_hts "
    calls: list[list[str]] = []

    def run(arguments: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        calls.append(arguments)
        return subprocess.CompletedProcess(arguments, 0, voices, "")

    monkeypatch.setattr(shutil, "which", lambda program: f"/bin/{program}")
    monkeypatch.setattr(subprocess, "run", run)
    install_voices()
    assert [call[0] for call in calls] == ["festival"]
