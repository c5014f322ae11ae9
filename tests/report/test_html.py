"""The page and the JSON of a run."""

import json
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_run import bare, base_model, compared, errors, run, smaller_model, two

from sotto.configuration import parse
from sotto.errors import SottoError
from sotto.metrics.errors import Interval
from sotto.report import html, write_report
from sotto.report.numbers import LayerNumbers, RunNumbers
from sotto.report.table import summary, table

VOID = {"meta", "wbr"}


class Page(HTMLParser):
    """Every element must be closed in order; text by the elements it lies in."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, Mapping[str, str | None]]] = []
        self.texts: list[tuple[tuple[str, ...], str]] = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((tuple(self.open), data))

    def inside(self, tag: str) -> list[str]:
        """What stands in each piece of text within `tag`."""
        return [data.strip() for path, data in self.texts if tag in path and data.strip()]

    @property
    def text(self) -> str:
        return " ".join(" ".join(data for path, data in self.texts if "style" not in path).split())


def page(numbers: RunNumbers) -> Page:
    return Page(html.render(numbers))


@pytest.mark.parametrize(
    "numbers",
    [
        run(),
        replace(run(), models=(base_model(),)),
        replace(run(), models=(bare(base_model()),), machine={}, skipped={}),
    ],
)
def test_the_page_is_well_formed_and_needs_no_network(numbers: RunNumbers) -> None:
    found = page(numbers)
    assert {"script", "link", "img", "iframe", "object", "a"}.isdisjoint(tag for tag, _ in found.tags)
    for tag, attributes in found.tags:
        assert {"src", "href", "xlink:href", "srcset", "action", "data"}.isdisjoint(attributes), tag
        assert not any("://" in (value or "") or "url(" in (value or "") for value in attributes.values()), tag
    style = " ".join(found.inside("style"))
    assert "url(" not in style
    assert "@import" not in style
    assert len([tag for tag, _ in found.tags if tag == "h1"]) == 1
    assert all("scope" in attributes for tag, attributes in found.tags if tag == "th")


def test_the_page_tells_the_result() -> None:
    found = page(run())
    assert summary(run()) in found.text.replace("\u00a0", " ")
    assert "The interval holds 0" in found.text
    for told in ("23 of 24 linears factored", "took 3 min 34 s", "none v1", "greedy, English", "commit 0123abc"):
        assert told in found.text
    assert "clips/bad <1>.wav: does not decode" in found.inside("li")
    assert run().recipe.strip() in found.inside("pre")
    assert found.inside("td")[:4] == ["37.2M", "32.7M", "(88 %)", "32.7M"]


def test_texts_are_escaped_marked_and_run_their_own_way() -> None:
    found = page(run())
    assert "<script>alert(1)</script>" in found.inside("mark")
    assert "the" in found.inside("del")
    assert "الباكر الباكر الباكر الباكر" in found.inside("ins")
    assert "जाना" in found.inside("mark")
    clips = [attributes for tag, attributes in found.tags if tag == "dd" and attributes.get("dir") == "auto"]
    assert len(clips) == 2 * len(html.worst_clips(base_model(), run().models[-1]))


def test_a_page_of_one_model_compares_nothing() -> None:
    found = page(replace(run(), models=(bare(base_model()),), skipped={"test": ()}))
    assert {"svg", "ol", "article"}.isdisjoint(tag for tag, _ in found.tags)
    for absent in ("Before and after", "Worst clips", "Ranks", "WER, CER", "RTFx", "Peak memory"):
        assert absent not in found.text
    assert "No clip was skipped." in found.text


def test_a_model_without_errors_has_no_worst_clip() -> None:
    assert "No clip has an error." in page(two(base_model(), smaller_model("perfect", {}, 0, ()))).text


def test_differences_follow_the_alignment() -> None:
    said, heard = html.differences("a b c d", "a x c d e f")
    assert [(piece.text, piece.change) for piece in said] == [("a", "equal"), ("b", "substitute"), ("c d", "equal")]
    assert [(piece.text, piece.change) for piece in heard][-1] == ("e f", "insert")
    assert html.differences("a b", "") == ((html.Piece("a b", "delete"),), ())
    assert html.differences("", "a") == ((), (html.Piece("a", "insert"),))


def test_worst_clips_say_what_the_base_made_of_them() -> None:
    worst = html.worst_clips(base_model(), run().models[1])
    assert [(clip.errors.name, clip.errors.word_edits, clip.base_edits) for clip in worst[:2]] == [
        ("arabic.wav", 4, 0),
        ("ship/017.flac", 3, 0),
    ]
    assert {clip.errors.name: clip.base_edits for clip in worst}["hindi.wav"] == 1
    alone = base_model()
    assert [clip.base_edits for clip in html.worst_clips(alone, alone)] == [None, None]


def test_bars_of_ranks() -> None:
    whole = LayerNumbers("decoder", 0, "fc1", 8, 32, None, 256, 1)
    some = (LayerNumbers("encoder", 0, "fc1", 8, 32, 2, 80, 1), LayerNumbers("encoder", 1, "fc2", 32, 8, None, 256, 1))
    (stack,) = html.ranks((*some, whole))
    assert (stack.stack, stack.linears) == ("encoder", ("fc1", "fc2"))
    assert stack.layers == (
        (0, (html.Bar("2", 8, 0.25, "8 × 32"), None)),
        (1, (None, html.Bar("whole", 8, 1.0, "32 × 8"))),
    )


def test_the_chart_puts_smaller_left_and_better_down() -> None:
    chart = html.chart(run().models)
    assert chart is not None
    base, low_rank, tuned, quantized = chart.points
    assert [point.step for point in chart.points] == [0, 1, 2, 3]
    assert low_rank.x < tuned.x < quantized.x < base.x
    assert min(tuned.x - low_rank.x, quantized.x - tuned.x) >= html.MARKER
    assert all(point.high < point.y < point.low <= html.CHART_BOTTOM for point in (low_rank, tuned))
    assert low_rank.y < tuned.y < base.y
    assert [tick.label for tick in chart.x_ticks] == ["0", "2M", "4M", "6M", "8M"]
    assert html.chart(run().models[:1]) is None


@pytest.mark.parametrize("wer", [0.0, 0.5])
def test_a_chart_of_rates_without_width(wer: float) -> None:
    certain = replace(errors({}), wer=wer, wer_interval=Interval(wer, wer))
    chart = html.chart([replace(base_model(), errors=certain)] * 2)
    assert chart is not None
    assert chart.y_ticks[0] == html.Tick(html.CHART_BOTTOM, "0 %")
    assert all(html.CHART_TOP <= point.y <= html.CHART_BOTTOM for point in chart.points)


@given(st.floats(0, 1e3), st.floats(0.01, 1e9))
def test_ticks_are_round_and_hold_the_range(low: float, span: float) -> None:
    ticks = html.steps_of(low, low + span)
    assert ticks[0] <= low + 1e-6
    assert ticks[-1] >= (low + span) * (1 - 1e-6) - 1e-6
    assert 2 <= len(ticks) <= 8


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(-0.01, 0.02, "holds 0"), (0.0, 0.02, "holds 0"), (0.001, 0.02, "more errors"), (-0.02, -0.001, "fewer errors")],
)
def test_the_verdict_reads_the_interval(low: float, high: float, expected: str) -> None:
    assert expected in html.verdict(compared(0.0, low, high))


def test_the_json_reads_back(tmp_path: Path) -> None:
    # The file system's way with names that are no UTF-8.
    numbers = replace(run(), skipped={"test": ("\udce9t\u00e9.wav: does not decode",)})
    path = write_report(numbers, tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "report.html"
    assert sorted(file.name for file in path.parent.iterdir()) == ["report.html", "report.json"]
    source = (path.parent / "report.json").read_text(encoding="utf-8")
    assert "दिल्ली" in source
    data = json.loads(source)
    assert data.pop("version") == html.VERSION
    assert parse(RunNumbers, data, "report.json") == numbers
    assert "दिल्ली" in path.read_text(encoding="utf-8")


def test_a_run_without_models_writes_nothing(tmp_path: Path) -> None:
    numbers = replace(run(), models=())
    with pytest.raises(SottoError, match=r"by low rank' has no model .* measure at least"):
        write_report(numbers, tmp_path)
    with pytest.raises(SottoError, match="has no model"):
        table(numbers)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SottoError, match=r"file: the report cannot be written .* choose another folder"):
        write_report(run(), tmp_path / "file")
    (tmp_path / "taken" / "report.html").mkdir(parents=True)
    with pytest.raises(SottoError, match="taken: the report cannot be written"):
        write_report(run(), tmp_path / "taken")
    assert sorted(file.name for file in (tmp_path / "taken").iterdir()) == ["report.html", "report.json"]


def test_exports_have_a_section_of_their_own() -> None:
    found = html.render(run())
    assert found.count('<h2 id="exports">Exports</h2>') == 1
    assert "the &lt;head&gt; is in 8 bits" in found
    assert "sherpa-onnx-float32" in found.replace("<wbr>", "")
    assert 'id="exports"' not in html.render(replace(run(), exports=()))
