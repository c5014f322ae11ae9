"""Two processes on gloo, against one: what is computed must not depend on how many share the work."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from digits import MODEL, some_clips
from recognizers import recognizer
from sotto import compress
from sotto.augmentation import Augmentation
from sotto.calibration import calibrate, places
from sotto.checkpoint import Recognizer
from sotto.data import DataConfig
from sotto.decoding import Decoding, Transcription
from sotto.distribution import processes
from sotto.examples import ClipExamples
from sotto.families.whisper import Whisper
from sotto.methods import (
    AdaptivePruning,
    FineTuning,
    GuidedDistillation,
    ImportancePruning,
    L0Pruning,
    LayerwiseDistillation,
    MagnitudePruning,
    QuantizationAware,
    SparseGroupLasso,
    importance,
)
from sotto.methods.gate_costs import Constraint, gate_costs
from sotto.methods.pseudo_transcripts import transcribed
from sotto.methods.timed_linears import linear_times
from sotto.objectives import EncoderCtc, Objective, Setting, objectives
from sotto.recipe import parse_recipe
from sotto.run import carry_out
from sotto.surgery import narrow_ffn
from sotto.text import get_normalizer
from sotto.training import Training, train
from tones import open_folder, tiny_whisper, write_folder

STEPS = 6
WORDS = ["one", "two", "three", "four", "two", "one", "four", "three"]
HOW = ["bucketed", "shuffled", "bucketed, resumed", "shuffled, resumed"]
SECONDS = [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]


class Penalty(Objective):
    """A term of the weights alone, which must count once however many processes there are; can stop the training."""

    name = "weights"

    def __init__(self, stop_at: int) -> None:
        super().__init__()
        self.stop_at = stop_at

    def after_step(self, model: Any, step: int, learning_rate: float) -> None:
        if step == self.stop_at:
            raise KeyboardInterrupt

    def forward(self, model: Any, batch: Any, outputs: Any, tokens: torch.Tensor) -> torch.Tensor:
        share = (batch["labels"] != -100).sum() / tokens
        return share * 0.01 * model.model.encoder.layers[0].fc1.weight.square().sum()


def calibrated(folder: Path) -> dict[str, torch.Tensor]:
    """Moments of every measured point of both stacks, over seven clips: an odd number."""
    model, processor = tiny_whisper()
    source = open_folder(folder / "seven")
    kept = calibrate(Recognizer(model.eval(), processor), source, ("encoder", "decoder"))
    found = {}
    for point, moments in kept.moments.items():
        name = ".".join(map(str, point.owner))
        found |= {f"{name}.mean": moments.mean, f"{name}.covariance": moments.covariance}
        found[f"{name}.count"] = torch.tensor(float(moments.count), dtype=torch.float64)
    return found


def trained(
    folder: Path, run: Path, bucketed: bool, stop_at: int = 0
) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    """Weights and log after three epochs of eight clips in batches of four; each epoch has its own noise and gain."""
    model, processor = tiny_whisper()
    source = open_folder(folder / "eight")
    torch.manual_seed(0)
    setting = Setting(Whisper(model, processor))
    shrinkage = SparseGroupLasso(encoder_element=1.0, decoder_group=5.0, form="proximal")
    terms = [objectives.handler(term)(term, setting) for term in (EncoderCtc(0.3), shrinkage)]
    config = Training(
        steps=STEPS,
        batch_size=4,
        learning_rate=1e-3,
        evaluate_every=STEPS // 2,  # in the middle of an epoch
        log_every=1,
        workers=0,
        length_bucketing=bucketed,
    )
    log = train(
        Whisper(model, processor),
        config,
        training_data=ClipExamples(source, Augmentation(gain_db=6, noise_snr_db=(5, 30)), 1.0, seed=0),
        validation_data=ClipExamples(open_folder(folder / "seven"), Augmentation(), 1.0, seed=0),
        language="en",
        normalizer=get_normalizer("english"),
        folder=run,
        objectives=[*terms, Penalty(stop_at)],
        device="cpu",
    )
    return load_file(run / f"checkpoint-{STEPS}" / "model.safetensors"), log


def resumed(folder: Path, run: Path, bucketed: bool) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    """The same, stopped after the fifth step and gone on with from the checkpoint of the third."""
    with pytest.raises(KeyboardInterrupt):
        trained(folder, run, bucketed, stop_at=5)
    return trained(folder, run, bucketed)


def written(folder: Path, run: Path) -> tuple[dict[str, str | None], int]:
    """Transcripts of seven clips, and how many of them this process wrote."""
    heard: list[str] = []
    transcribe = Whisper.transcribe

    def noted(family: Whisper, clips: Any, decoding: Decoding) -> Iterator[Transcription]:
        for found in transcribe(family, clips, decoding):
            heard.append(found.name)
            yield replace(found, text=f"what {found.name} says")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Whisper, "transcribe", noted)
        teacher = Recognizer(*tiny_whisper())
        source = transcribed(
            open_folder(folder / "seven"), lambda: teacher, "en", run / "transcripts.json", get_normalizer("basic")
        )
    return {clip.name: clip.text for clip in source}, len(heard)


def once(folder: Path, run: Path) -> dict[str, Any]:
    return {
        "bucketed": trained(folder, run / "bucketed", bucketed=True),
        "shuffled": trained(folder, run / "shuffled", bucketed=False),
        "moments": calibrated(folder),
        "transcripts": written(folder, run),
    }


def in_two_processes(folder: Path, run: Path) -> dict[str, Any]:
    return {
        "moments first": calibrated(folder),
        "bucketed, resumed": resumed(folder, run / "bucketed, resumed", bucketed=True),
        "shuffled, resumed": resumed(folder, run / "shuffled, resumed", bucketed=False),
        **once(folder, run),
    }


def hand_over(found: dict[str, Any], folder: Path) -> None:
    """Write what `in_two_processes` gives: tensors in safetensors, all else in JSON."""
    folder.mkdir()
    plain: dict[str, list[Any]] = {}
    for key, value in found.items():
        plain[key] = [None if is_weights(part) else part for part in parts_of(value)]
        for place, part in enumerate(parts_of(value)):
            if is_weights(part):
                tensors = {name: tensor.contiguous() for name, tensor in part.items()}
                save_file(tensors, folder / f"{key}.{place}.safetensors")
    (folder / "plain.json").write_text(json.dumps(plain))


def handed_over(folder: Path) -> dict[str, Any]:
    """The inverse of `hand_over`."""
    found: dict[str, Any] = {}
    for key, plain in json.loads((folder / "plain.json").read_text()).items():
        paths = [folder / f"{key}.{place}.safetensors" for place in range(len(plain))]
        parts = [load_file(path) if path.is_file() else part for path, part in zip(paths, plain, strict=True)]
        found[key] = tuple(parts) if len(parts) > 1 else parts[0]
    return found


def parts_of(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def is_weights(part: Any) -> bool:
    return isinstance(part, dict) and all(isinstance(tensor, torch.Tensor) for tensor in part.values())


SCRIPT = """
import sys
from pathlib import Path
from accelerate import PartialState
sys.path.insert(0, sys.argv[3])
from test_distributed import hand_over, in_two_processes

folder, out = Path(sys.argv[1]), Path(sys.argv[2])
found = in_two_processes(folder, out / "runs")
state = PartialState()
assert state.num_processes == 2
hand_over(found, out / str(state.process_index))
"""


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


def launch(*command_line: str) -> None:
    """Run a script, or a module after `-m`, by torchrun: without a GPU `accelerate launch` starts no second process."""
    options = ["--nproc_per_node", "2", "--master_port", str(free_port())]
    command = [sys.executable, "-m", "torch.distributed.run", *options, *command_line]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What one process finds, and what each of two finds."""
    folder = tmp_path_factory.mktemp("distributed")
    write_folder(folder / "seven", WORDS[:7], SECONDS[:7])
    write_folder(folder / "eight", WORDS, SECONDS)
    (folder / "script.py").write_text(SCRIPT)
    launch(str(folder / "script.py"), str(folder), str(folder), str(Path(__file__).parent))
    two = [handed_over(folder / str(index)) for index in range(2)]
    return once(folder, folder / "alone"), two


@pytest.mark.parametrize("when", ["moments", "moments first"])
def test_moments_are_those_of_one_process(both: Any, when: str) -> None:
    one, two = both[0]["moments"], [found[when] for found in both[1]]
    assert one["encoder.0.self_attn.q_proj.count"] == 7 * 50
    for found in two:
        assert found.keys() == one.keys()
        for name, expected in one.items():
            scale = expected.abs().max().item()
            torch.testing.assert_close(found[name], expected, rtol=1e-6, atol=1e-6 * scale, msg=name)


@pytest.mark.parametrize("how", HOW)
def test_training_takes_the_steps_of_one_process(both: Any, how: str) -> None:
    (weights, log), two = both[0][how.removesuffix(", resumed")], [found[how] for found in both[1]]
    steps = [entry for entry in log if "loss" in entry]
    assert len(steps) == STEPS
    for _, found in two:
        alike = [entry for entry in found if "loss" in entry]
        for entry, other in zip(steps, alike, strict=True):
            assert other["loss"] == pytest.approx(entry["loss"], rel=1e-5)
            assert other["grad_norm"] == pytest.approx(entry["grad_norm"], rel=1e-4)
            assert other["learning_rate"] == entry["learning_rate"]
            for term in ("cross_entropy", "ctc", "weights"):
                assert other[term] == pytest.approx(entry[term], abs=2e-4), term
    assert all(value > 0 for entry in steps for value in (entry["ctc"], entry["weights"]))
    for found, _ in two:
        for name, expected in weights.items():
            torch.testing.assert_close(
                found[name], expected, rtol=0, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
            )


@pytest.mark.parametrize("how", HOW)
def test_validation_hears_every_clip_once(both: Any, how: str) -> None:
    (_, log), two = both[0][how.removesuffix(", resumed")], [found[how] for found in both[1]]
    rates = [(entry["eval_wer"], entry["eval_cer"]) for entry in log if "eval_wer" in entry]
    assert len(rates) == 2
    for _, found in two:
        assert [(entry["eval_wer"], entry["eval_cer"]) for entry in found if "eval_wer" in entry] == rates


def test_a_teachers_transcripts_are_written_by_all_and_taken_by_all(both: Any) -> None:
    (texts, heard), two = both[0]["transcripts"], [found["transcripts"] for found in both[1]]
    assert heard == len(texts) == 7
    assert [found[0] for found in two] == [texts, texts]
    assert sorted(found[1] for found in two) == [3, 4]


def test_a_recipe_in_two_processes_gives_what_it_gives_in_one(tmp_path: Path) -> None:
    some_clips("calibration", tmp_path / "calibration", 6)
    clips = some_clips("test", tmp_path / "test", 9)
    (clips / "audio" / "broken.wav").write_bytes(b"no audio")
    with (clips / "metadata.csv").open("a", encoding="utf-8") as file:
        file.write("audio/broken.wav,one\n")
    recipe = {
        "base": str(MODEL),
        "language": "en",
        "normalizer": "basic",
        "data": {"calibration": {"path": "calibration"}, "test": {"path": "test"}},
        "steps": [{"low_rank": {"parameters": 0.18, "rank_multiple": 8}}],
        "export": ["transformers"],
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    launch("-m", "sotto", "compress", str(tmp_path / "recipe.yaml"), "-o", str(tmp_path / "two"))
    carry_out(parse_recipe(recipe, "recipe"), tmp_path, tmp_path / "one", print)
    one, two = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("one", "two"))
    assert [line.partition(":")[0] for line in two["skipped"]["test"]] == ["audio/broken.wav"]
    assert one["exports"][0]["errors"] is not None
    for alone, shared in zip([*one["models"], *one["exports"]], [*two["models"], *two["exports"]], strict=True):
        assert shared["layers"] == alone["layers"]
        for key in ("wer", "wer_interval", "per_clip"):
            assert shared["errors"][key] == alone["errors"][key]
    assert one["models"][1]["errors"]["wer"] > 0
    alone, shared = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two"))
    assert shared.keys() == alone.keys()
    for name, tensor in alone.items():
        assert shared[name].shape == tensor.shape, name


WEIGHTS = """
import sys
from pathlib import Path
from accelerate import PartialState
from safetensors.torch import save_file
sys.path.insert(0, sys.argv[1])
import test_distributed

found = getattr(test_distributed, sys.argv[3])(Path(sys.argv[2]))
apart = {name: tensor.clone() for name, tensor in found.items()}
save_file(apart, Path(sys.argv[2]) / f"{PartialState().process_index}.safetensors")
"""


def in_each_process(folder: Path, function: str) -> dict[str, torch.Tensor]:
    """The weights that a function of this file gives for `folder` in each of two processes, which must be the same."""
    (folder / "script.py").write_text(WEIGHTS)
    launch(str(folder / "script.py"), str(Path(__file__).parent), str(folder), function)
    first, second = (load_file(folder / f"{index}.safetensors") for index in range(2))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=0, atol=0, msg=name)
    return first


def gated(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a Conformer that was pruned by gates and a teacher, in bf16."""
    found = recognizer("parakeet")
    settings: dict[str, Any] = {"steps": 12, "batch_size": 4, "keep": "last", "evaluate_every": 12, "workers": 0}
    step = L0Pruning(
        Training(precision="bf16", **settings),
        (LayerwiseDistillation(),),
        target=0.7,
        start="taylor",
        clips=4,
        gate_rate=0.5,
        transcripts_from=str(folder / "dense"),
    )
    data = {"train": DataConfig(str(folder / "eight")), "validation": DataConfig(str(folder / "seven"))}
    pruned = compress(found, step, language="en", **data)
    return dict(pruned.model.state_dict())


def test_two_processes_learn_the_same_gates(tmp_path: Path) -> None:
    """Each with clips of its own; what was open, and what is left, must not differ."""
    write_folder(tmp_path / "seven", WORDS[:7], SECONDS[:7])
    write_folder(tmp_path / "eight", WORDS, SECONDS)
    dense = recognizer("parakeet")
    dense.save(tmp_path / "dense")
    first = in_each_process(tmp_path, "gated")
    before = dense.model.state_dict()
    assert sum(tensor.numel() for tensor in first.values()) < 0.75 * sum(tensor.numel() for tensor in before.values())


def guided(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a Whisper after guided distillation, layers rounded as they learn, and what the objective kept."""
    term = GuidedDistillation(
        str(folder / "teacher"),
        select_by="weight",
        rounding=QuantizationAware(bits=4),
        rounded_over=3,
        distilled_layers=1,
    )
    settings: dict[str, Any] = {"steps": 4, "batch_size": 4, "keep": "last", "evaluate_every": 4, "workers": 0}
    step = FineTuning(Training(learning_rate=1e-3, **settings), (term,))
    data = {"train": DataConfig(str(folder / "eight")), "validation": DataConfig(str(folder / "seven"))}
    found = Recognizer(*tiny_whisper(start="scaled", decoder_layers=2))
    return dict(compress(found, step, language="en", **data).model.state_dict())


def test_two_processes_learn_the_same_of_a_teacher(tmp_path: Path) -> None:
    """One network of the teacher is narrower: its adapter takes part in no batch in which it is not matched."""
    write_folder(tmp_path / "seven", WORDS[:7], SECONDS[:7])
    write_folder(tmp_path / "eight", WORDS, SECONDS)
    teacher = Recognizer(*tiny_whisper(start="scaled", d_model=48, decoder_layers=3, attention_heads=4, seed=1))
    stack = teacher.architecture.stack("decoder")
    narrow_ffn(teacher.model, stack, 0, stack.feed_forwards[0], range(100))
    teacher.save(tmp_path / "teacher")
    alone = guided(tmp_path)
    for name, tensor in in_each_process(tmp_path, "guided").items():
        torch.testing.assert_close(alone[name], tensor, rtol=1e-2, atol=1e-3, msg=name)


def pruned_in_rounds(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a Whisper after thresholds by search, and then iterative magnitude pruning."""
    settings: dict[str, Any] = {"batch_size": 4, "keep": "last", "evaluate_every": 2, "workers": 0}
    searched = AdaptivePruning(wer_increase=1000.0, search_steps=1, feed_forward="neuron")
    rounds = MagnitudePruning(0.9, rounds=2, recovery=FineTuning(Training(steps=4, **settings)))
    data = {"train": DataConfig(str(folder / "eight")), "validation": DataConfig(str(folder / "seven"))}
    found = Recognizer(*tiny_whisper(start="scaled"))
    return dict(compress(found, searched, rounds, language="en", **data).model.state_dict())


def test_two_processes_prune_and_hold_the_same_zeros(tmp_path: Path) -> None:
    write_folder(tmp_path / "seven", WORDS[:7], SECONDS[:7])
    write_folder(tmp_path / "eight", WORDS, SECONDS)
    found = in_each_process(tmp_path, "pruned_in_rounds")
    zeros, weights = (sum(count) for count in zip(*(zeros_of(found, name) for name in found), strict=True))
    assert 0.88 < zeros / weights < 1


def zeros_of(found: dict[str, torch.Tensor], name: str) -> tuple[int, int]:
    """Zeros and weights of a linear of a layer; none of what is no such thing."""
    weight = found[name]
    counts = ".layers." in name and weight.ndim == 2
    return (int((weight == 0).sum()), weight.numel()) if counts else (0, 0)


def clocked(_: Path) -> dict[str, torch.Tensor]:
    """What a budget of time goes by."""
    found = recognizer("parakeet")
    heard = [(stack.name, index, linear) for stack, index, linear in places(found, ("encoder",))]
    encoder, times = linear_times(found, heard, "torch", multiple=8)
    return {"seconds": torch.tensor([encoder, *(table.whole for table in times.values())], dtype=torch.float64)}


def test_two_processes_go_by_the_times_of_one(tmp_path: Path) -> None:
    (seconds,) = in_each_process(tmp_path, "clocked").values()
    assert len(seconds.unique()) > 2


def pruned_by_time(_: Path) -> dict[str, torch.Tensor]:
    """The weights of a model that was pruned where each process finds costs of its own."""
    own: Constraint = "parameters" if processes().is_main_process else "flops"
    importance.gate_costs = lambda found, gated, *_: replace(gate_costs(found, gated, own), length=10.0)
    pruned = compress(recognizer("parakeet"), ImportancePruning(0.6, "latency"), language="en")
    return dict(pruned.model.state_dict())


def test_two_processes_take_out_the_same_units_for_time(tmp_path: Path) -> None:
    assert in_each_process(tmp_path, "pruned_by_time")
