import copy
import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import BertConfig, pipeline

from sotto import checkpoint
from sotto.architectures.whisper import WHISPER
from sotto.checkpoint import Recognizer, load, probe, save
from sotto.errors import SottoError
from sotto.surgery import factor, get_linear, keep_heads, keep_layers, merge, narrow_ffn, reduce_attention

ENCODER, DECODER = WHISPER.stacks
SELF, CROSS = DECODER.attentions
FFN = ENCODER.feed_forwards[0]
RATE = 16000


def shorten(model: Any) -> None:
    keep_layers(model, ENCODER, (0, 2))
    keep_layers(model, DECODER, (1,))


def narrow_alike(model: Any) -> None:
    for stack, width in ((ENCODER, 10), (DECODER, 7)):
        for index in range(3):
            narrow_ffn(model, stack, index, FFN, range(index, index + width))


def narrow_unlike(model: Any) -> None:
    narrow_ffn(model, ENCODER, 0, FFN, range(1, 12))


def drop_own_heads(model: Any) -> None:
    keep_heads(model, ENCODER, 0, ENCODER.attentions[0], (0, 3))
    keep_heads(model, DECODER, 1, SELF, (1, 2))


def drop_cross_heads(model: Any) -> None:
    keep_heads(model, DECODER, 1, CROSS, (1, 2, 3))


def factor_all(model: Any) -> None:
    generator = torch.Generator().manual_seed(4)
    for stack in WHISPER.stacks:
        for index in range(len(model.get_submodule(stack.layers))):
            for rank, name in enumerate(stack.linears(), start=2):
                old = get_linear(model, stack, index, name)
                shapes = ((rank, old.in_features), (old.out_features, rank), (old.out_features,))
                parts = (0.4 * torch.randn(shape, generator=generator) for shape in shapes)
                factor(model, stack, index, name, *parts)


def factor_and_merge(model: Any) -> None:
    factor_all(model)
    for stack in WHISPER.stacks:
        for index in range(3):
            for name in stack.linears():
                merge(model, stack, index, name)


def reduce(model: Any) -> None:
    factor_all(model)
    for index in range(len(model.model.encoder.layers)):
        reduce_attention(model, ENCODER, index, ENCODER.attentions[0])


def do_everything(model: Any) -> None:
    drop_own_heads(model)
    drop_cross_heads(model)
    narrow_unlike(model)
    shorten(model)
    reduce(model)


PLAIN: dict[str, Callable[[Any], Any]] = {
    "untouched": lambda model: None,
    "fewer layers": shorten,
    "narrower networks": narrow_alike,
    "merged factors": factor_and_merge,
}
OWN: dict[str, Callable[[Any], Any]] = {
    "own heads": drop_own_heads,
    "cross heads": drop_cross_heads,
    "uneven networks": narrow_unlike,
    "factored": factor_all,
    "reduced": reduce,
    "everything": do_everything,
}
KINDS = PLAIN | OWN
FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture(scope="module")
def models(template: Recognizer) -> dict[str, Recognizer]:
    """One model of every kind. Not to be changed."""
    made = {}
    for kind, change in KINDS.items():
        recognizer = copy.deepcopy(template)
        change(recognizer.model)
        made[kind] = recognizer
    return made


@pytest.fixture(scope="module")
def folders(models: dict[str, Recognizer], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("kinds")
    return {kind: str(recognizer.save(root / kind)) for kind, recognizer in models.items()}


def contents(folder: Path) -> dict[str, bytes | None]:
    """Everything in a folder and the folders in it: files with their bytes, folders and links with none."""
    paths = sorted(folder.rglob("*"))
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in paths}


def config_of(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return values


def change_config(folder: Path, **values: Any) -> None:
    (folder / "config.json").write_text(json.dumps(config_of(folder) | values))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_structure_loads_as_it_was_saved(
    kind: str, models: dict[str, Recognizer], folders: dict[str, str], logits: Any
) -> None:
    folder, recognizer = Path(folders[kind]), models[kind]
    assert {path.name for path in folder.iterdir()} == FILES
    assert config_of(folder)["model_type"] == ("whisper" if kind in PLAIN else "sotto_whisper")
    assert json.loads((folder / "generation_config.json").read_text())["max_length"] == 32

    loaded = load(folder)

    assert not loaded.model.training
    state = recognizer.model.state_dict()
    assert loaded.model.state_dict().keys() == state.keys()
    for name, value in loaded.model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, state[name]), name
    torch.testing.assert_close(logits(loaded.model), logits(recognizer.model), atol=1e-5, rtol=0)
    assert loaded.structure == recognizer.structure
    assert loaded.model.generation_config.to_dict() == recognizer.model.generation_config.to_dict()
    assert loaded.processor.tokenizer("one two").input_ids == recognizer.processor.tokenizer("one two").input_ids
    assert (loaded.sampling_rate, loaded.window_seconds) == (RATE, 1.0)


@pytest.mark.parametrize("kind", ["untouched", "everything"])
def test_half_precision_on_disk(kind: str, models: dict[str, Recognizer], tmp_path: Path, logits: Any) -> None:
    recognizer = models[kind]
    folder = recognizer.save(tmp_path / "half", dtype="float16")
    state = recognizer.model.state_dict()
    weights = load_file(folder / "model.safetensors")
    assert config_of(folder)["dtype"] == "float16"
    assert all(torch.equal(weight, state[name].half()) for name, weight in weights.items())
    assert {weight.dtype for weight in recognizer.model.parameters()} == {torch.float32}  # on disk only
    loaded = load(folder)
    assert {weight.dtype for weight in loaded.model.parameters()} == {torch.float32}
    expected = logits(recognizer.model)
    assert (logits(loaded.model) - expected).abs().max() < 1e-2 * expected.abs().max()
    assert {weight.dtype for weight in load(folder, dtype=torch.float16).model.parameters()} == {torch.float16}


def test_a_model_of_half_precision_keeps_it(recognizer: Recognizer, tmp_path: Path) -> None:
    recognizer.model.to(torch.bfloat16)
    folder = recognizer.save(tmp_path / "bfloat16")
    assert {weight.dtype for weight in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}
    assert config_of(folder)["dtype"] == "bfloat16"


def test_a_checkpoint_is_saved_in_the_precision_it_came_in(models: dict[str, Recognizer], tmp_path: Path) -> None:
    half = load(models["factored"].save(tmp_path / "half", dtype="float16"))
    merge(half.model, ENCODER, 0, "fc1")
    again = load(half.save(tmp_path / "again"))
    assert {weight.dtype for weight in load_file(tmp_path / "again" / "model.safetensors").values()} == {torch.float16}
    full = load(again.save(tmp_path / "full", dtype="float32"))
    assert config_of(tmp_path / "full")["dtype"] == "float32"
    assert full.structure == again.structure == half.structure


def test_an_output_layer_of_its_own_is_kept(recognizer: Recognizer, tmp_path: Path, logits: Any) -> None:
    model = recognizer.model
    model.config.tie_word_embeddings = False
    model.proj_out.weight = nn.Parameter(torch.randn_like(model.proj_out.weight))
    loaded = load(recognizer.save(tmp_path / "untied")).model
    torch.testing.assert_close(logits(loaded), logits(model), atol=1e-5, rtol=0)


def test_weights_can_be_read_by_whoever_reads_the_config(recognizer: Recognizer, tmp_path: Path) -> None:
    folder = recognizer.save(tmp_path / "model")
    modes = {path.suffix: path.stat().st_mode for path in folder.iterdir()}
    assert modes[".safetensors"] == modes[".json"]


def test_saving_changes_nothing_in_memory(recognizer: Recognizer, tmp_path: Path) -> None:
    recognizer.model.train()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    recognizer.save(tmp_path / "checkpoint", card="# A card\n")
    assert torch.equal(torch.rand(1), expected)
    assert recognizer.model.training
    assert (tmp_path / "checkpoint" / "README.md").read_text() == "# A card\n"


def test_a_second_save_takes_the_place_of_the_first(
    models: dict[str, Recognizer], tmp_path: Path, logits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "sub" / "checkpoint"
    models["factored"].save(folder, card="first")
    models["fewer layers"].save(folder)
    assert {path.name for path in folder.iterdir()} == FILES
    torch.testing.assert_close(logits(load(folder).model), logits(models["fewer layers"].model), atol=1e-5, rtol=0)
    monkeypatch.chdir(folder)
    models["own heads"].save(".")
    (tmp_path / "link").symlink_to(folder)
    models["own heads"].save(tmp_path / "link")
    assert load(folder).structure == models["own heads"].structure
    assert (tmp_path / "link").is_symlink()
    assert sorted(path.name for path in tmp_path.rglob("*") if path.name not in FILES) == ["checkpoint", "link", "sub"]


def test_a_loaded_checkpoint_is_operated_on_and_saved_again(
    folders: dict[str, str], tmp_path: Path, logits: Any
) -> None:
    for kind in ("narrower networks", "everything"):
        recognizer = load(folders[kind])
        narrow_ffn(recognizer.model, ENCODER, 1, FFN, (0, 2))
        again = load(recognizer.save(tmp_path / kind))
        assert again.structure == recognizer.structure
        assert again.structure.layer("encoder", 1).ffn_widths == {"ffn": 2}
        torch.testing.assert_close(logits(again.model), logits(recognizer.model), atol=1e-5, rtol=0)


def test_transformers_own_saving_works_too(folders: dict[str, str], tmp_path: Path, logits: Any) -> None:
    recognizer = load(folders["everything"])
    recognizer.model.save_pretrained(tmp_path)
    recognizer.processor.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert again.structure == recognizer.structure
    assert again.model.config.activation_function == "gelu"
    torch.testing.assert_close(logits(again.model), logits(recognizer.model), atol=1e-5, rtol=0)


COMMON = """
import json, sys
import numpy as np
import torch
from transformers import AutoModelForSpeechSeq2Seq, WhisperForConditionalGeneration, WhisperModel, pipeline

plain, own = json.loads(sys.argv[1])
long_audio = np.sin(np.arange(48000) ** 1.5 / 999).astype(np.float32)

@torch.no_grad()
def numbers(model):
    frames = torch.sin(torch.arange(8000) * 0.37).view(1, 80, 100)
    return model.eval()(input_features=frames, decoder_input_ids=torch.tensor([[1, 2, 3]])).logits.flatten().tolist()

def hear(folder, **settings):
    speech = pipeline("automatic-speech-recognition", model=folder)
    return speech({"raw": long_audio, "sampling_rate": 16000}, **settings)

def error_of(opened):
    try:
        opened()
    except Exception as error:
        return f"{type(error).__name__}: {error}"

result = {}
"""
WITH_SOTTO = (
    "import sotto"
    + COMMON
    + """
for kind, folder in (plain | own).items():
    result[kind] = {"logits": numbers(AutoModelForSpeechSeq2Seq.from_pretrained(folder))}
for kind in ("merged factors", "reduced", "everything"):
    folder = (plain | own)[kind]
    result[kind]["timed"] = hear(folder, return_timestamps=True)
    result[kind]["chunked"] = hear(folder, chunk_length_s=1, stride_length_s=0.2, batch_size=2)
print(json.dumps(result))
"""
)
WITHOUT_SOTTO = (
    COMMON
    + """
for kind, folder in plain.items():
    result[kind] = {"logits": numbers(AutoModelForSpeechSeq2Seq.from_pretrained(folder))}
for kind, folder in own.items():
    classes = (AutoModelForSpeechSeq2Seq, WhisperForConditionalGeneration, WhisperModel)
    result[kind] = {opener.__name__: error_of(lambda: opener.from_pretrained(folder)) for opener in classes}
    result[kind]["pipeline"] = error_of(lambda: pipeline("automatic-speech-recognition", model=folder))
result["timed"] = hear(plain["fewer layers"], return_timestamps=True)
result["sotto"] = "sotto" in sys.modules
print(json.dumps(result))
"""
)


def run_elsewhere(script: str, folders: dict[str, str]) -> dict[str, Any]:
    """What `script` prints, run in a process of its own that is given the plain and the other folders."""
    kinds = [{kind: folders[kind] for kind in group} for group in (PLAIN, OWN)]
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(kinds)],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    printed: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return printed


@pytest.fixture(scope="module")
def with_sotto(folders: dict[str, str]) -> dict[str, Any]:
    return run_elsewhere(WITH_SOTTO, folders)


@pytest.fixture(scope="module")
def without_sotto(folders: dict[str, str]) -> dict[str, Any]:
    return run_elsewhere(WITHOUT_SOTTO, folders)


@torch.no_grad()
def numbers(model: Any) -> torch.Tensor:
    frames = torch.sin(torch.arange(8000) * 0.37).view(1, 80, 100)
    result: torch.Tensor = model(input_features=frames, decoder_input_ids=torch.tensor([[1, 2, 3]])).logits.flatten()
    return result


def hear(recognizer: Recognizer, **settings: Any) -> Any:
    """What transformers' pipeline says with the model that is in memory."""
    processor = recognizer.processor
    speech = pipeline(
        "automatic-speech-recognition",
        model=recognizer.model,
        tokenizer=processor.tokenizer,
        feature_extractor=processor.feature_extractor,
    )
    audio = np.sin(np.arange(48000) ** 1.5 / 999).astype(np.float32)
    return speech({"raw": audio, "sampling_rate": RATE}, **settings)


@pytest.mark.parametrize("kind", KINDS)
def test_the_auto_class_opens_it_after_importing_sotto(
    kind: str, with_sotto: dict[str, Any], models: dict[str, Recognizer]
) -> None:
    found = torch.tensor(with_sotto[kind]["logits"])
    torch.testing.assert_close(found, numbers(models[kind].model), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["merged factors", "reduced", "everything"])
def test_a_pipeline_opens_it_and_takes_long_audio(
    kind: str, with_sotto: dict[str, Any], models: dict[str, Recognizer]
) -> None:
    timed, chunked = with_sotto[kind]["timed"], with_sotto[kind]["chunked"]
    in_memory = hear(copy.deepcopy(models[kind]), return_timestamps=True)
    assert timed == json.loads(json.dumps(in_memory))
    assert timed["text"]
    starts = [chunk["timestamp"][0] for chunk in timed["chunks"]]
    assert starts == sorted(starts)
    assert starts[-1] >= 1.0  # beyond the first window
    assert chunked["text"]


@pytest.mark.parametrize("kind", PLAIN)
def test_a_plain_checkpoint_needs_no_sotto(
    kind: str, without_sotto: dict[str, Any], models: dict[str, Recognizer]
) -> None:
    assert without_sotto["sotto"] is False
    found = torch.tensor(without_sotto[kind]["logits"])
    torch.testing.assert_close(found, numbers(models[kind].model), atol=1e-5, rtol=0)
    assert without_sotto["timed"]["chunks"]


@pytest.mark.parametrize("kind", OWN)
def test_any_other_checkpoint_is_never_half_loaded_without_sotto(kind: str, without_sotto: dict[str, Any]) -> None:
    errors = without_sotto[kind]
    for opener in ("AutoModelForSpeechSeq2Seq", "pipeline"):
        assert "model type `sotto_whisper`" in errors[opener]
    for opener in ("WhisperForConditionalGeneration", "WhisperModel"):
        assert "sotto:gelu" in errors[opener]


def cut(name: str, keep: int) -> Callable[[Path], Any]:
    """Damage a file: only its first `keep` bytes are left (or all but so many, where that is negative)."""
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:keep])


def lose(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).unlink()


def configure(**values: Any) -> Callable[[Path], Any]:
    return lambda folder: change_config(folder, **values)


def swap_weights(folder: Path) -> None:
    """The weights of a model whose first layer is factored, beside a config that knows nothing of it."""
    (folder / "model.safetensors").unlink()
    shutil.copy(folder.parent / "factored.safetensors", folder / "model.safetensors")


DAMAGED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "weights cut short": (cut("model.safetensors", -5000), "the weights are damaged (.*); fetch or save"),
    "header cut short": (cut("model.safetensors", 100), "the weights are damaged"),
    "empty weights": (cut("model.safetensors", 0), "the weights are damaged"),
    "no weights": (lose("model.safetensors"), "not a checkpoint that can be opened: .*model.safetensors"),
    "no config": (lose("config.json"), "not a checkpoint that can be opened: "),
    "config cut short": (cut("config.json", 50), "not a checkpoint that can be opened: .*not a valid JSON file"),
    "config of another type": (configure(model_type="nothing"), "not a checkpoint that can be opened: .*`nothing`"),
    "layers in words": (configure(encoder_layers="three"), "not a checkpoint .*'encoder_layers' expected int"),
    "more layers": (configure(encoder_layers=4), "the weights do not fit the config: model.encoder.layers.3"),
    "fewer layers": (configure(decoder_layers=2), "the weights do not fit the config: model.decoder.layers.2"),
    "other width": (configure(encoder_ffn_dim=20), "the weights do not fit the config: their sizes differ; take"),
    "no output layer": (configure(tie_word_embeddings=False), "the weights do not fit the config: proj_out.weight"),
    "other weights": (swap_weights, "the weights do not fit the config: model.* more; save it anew"),
    "no tokenizer": (lose("tokenizer.json"), "the tokenizer is incomplete; copy tokenizer.json and tokenizer_config"),
    "no settings of it": (lose("tokenizer_config.json"), "the tokenizer is incomplete; copy tokenizer.json and"),
    "no preprocessor": (lose("processor_config.json"), "not a checkpoint that can be opened: .*feature extractor"),
    "tokenizer cut short": (cut("tokenizer.json", 500), "not a checkpoint that can be opened: "),
    "empty preprocessor": (cut("processor_config.json", 0), "not a checkpoint that can be opened: "),
    "generation config cut short": (cut("generation_config.json", 50), "not a checkpoint .*generation_config.json"),
}


@pytest.fixture(scope="module")
def damageable(saved: Path, folders: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("damageable")
    shutil.copytree(saved, root / "checkpoint")
    shutil.copy(Path(folders["factored"]) / "model.safetensors", root / "factored.safetensors")
    return root


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_checkpoints_are_refused(case: str, damageable: Path, tmp_path: Path) -> None:
    damage, message = DAMAGED[case]
    shutil.copytree(damageable, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "checkpoint"
    damage(folder)
    with pytest.raises(SottoError, match=f"^{folder}: {message}") as refused:
        load(folder)
    assert "\n" not in str(refused.value)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    BertConfig().save_pretrained(tmp_path / "bert")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("text")
    for name, message in {
        "nothing": "no such folder.*; check the path",
        "empty": "not a checkpoint that can be opened: ",
        "file": "not a checkpoint that can be opened: ",
        "bert": "a checkpoint of type 'bert' is not supported; Sotto knows whisper",
    }.items():
        with pytest.raises(SottoError, match=f"^{tmp_path / name}: {message}"):
            load(tmp_path / name)
        with pytest.raises(SottoError, match=f"^{tmp_path / name}: {message}"):
            load(str(tmp_path / name))


def test_a_missing_generation_config_is_made_up(damageable: Path, tmp_path: Path) -> None:
    shutil.copytree(damageable / "checkpoint", tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / "generation_config.json").unlink()
    assert load(tmp_path / "checkpoint").model.can_generate()


@pytest.mark.parametrize(
    "name", ["photos", "photos/holiday.jpg", "photos/holiday.jpg/below", "project"], ids=lambda name: Path(name).name
)
def test_nothing_but_a_checkpoint_is_replaced(name: str, recognizer: Recognizer, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_bytes(b"sea")
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "config.json").write_text("{}")  # many programs have one
    before = contents(tmp_path)
    with pytest.raises(SottoError, match=f"^{tmp_path / name}.*(name a new folder|cannot be written)"):
        recognizer.save(tmp_path / name)
    assert contents(tmp_path) == before


def test_an_empty_folder_is_taken(recognizer: Recognizer, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    recognizer.save(tmp_path / "new")
    assert {path.name for path in (tmp_path / "new").iterdir()} == FILES


def test_an_unknown_dtype_is_refused(recognizer: Recognizer, tmp_path: Path) -> None:
    with pytest.raises(SottoError, match="^unknown dtype 'flaot16'; did you mean 'float16'"):
        recognizer.save(tmp_path / "checkpoint", dtype="flaot16")
    assert contents(tmp_path) == {}


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail


def half_written(error: BaseException) -> Callable[..., Any]:
    def fail(state: Any, folder: Path, **_: Any) -> None:
        (folder / "model.safetensors").write_bytes(b"half of the weights")
        raise error

    return fail


def misspelled(change: Callable[[torch.Tensor], torch.Tensor], name: str) -> Callable[..., Any]:
    """Writes one weight other than it is in memory."""
    honest = checkpoint.save_torch_state_dict

    def write(state: dict[str, torch.Tensor], folder: Path, **settings: Any) -> None:
        honest(state | {name: change(state[name])}, folder, **settings)

    return write


def full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


LAST = "model.decoder.layer_norm.weight"
FAILURES: dict[str, tuple[str, Callable[[], Callable[..., Any]], type[BaseException], str | None]] = {
    "disk full": (
        "save_torch_state_dict",
        lambda: half_written(full()),
        SottoError,
        r"cannot be written \(No space left on device\); nothing was left there",
    ),
    "disk full, as safetensors says it": (
        "save_torch_state_dict",
        lambda: half_written(SafetensorError("I/O error: No space left on device (os error 28)")),
        SottoError,
        r"cannot be written \(I/O error: No space left on device \(os error 28\)\); nothing was left there",
    ),
    "disk full at once": ("tempfile.mkdtemp", lambda: raising(full()), SottoError, "cannot be written"),
    "another value": (
        "save_torch_state_dict",
        lambda: misspelled(lambda weight: weight + 0.01, LAST),
        SottoError,
        "the saved checkpoint differs from the model in memory by .* of its largest output; it was removed",
    ),
    "not a number": (
        "save_torch_state_dict",
        lambda: misspelled(lambda weight: weight * float("nan"), LAST),
        SottoError,
        "differs from the model in memory by nan",
    ),
    "another shape": (
        "save_torch_state_dict",
        lambda: misspelled(lambda weight: weight[1:].clone(), LAST),
        SottoError,
        "the weights do not fit the config",
    ),
    "Ctrl-C while writing": (
        "save_torch_state_dict",
        lambda: half_written(KeyboardInterrupt()),
        KeyboardInterrupt,
        None,
    ),
    "Ctrl-C while verifying": ("probe", lambda: raising(KeyboardInterrupt()), KeyboardInterrupt, None),
}


@pytest.mark.parametrize("is_there", [False, True], ids=["new", "there"])
@pytest.mark.parametrize("case", FAILURES)
def test_a_failed_save_leaves_everything_as_it_was(
    case: str, is_there: bool, recognizer: Recognizer, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_there:
        shutil.copytree(saved, tmp_path / "checkpoint")
    before = contents(tmp_path)
    narrow_unlike(recognizer.model)
    place, failure, error, message = FAILURES[case]
    monkeypatch.setattr(f"sotto.checkpoint.{place}", failure())
    with pytest.raises(error, match=message):
        recognizer.save(tmp_path / "checkpoint")
    assert contents(tmp_path) == before
    monkeypatch.undo()
    recognizer.save(tmp_path / "checkpoint")
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint"}


def test_parents_that_were_made_for_a_failed_save_are_gone(
    recognizer: Recognizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    monkeypatch.setattr("sotto.checkpoint.probe", raising(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        recognizer.save(tmp_path / "there" / "new" / "deep" / "checkpoint")
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]


def test_a_tokenizer_that_cannot_be_written_fails_the_save(
    recognizer: Recognizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "No space left on device (os error 28)"
    monkeypatch.setattr(recognizer.processor, "save_pretrained", raising(Exception(reason)))  # as tokenizers raises it
    with pytest.raises(SottoError, match="cannot be written .No space left on device"):
        recognizer.save(tmp_path / "checkpoint")
    assert contents(tmp_path) == {}


def test_decoding_settings_that_transformers_refuses_fail_the_save(recognizer: Recognizer, tmp_path: Path) -> None:
    recognizer.model.generation_config.temperature = 0.3
    with pytest.raises(SottoError, match="`temperature`.*; correct generation_config.json of the base") as refused:
        recognizer.save(tmp_path / "checkpoint")
    assert "\n" not in str(refused.value)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("error", [full(), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
def test_the_old_checkpoint_comes_back_where_the_new_one_cannot_take_its_place(
    error: BaseException, recognizer: Recognizer, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(saved, tmp_path / "checkpoint")
    before = contents(tmp_path)
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises((SottoError, KeyboardInterrupt)):
        save(recognizer, tmp_path / "checkpoint")
    assert contents(tmp_path) == before


def test_the_probe_hears_every_part(recognizer: Recognizer) -> None:
    before = probe(recognizer)
    assert before.shape == (4, recognizer.model.config.vocab_size)
    assert torch.equal(probe(recognizer), before)
    for name, parameter in recognizer.model.named_parameters():
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.mul_(1.5)
        difference = (probe(recognizer) - before).abs().max() / before.abs().max()
        assert difference > checkpoint.TOLERANCE[torch.float32], name
        with torch.no_grad():
            parameter.copy_(kept)
