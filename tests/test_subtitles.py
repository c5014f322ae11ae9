import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sotto.decoding import Segment, Transcription
from sotto.subtitles import to_json, to_srt, to_vtt

times = st.floats(min_value=0, max_value=400_000)
segments = st.lists(st.builds(Segment, times, times, st.text()))


def milliseconds(clock: str) -> int:
    hours, minutes, seconds, rest = map(int, re.split("[:,.]", clock))
    return ((hours * 60 + minutes) * 60 + seconds) * 1000 + rest


def test_srt() -> None:
    written = to_srt([Segment(0.0, 1.5, "one & two"), Segment(3723.004, 3724.0, "three")])
    assert written == ("1\n00:00:00,000 --> 00:00:01,500\none & two\n\n2\n01:02:03,004 --> 01:02:04,000\nthree\n")


def test_vtt() -> None:
    written = to_vtt([Segment(0.0, 1.5, "a < b & c > d"), Segment(360000.0, 360001.0, '"quoted"')])
    assert written == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\na &lt; b &amp; c &gt; d\n\n"
        '100:00:00.000 --> 100:00:01.000\n"quoted"\n'
    )


def test_nothing_heard() -> None:
    assert to_srt([]) == ""
    assert to_vtt([]) == "WEBVTT\n"


def test_empty_segments_are_dropped_and_not_counted() -> None:
    written = to_srt([Segment(0, 1, " \n"), Segment(1, 2, "one"), Segment(2, 3, ""), Segment(3, 4, "two")])
    assert re.findall(r"^\d+$", written, re.MULTILINE) == ["1", "2"]
    assert re.findall(r"^[a-z]+$", written, re.MULTILINE) == ["one", "two"]


@pytest.mark.parametrize("end", [1.0, 0.5, 1.0049])
def test_a_cue_ends_after_it_starts(end: float) -> None:
    assert "00:00:01,000 --> 00:00:01,020" in to_srt([Segment(1.0, end, "one")])


def test_milliseconds_are_rounded_into_the_next_second() -> None:
    assert "00:00:59,999 --> 00:01:00,000" not in to_vtt([Segment(59.9996, 61, "one")])
    assert "00:01:00.000 --> 00:01:01.000" in to_vtt([Segment(59.9996, 61, "one")])


def test_a_text_stays_one_line() -> None:
    assert to_srt([Segment(0, 1, " one\n\n2\r\n two ")]).splitlines()[2:] == ["one 2 two"]


@pytest.mark.parametrize("text", ["a --> b", "--->", "<-->", "-->-->"])
def test_an_arrow_in_the_text_is_harmless(text: str) -> None:
    for written in (to_srt([Segment(0, 1, text)]), to_vtt([Segment(0, 1, text)])):
        assert written.count("-->") == 1


def test_json() -> None:
    heard = Transcription("clip", "one two", 2.00049, (Segment(0.1 + 0.2, 1.0, "one two"),))
    plain = to_json(heard)
    assert plain == {
        "name": "clip",
        "text": "one two",
        "seconds": 2.0,
        "segments": [{"start": 0.3, "end": 1.0, "text": "one two"}],
    }
    assert json.loads(json.dumps(plain)) == plain


@given(segments)
def test_times_are_monotone_and_parse_back(found: list[Segment]) -> None:
    spoken = sorted(round(one.start * 1000) for one in found if one.text.split())
    for written, clock in (
        (to_srt(found), r"\d{2,}:\d\d:\d\d,\d{3}"),
        (to_vtt(found), r"\d{2,}:\d\d:\d\d\.\d{3}"),
    ):
        cues = re.findall(rf"^({clock}) --> ({clock})$", written, re.MULTILINE)
        assert len(cues) == written.count("-->")
        starts = [milliseconds(start) for start, _ in cues]
        assert starts == spoken
        assert all(milliseconds(end) >= milliseconds(start) + 20 for start, end in cues)


@given(segments)
def test_every_cue_is_a_block_of_its_own(found: list[Segment]) -> None:
    spoken = [one for one in found if one.text.split()]
    blocks = [block for block in to_srt(found).split("\n\n") if block]
    assert len(blocks) == len(spoken)
    assert all(len(block.strip("\n").split("\n")) == 3 for block in blocks)
    assert [block.split("\n")[0] for block in blocks] == [str(number + 1) for number in range(len(spoken))]
