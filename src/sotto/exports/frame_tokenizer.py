"""`tokenizer.json` for readers that decode the labels of a CTC model's frames as they are, such as transformers.js."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from sotto.exports.settings import write_json

AS_IT_WAS = "tokenizer.4.0.0.json"
"""transformers from that version on reads this file instead, where the config lists it: it groups labels by itself, and
would lose double letters if they were grouped again"""

WITH_SPACES = {"type": "WordPiece", "prefix": "\0", "cleanup": False}
"""what a tokenizer without a decoder does: a space between all tokens"""


def group_frames(folder: Path, blank: str) -> None:
    """Let decoding with `folder`/tokenizer.json write equal labels in a row once, and no blanks."""
    path, config = folder / "tokenizer.json", folder / "tokenizer_config.json"
    shutil.copyfile(path, folder / AS_IT_WAS)
    values = json.loads(path.read_text(encoding="utf-8"))
    for token in values["added_tokens"]:
        if token["content"] == blank:
            token["special"] = False  # or it would be left out before labels are grouped
    grouping = {"type": "CTC", "pad_token": blank, "word_delimiter_token": "|", "cleanup": False}
    values["decoder"] = {"type": "Sequence", "decoders": [grouping, values["decoder"] or WITH_SPACES]}
    write_json(values, path)
    write_json(json.loads(config.read_text(encoding="utf-8")) | {"fast_tokenizer_files": [AS_IT_WAS]}, config)
