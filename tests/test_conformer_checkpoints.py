"""Conformers on disk: what is saved is what was in memory, and opens the usual ways."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from conformers import CONFORMERS, LAYERS, RATE, factor_at_random, make, noise, scores
from random_gates import prune_at_random
from sotto.checkpoint import Recognizer, load, probe, save
from sotto.data import Clip
from sotto.decoding import Decoding
from sotto.errors import SottoError
from sotto.surgery import drop_module, keep_channels, keep_heads, keep_layers, merge, narrow_ffn

KINDS = (
    "base",
    "fewer layers",
    "narrower",
    "merged",
    "factored",
    "unequal",
    "fewer heads",
    "absent",
    "fewer channels",
    "gates",
)
PLAIN = KINDS[:4]
OPENED = ("base", "narrower", "factored", "fewer heads", "absent", "fewer channels", "gates")
RELATIVE = CONFORMERS[:2]
TYPES = {"parakeet": "parakeet_ctc", "wav2vec2_conformer": "wav2vec2-conformer"}


def shaped(architecture: str, kind: str) -> Recognizer:
    recognizer = make(architecture)
    model = recognizer.model
    (stack,) = recognizer.architecture.stacks
    linears = list(stack.linears())
    if kind == "fewer layers":
        keep_layers(model, stack, [1])
    if kind == "narrower":
        for index in range(LAYERS):
            for ffn in stack.feed_forwards:
                narrow_ffn(model, stack, index, ffn, range(index, index + 9))
    if kind in ("merged", "factored"):
        for seed, name in enumerate(linears):
            factor_at_random(recognizer, 1, name, 4 + seed, seed)
    if kind == "merged":
        for name in linears:
            merge(model, stack, 1, name)
    cut(recognizer, kind)
    return recognizer


def cut(recognizer: Recognizer, kind: str) -> None:
    """What makes layers unlike one another."""
    model = recognizer.model
    (stack,) = recognizer.architecture.stacks
    if kind == "unequal":
        narrow_ffn(model, stack, 0, stack.feed_forwards[1], range(5))
    if kind == "fewer heads":
        keep_heads(model, stack, 1, stack.attentions[0], (0, 3))
    if kind == "absent":
        drop_module(model, stack, 0, stack.feed_forwards[0])
        drop_module(model, stack, 0, stack.convolutions[0])
        drop_module(model, stack, 1, stack.attentions[0])
    if kind == "fewer channels":
        keep_channels(model, stack, 1, stack.convolutions[0], (0, 3, 4, 9, 15))
    if kind == "gates":
        prune_at_random(recognizer, 0.6)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    root = tmp_path_factory.mktemp("conformers")
    found = {}
    for architecture in RELATIVE:
        for kind in KINDS:
            found[architecture, kind] = shaped(architecture, kind).save(root / f"{architecture} {kind}")
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", RELATIVE)
def test_what_is_loaded_is_what_was_saved(architecture: str, kind: str, folders: dict[tuple[str, str], Path]) -> None:
    folder = folders[architecture, kind]
    saved, loaded = shaped(architecture, kind), load(folder, device="cpu")
    torch.testing.assert_close(scores(loaded), scores(saved))
    assert loaded.structure == saved.structure
    assert loaded.architecture is saved.architecture
    on_disk = json.loads((folder / "config.json").read_text())
    own = f"sotto_{TYPES[architecture].replace('-', '_')}"
    assert on_disk["model_type"] == (TYPES[architecture] if kind in PLAIN else own)
    for name, tensor in saved.model.state_dict().items():
        assert torch.equal(tensor, loaded.model.state_dict()[name]), name


def test_rotary_positions_are_saved_too(tmp_path: Path) -> None:
    recognizer = make("wav2vec2_conformer_rotary")
    factor_at_random(recognizer, 0, "self_attn.linear_q", 4)
    recognizer.save(tmp_path / "saved")
    torch.testing.assert_close(scores(load(tmp_path / "saved", device="cpu")), scores(recognizer))


@pytest.mark.parametrize("architecture", CONFORMERS)
def test_the_probe_hears_every_part(architecture: str) -> None:
    recognizer = make(architecture)
    before = probe(recognizer)
    unused = ("pos_conv_embed", "masked_spec_embed")  # by transformers, or outside of training
    unseen = ("k_proj.bias", "linear_k.bias")  # by softmax
    for name, parameter in recognizer.model.named_parameters():
        if any(part in name for part in unused) or name.endswith(unseen):
            continue
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.add_(0.5 * parameter.abs().max() * torch.linspace(-1, 1, parameter.numel()).view_as(parameter))
        assert (probe(recognizer) - before).abs().max() > 1e-4 * before.abs().max(), name
        with torch.no_grad():
            parameter.copy_(kept)


@pytest.mark.parametrize("architecture", RELATIVE)
def test_a_checkpoint_in_half_precision(architecture: str, tmp_path: Path) -> None:
    recognizer = shaped(architecture, "factored")
    save(recognizer, tmp_path / "half", dtype="float16")
    loaded = load(tmp_path / "half", device="cpu")
    assert loaded.stored_dtype == "float16"
    assert {tensor.dtype for tensor in load_file(tmp_path / "half" / "model.safetensors").values()} == {
        torch.float16,
        torch.int64,
    }
    torch.testing.assert_close(scores(loaded), scores(recognizer), atol=0.05, rtol=0.05)


def test_what_only_training_needs_may_be_missing(folders: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    folder = copied(folders["wav2vec2_conformer", "base"], tmp_path)
    weights = load_file(folder / "model.safetensors")
    del weights["wav2vec2_conformer.masked_spec_embed"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    torch.testing.assert_close(scores(load(folder, device="cpu")), scores(make("wav2vec2_conformer")))
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(SottoError, match="the weights do not fit the config: lm_head.weight and 0 more"):
        load(folder)


def test_bad_checkpoints_are_refused_in_one_line(folders: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    wrong: dict[str, tuple[tuple[str, str], Any]] = {
        "position_embeddings_type None": (
            ("wav2vec2_conformer", "base"),
            lambda config: config.update(position_embeddings_type=None),
        ),
        "encoder has 2 layers, but encoder_config.num_hidden_layers in config.json is 3": (
            ("parakeet", "factored"),
            lambda config: config["encoder_config"].update(num_hidden_layers=3),
        ),
        "is of a wav2vec2_conformer, but config.json is that of a parakeet": (
            ("parakeet", "factored"),
            lambda config: config["sotto"].update(architecture="wav2vec2_conformer"),
        ),
    }
    for number, (message, (which, change)) in enumerate(wrong.items()):
        folder = copied(folders[which], tmp_path / str(number))
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(SottoError, match=message):
            load(folder)


@pytest.mark.parametrize(
    ("architecture", "lost"), [("parakeet", "tokenizer.json"), ("wav2vec2_conformer", "vocab.json")]
)
def test_a_lost_tokenizer_is_an_error(
    architecture: str, lost: str, folders: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    folder = copied(folders[architecture, "base"], tmp_path)
    (folder / lost).unlink()
    with pytest.raises(SottoError, match=f"^{folder}: "):
        load(folder)


def copied(folder: Path, to: Path) -> Path:
    to.mkdir(exist_ok=True)
    target = to / "copy"
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


OPENING = """
import json, sys
import numpy as np, torch
IMPORT
from transformers import AutoModelForCTC, ParakeetForCTC, Wav2Vec2ConformerForCTC, pipeline
given = json.loads(sys.argv[1])
result = {}

def sums_by_place(model):
    weights = {name: each.double().flatten() for name, each in model.state_dict().items()}
    return {name: (each * torch.linspace(1, 2, len(each))).sum().item() for name, each in weights.items()}

audio = np.load(given.pop("audio"))
for name, folder in given.items():
    kinds = {"auto": AutoModelForCTC, "own": ParakeetForCTC if "parakeet" in name else Wav2Vec2ConformerForCTC}
    found = {}
    for opener, kind in kinds.items():
        try:
            model = kind.from_pretrained(folder)
            found[opener] = type(model).__name__
            found[f"{opener} weights"] = sums_by_place(model)
        except Exception as error:
            found[opener] = f"{type(error).__name__}: {error}"
    try:
        hear = pipeline("automatic-speech-recognition", model=folder)
        found["text"] = hear(audio.copy())["text"]
        if "wav2vec2" in name:
            for timed in ("char", "word"):
                found[timed] = [chunk["text"] for chunk in hear(audio.copy(), return_timestamps=timed)["chunks"]]
    except Exception as error:
        found["text"] = f"{type(error).__name__}: {error}"
    result[name] = found
result["sotto"] = "sotto" in sys.modules
print(json.dumps(result))
"""


def sums_by_place(model: Any) -> dict[str, float]:
    weights = {name: each.double().flatten() for name, each in model.state_dict().items()}
    return {name: (each * torch.linspace(1, 2, len(each))).sum().item() for name, each in weights.items()}


@pytest.fixture(scope="module")
def opened(folders: dict[tuple[str, str], Path], tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Any]:
    """What transformers finds in a process of its own, with and without `import sotto`."""
    import numpy as np

    audio = tmp_path_factory.mktemp("audio") / "noise.npy"
    np.save(audio, noise(1.0))
    given = {f"{name} {kind}": str(folders[name, kind]) for name in RELATIVE for kind in OPENED}
    found = {}
    for with_sotto in (True, False):
        script = OPENING.replace("IMPORT", "import sotto" if with_sotto else "")
        command = [sys.executable, "-c", script, json.dumps(given | {"audio": str(audio)})]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
        found[with_sotto] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("kind", OPENED)
@pytest.mark.parametrize("architecture", RELATIVE)
def test_auto_class_and_pipeline_open_it_after_importing_sotto(
    architecture: str, kind: str, opened: dict[bool, Any], folders: dict[tuple[str, str], Path]
) -> None:
    found = opened[True][f"{architecture} {kind}"]
    plain = {"parakeet": "ParakeetForCTC", "wav2vec2_conformer": "Wav2Vec2ConformerForCTC"}[architecture]
    assert found["auto"] == (plain if kind in PLAIN else f"Sotto{plain}")
    assert len(found["text"].split()) >= 1
    assert "Error" not in found["text"]
    same = load(folders[architecture, kind], device="cpu")
    assert found["auto weights"] == pytest.approx(sums_by_place(same.model), abs=1e-6)
    (heard,) = same.family.transcribe([Clip("noise", noise(1.0), RATE)], Decoding(language="en"))
    assert heard.text
    assert re.sub("<[^>]+>", "", found["text"]).split() == heard.text.split()  # transformers writes special tokens
    if architecture == "wav2vec2_conformer":  # of Parakeet, transformers' pipeline gives no timestamps
        assert "".join(found["char"]) == found["text"]
        assert " ".join(found["word"]) == found["text"]


@pytest.mark.parametrize("kind", OPENED)
@pytest.mark.parametrize("architecture", RELATIVE)
def test_without_sotto_a_checkpoint_opens_whole_or_not_at_all(
    architecture: str, kind: str, opened: dict[bool, Any]
) -> None:
    assert opened[False]["sotto"] is False
    found, with_sotto = (opened[each][f"{architecture} {kind}"] for each in (False, True))
    if kind in PLAIN:
        assert found == with_sotto
        return
    assert "model type `sotto_" in found["auto"]
    assert "sotto:" in found["own"]
    assert "Error" in found["own"]
    assert "Error" in found["text"]
