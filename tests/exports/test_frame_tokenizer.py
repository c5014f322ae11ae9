"""Labels of frames as text: by the file that others decode with, and by transformers."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from conformers import word_pieces
from sotto.exports.frame_tokenizer import group_frames


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    word_pieces().save_pretrained(tmp_path)
    group_frames(tmp_path, "<pad>")
    return tmp_path


def test_equal_labels_are_written_once_and_those_with_a_blank_between_them_twice(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    frames = [tokenizer.token_to_id(piece) for piece in ("<pad>", "▁", "z", "e", "e", "<pad>", "e", "r", "r", "<pad>")]
    assert tokenizer.decode(frames, skip_special_tokens=True) == "zeer"


def test_a_tokenizer_that_only_joins_its_tokens_goes_on_so(tmp_path: Path) -> None:
    word_pieces().save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"decoder": None}))
    before = Tokenizer.from_file(str(path))
    group_frames(tmp_path, "<pad>")
    after = Tokenizer.from_file(str(path))
    z, e, r, blank = (before.token_to_id(piece) for piece in ("z", "e", "r", "<pad>"))
    assert after.decode([z, z, blank, e, blank, e, r, r]) == before.decode([z, e, e, r]) == "z e e r"


def test_transformers_decodes_as_before(folder: Path) -> None:
    before, after = word_pieces(), AutoTokenizer.from_pretrained(folder)
    assert type(after) is type(before)
    assert after.backend_tokenizer.to_str() == before.backend_tokenizer.to_str()
    e, blank = before.convert_tokens_to_ids(["e", "<pad>"])
    assert after.decode([e, e, blank, e]) == "ee"
    assert after.decode([e, e], group_tokens=False) == "ee"
    assert after.all_special_tokens == before.all_special_tokens
