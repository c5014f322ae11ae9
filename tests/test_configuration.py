import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sotto.configuration import parse, read_yaml, to_plain
from sotto.errors import SottoError
from sotto.registry import Registry


@dataclass(frozen=True)
class Part:
    share: float
    note: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise SottoError(f"share must be between 0 and 1, found {self.share}")


@dataclass(frozen=True)
class Whole:
    name: str
    count: int = 1
    fast: bool = False
    style: Literal["plain", "fancy"] = "plain"
    part: Part | None = None
    either: int | Part = 0
    sizes: tuple[int, ...] = ()
    pair: tuple[float, str] = (0.0, "")
    parts: Mapping[str, Part] = field(default_factory=dict)
    anything: Any = None


FULL = {
    "name": "n",
    "count": 2,
    "fast": True,
    "style": "fancy",
    "part": {"share": 1},
    "either": {"share": 0.5, "note": "x"},
    "sizes": [1, 2],
    "pair": [3, "three"],
    "parts": {"a": {"share": 0.25}},
    "anything": [1, "x"],
}


def test_every_kind_of_value() -> None:
    whole = parse(Whole, FULL, "whole")
    assert whole == Whole(
        "n", 2, True, "fancy", Part(1.0), Part(0.5, "x"), (1, 2), (3.0, "three"), {"a": Part(0.25)}, [1, "x"]
    )
    assert isinstance(whole.part, Part)
    assert isinstance(whole.part.share, float)  # a whole number is a float where one is asked for


def test_what_is_left_out_has_its_default() -> None:
    assert parse(Whole, {"name": "n", "part": None}, "whole") == Whole("n")


@pytest.mark.parametrize(("written", "number"), [("1e-4", 1e-4), ("-2E3", -2000.0), ("1.5e+2", 150.0), ("1.e2", 100.0)])
def test_exponents_that_yaml_takes_for_words(written: str, number: float) -> None:
    assert parse(Whole, {"name": "n", "pair": [written, written]}, "whole").pair == (number, written)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nmae": "n"}, "whole: unknown key 'nmae'; did you mean 'name'?"),
        ({"zzz": 1}, "whole: unknown key 'zzz'; known: name, count, fast, style, part, either"),
        ({3: 1}, "whole: unknown key '3'"),
        ({"count": 1.5}, "whole.count: expected int, found 1.5"),
        ({"count": True}, "whole.count: expected int, found True"),
        ({"count": None}, "whole.count: expected int, found None"),
        ({"fast": 1}, "whole.fast: expected bool, found 1"),
        ({"name": 1}, "whole.name: expected str, found 1"),
        ({"style": "loud"}, "whole.style: 'loud' is not one of plain, fancy"),
        ({"part": 1}, "whole.part: expected keys and values, found 1"),
        ({"part": {}}, "whole.part: missing key 'share'"),
        ({"part": {"share": True}}, "whole.part.share: expected float, found True"),
        ({"part": {"share": "much"}}, "whole.part.share: expected float, found 'much'"),
        ({"part": {"share": 2}}, "whole.part: share must be between 0 and 1, found 2.0"),
        ({"either": "x"}, "whole.either: expected int, found 'x'"),
        ({"sizes": 1}, "whole.sizes: expected a list, found 1"),
        ({"sizes": "12"}, "whole.sizes: expected a list, found '12'"),
        ({"sizes": [1, "x"]}, "whole.sizes[1]: expected int, found 'x'"),
        ({"pair": [1.0]}, "whole.pair: expected 2 values, found 1"),
        ({"pair": [1.0, 2]}, "whole.pair[1]: expected str, found 2"),
        ({"parts": [1]}, "whole.parts: expected keys and values, found [1]"),
        ({"parts": {"a": {"shrae": 1}}}, "whole.parts.a: unknown key 'shrae'; did you mean 'share'?"),
    ],
)
def test_refusals_name_place_and_value(changes: dict[Any, Any], message: str) -> None:
    with pytest.raises(SottoError) as refused:
        parse(Whole, FULL | changes, "whole")
    assert str(refused.value).startswith(message)


def test_missing_key_and_no_mapping() -> None:
    with pytest.raises(SottoError, match="^whole: missing key 'name'$"):
        parse(Whole, {"count": 1}, "whole")
    with pytest.raises(SottoError, match="^whole: expected keys and values, found 'name'$"):
        parse(Whole, "name", "whole")


PARTS = st.builds(Part, st.floats(0, 1), st.none() | st.text())


@given(
    st.builds(
        Whole,
        st.text(),
        st.integers(),
        st.booleans(),
        st.sampled_from(["plain", "fancy"]),
        st.none() | PARTS,
        st.integers() | PARTS,
        st.lists(st.integers()).map(tuple),
        st.tuples(st.floats(allow_nan=False, allow_infinity=False), st.text()),
        st.dictionaries(st.text(), PARTS),
        st.none() | st.text() | st.lists(st.integers()),
    )
)
def test_parse_undoes_to_plain(whole: Whole) -> None:
    assert parse(Whole, json.loads(json.dumps(to_plain(whole))), "whole") == whole


def test_yaml_is_read(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("name: हिन्दी\npair: [1e-3, x]\n", encoding="utf-8")
    assert parse(Whole, read_yaml(tmp_path / "recipe.yaml"), "whole") == Whole("हिन्दी", pair=(0.001, "x"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name: [1, 2\ncount: 3", "is not YAML: .*line 2"),
        (b"name: \xff\xfe", "is not YAML"),
        (b"- name", "a recipe is keys and values, found list"),
        (b"", "a recipe is keys and values, found NoneType"),
        (b"!!python/object/apply:os.getcwd []", "is not YAML"),
    ],
)
def test_yaml_that_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(SottoError, match=message) as refused:
        read_yaml(path)
    assert str(refused.value).startswith(f"{path}: ")
    assert "\n" not in str(refused.value)


def test_yaml_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SottoError, match="cannot be read \\(No such file or directory\\); check the path"):
        read_yaml(tmp_path / "nothing.yaml")
    with pytest.raises(SottoError, match="cannot be read \\(Is a directory\\)"):
        read_yaml(tmp_path)


@dataclass(frozen=True)
class Walk:
    steps: int = 1


@dataclass(frozen=True)
class Run:
    speed: float


@pytest.fixture
def moves() -> Registry[Any]:
    registry: Registry[Any] = Registry("move")
    registry.register("walk", Walk)(lambda config: f"walks {config.steps}")
    registry.register("run", Run)(lambda config: f"runs at {config.speed}")
    return registry


def test_registry_gives_type_name_and_handler(moves: Registry[Any]) -> None:
    for entry, config, name, done in (
        ("walk", Walk(), "walk", "walks 1"),
        ({"walk": None}, Walk(), "walk", "walks 1"),
        ({"walk": {"steps": 3}}, Walk(3), "walk", "walks 3"),
        ({"run": {"speed": 2}}, Run(2.0), "run", "runs at 2.0"),
    ):
        parsed = moves.parse(entry, "steps[0]")
        assert parsed == config
        assert moves.name_of(parsed) == name
        assert moves.handler(parsed)(parsed) == done


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("wlak", "steps[0]: unknown move 'wlak'; did you mean 'walk'?"),
        ({"fly": {}}, "steps[0]: unknown move 'fly'; known: walk, run"),
        ({"walk": {}, "run": {}}, "steps[0]: expected one move with its settings, found"),
        ({}, "steps[0]: expected one move with its settings, found {}"),
        (None, "steps[0]: expected one move with its settings, found None"),
        ({"walk": {"step": 1}}, "steps[0].walk: unknown key 'step'; did you mean 'steps'?"),
        ({"walk": [1]}, "steps[0].walk: expected keys and values, found [1]"),
        ({"walk": False}, "steps[0].walk: expected keys and values, found False"),
        ("run", "steps[0].run: missing key 'speed'"),
    ],
)
def test_registry_refusals(moves: Registry[Any], entry: object, message: str) -> None:
    with pytest.raises(SottoError) as refused:
        moves.parse(entry, "steps[0]")
    assert str(refused.value).startswith(message)
