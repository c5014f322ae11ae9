"""Whose folder it is."""

from pathlib import Path

import pytest

from sotto.errors import SottoError
from sotto.run_folder import claimed

INPUTS = {"base": "a", "test": "b"}


def claim(folder: Path, recipe: str = "steps: 1", inputs: dict[str, str] | None = None) -> None:
    with claimed(folder, recipe, inputs or INPUTS):
        pass


def test_a_run_that_finished_no_step_gives_way_to_another_recipe(tmp_path: Path) -> None:
    claim(tmp_path / "run")
    measured = tmp_path / "run" / "steps" / "0-base" / "numbers.json"
    measured.parent.mkdir(parents=True)
    measured.write_text("{}")
    claim(tmp_path / "run")
    assert measured.is_file()  # of the same recipe
    claim(tmp_path / "run", "steps: 2")
    assert not measured.exists()
    assert (tmp_path / "run" / "recipe.yaml").read_text() == "steps: 2"


@pytest.mark.parametrize("result", ["steps/1-low_rank/numbers.json", "checkpoints/checkpoint-500"])
def test_results_are_not_mixed_with_those_of_another_recipe_base_or_data(tmp_path: Path, result: str) -> None:
    folder = tmp_path / "run"
    claim(folder)
    (folder / result).parent.mkdir(parents=True)
    (folder / result).write_text("{}")
    claim(folder)
    with pytest.raises(SottoError, match="holds a run of another recipe; name a new folder"):
        claim(folder, "steps: 2")
    with pytest.raises(SottoError, match="run of another base or teacher, or of other data; name a new") as refused:
        claim(folder, inputs={"base": "a", "test": "c"})
    assert (folder / result).is_file()
    claim(folder)
    assert refused.tb is not None  # the refusal's frames live on, and yet it has let go of the lock


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with claimed(tmp_path / "run", "steps: 1", INPUTS):
        partial = tmp_path / "run" / ".model.x.partial"
        partial.mkdir()
        with pytest.raises(SottoError, match="another sotto is at work there"):
            claim(tmp_path / "run")
        assert partial.is_dir()
    claim(tmp_path / "run")
    assert not partial.exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(SottoError, match="is not empty and holds no run"):
        claim(tmp_path)
    with pytest.raises(SottoError, match="is a file; name a folder"):
        claim(tmp_path / "letter.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]
