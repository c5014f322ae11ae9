"""The bundled recogniser and its clips, for tests where accuracy matters."""

import csv
import shutil
from pathlib import Path

from sotto.checkpoint import Recognizer, load
from sotto.demo import DEMO_RECIPE
from sotto.surgery import drop_module, keep_heads, layers_of, narrow_ffn

MODEL = DEMO_RECIPE.parent / "model"
CLIPS = DEMO_RECIPE.parent / "clips"


def some_clips(role: str, folder: Path, count: int) -> Path:
    """An audio folder with the first `count` clips of a role."""
    (folder / "audio").mkdir(parents=True)
    with (CLIPS / role / "metadata.csv").open(encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows[:count]])
    for row in rows[:count]:
        shutil.copy(CLIPS / role / row[0], folder / row[0])
    return folder


def with_layers_of_different_shapes() -> Recognizer:
    """The bundled recogniser with other heads and neurons in each layer, and in the decoder an attention less."""
    model = load(MODEL, device="cpu")
    for stack, index in list(layers_of(model.model)):
        narrow_ffn(model.model, stack, index, stack.feed_forwards[0], range(20 * index, 200))
        keep_heads(model.model, stack, index, stack.attentions[0], [2] if index % 2 else [0, 1, 2])
    decoder = model.architecture.stack("decoder")
    drop_module(model.model, decoder, 1, decoder.attentions[0])
    return model
