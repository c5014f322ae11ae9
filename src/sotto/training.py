"""The one training loop: transformers' Trainer on accelerate, taking objectives."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from accelerate.utils import gather_object
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.data import Dataset
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from sotto.data import Clip
from sotto.decoding import Decoding
from sotto.depthwise import depthwise_in_fp32
from sotto.errors import SottoError
from sotto.examples import IGNORED, Batch, Example
from sotto.families import Family
from sotto.length_sampler import LengthSampler, varied
from sotto.metrics.errors import measure_errors
from sotto.objectives import Objective
from sotto.quantized_layers import QuantizedWeight
from sotto.spec_augment import spec_augment
from sotto.text import Normalizer
from sotto.training_checkpoints import WEIGHTS, average, checkpoints, last_checkpoint

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Training:
    """How long and how fast to train. `batch_size` is over all processes together."""

    steps: int
    batch_size: int = 32
    learning_rate: float = 1e-3
    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    warmup_steps: int = 0
    weight_decay: float = 0.01
    adam_beta2: float = 0.98
    maximum_gradient: float = 1.0
    label_smoothing: float = 0.0
    mask_time: float = 0.0
    """SpecAugment: share of frames in masked spans (transformers' mask_time_prob)"""
    mask_frequency: float = 0.0
    """SpecAugment: share of mel bins in masked spans (transformers' mask_feature_prob)"""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 is left out, with a word, on a CPU that has no fast products for it"""
    attention: Literal["sdpa", "eager"] = "sdpa"
    """eager: plain products, which a CPU may do faster in bf16 than transformers' fused attention"""
    compile: bool = False
    """fuse operations with torch.compile: minutes at the start, then steps that may be faster"""
    length_bucketing: bool = True
    shortest_first: bool = False
    """the first epoch from the shortest clip to the longest (SortaGrad; Amodei et al., 2016), since texts and
    audio are aligned more easily in short clips"""
    evaluate_every: int = 500
    """steps between two measurements of validation WER; a checkpoint is written at each"""
    keep: Literal["best", "last"] = "best"
    """which weights are left in the end: those of the best validation WER, or the last ones, where a penalty is to have
    done all of its work"""
    average_last: int = 1
    """at the end the weights of that many last checkpoints are averaged, and kept where they do better than the best"""
    log_every: int = 50
    workers: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "evaluate_every", "log_every", "average_last"):
            if getattr(self, name) < 1:
                raise SottoError(f"{name} must be at least 1, found {getattr(self, name)}")
        for name in ("warmup_steps", "workers"):
            if getattr(self, name) < 0:
                raise SottoError(f"{name} must not be negative, found {getattr(self, name)}")
        for name in ("label_smoothing", "mask_time", "mask_frequency"):
            if not 0 <= getattr(self, name) < 1:
                raise SottoError(f"{name} must be at least 0 and below 1, found {getattr(self, name)}")
        if self.keep == "last" and self.average_last > 1:
            raise SottoError(
                "average_last is held against the best weights; leave out one of average_last and keep: last"
            )
        if self.shortest_first and not self.length_bucketing:
            raise SottoError("shortest_first needs length_bucketing")
        if self.learning_rate <= 0:
            raise SottoError(f"learning_rate must be positive, found {self.learning_rate}")


class TrainedModel(nn.Module):
    """The model and the objectives it is trained with, as one module: so both are synchronised over processes."""

    def __init__(self, family: Family, objectives: Sequence[Objective], label_smoothing: float) -> None:
        super().__init__()
        self.family = family
        self.model = family.model
        self.objectives = nn.ModuleList(objectives)
        self.label_smoothing = label_smoothing
        self.terms: dict[str, torch.Tensor] = {}

    def forward(self, num_items_in_batch: Any = None, **batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """The loss summed over label tokens, divided by their number over all processes."""
        labels = batch["labels"]
        tokens = (labels != IGNORED).sum() if num_items_in_batch is None else torch.as_tensor(num_items_in_batch)
        outputs, loss = self.family.loss(batch, self.label_smoothing)
        total = loss / tokens
        self.terms[self.family.loss_name] = total.detach()
        for objective in self.objectives:
            term = objective(self.model, batch, outputs, tokens)
            self.terms[str(objective.name)] = term.detach()
            total = total + term
        return {"loss": total}


@dataclass(frozen=True)
class Collator:
    """Examples -> Batch: what the family makes of them, and what the objectives need beside it."""

    of_family: Callable[[list[Example]], Batch]
    of_objectives: Sequence[Callable[[list[Example]], Batch]]

    def __call__(self, examples: list[Example]) -> Batch:
        batch = dict(self.of_family(examples))
        for collate in self.of_objectives:
            batch |= collate(examples)
        return batch


class AfterStep(TrainerCallback):
    """Lets every objective act once an optimiser step is done."""

    def __init__(self, trained: TrainedModel) -> None:
        self.trained = trained

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        learning_rate = kwargs["optimizer"].param_groups[0]["lr"]
        for objective in self.trained.objectives:
            objective.after_step(self.trained.model, state.global_step + 1, learning_rate)  # type: ignore[operator]


class PrintedLog(TrainerCallback):
    """Prints losses and error rates, a line at a time and at once: a log file can be followed."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        numbers = {name: value for name, value in (logs or {}).items() if name not in ("epoch", "total_flos")}
        if state.is_world_process_zero and numbers:
            shown = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
            print(f"step {state.global_step} of {state.max_steps}: {shown}", flush=True)


class SpeechTrainer(Trainer):
    """Trainer that buckets by length, validates by transcribing, and logs every term of the loss."""

    trained: TrainedModel
    normalizer: Normalizer
    language: str
    sampler_lengths: list[float]
    shortest_first: bool

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """transformers' own, with parameter groups of the objectives taken out of the others."""
        optimizer = super().create_optimizer(model)
        groups = [group for objective in self.trained.objectives for group in objective.parameter_groups()]  # type: ignore[operator]
        apart = {id(parameter) for group in groups for parameter in group.parameters}
        for own in optimizer.param_groups:
            own["params"] = [parameter for parameter in own["params"] if id(parameter) not in apart]
        for group in groups:
            optimizer.add_param_group(
                {
                    "params": group.parameters,
                    "lr": group.learning_rate,
                    "maximize": group.maximize,
                    "weight_decay": 0.0,
                    "constant": True,
                }
            )
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """transformers' own, which leaves the rates of objectives as they are."""
        scheduler: Any = super().create_scheduler(num_training_steps, optimizer)
        for index, group in enumerate(scheduler.optimizer.param_groups):
            if group.get("constant"):
                scheduler.lr_lambdas[index] = always
                group["lr"] = scheduler.base_lrs[index]
        return scheduler

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if not self.sampler_lengths:
            return super()._get_train_sampler(train_dataset)
        batch = self.args.train_batch_size * self.args.world_size
        return LengthSampler(batch, self.sampler_lengths, self.args.seed, self.shortest_first)

    def _run_epoch(self, model: Any, epoch: int, train_dataloader: Any, *rest: Any, **named: Any) -> None:
        if self.state.global_step >= self.state.max_steps:
            return  # a finished run, called again: Trainer would take one step more
        # Accelerate tells either the sampler or the dataset of the epoch, and neither after some resumes.
        dataset: Any = self.train_dataset
        for part in (train_dataloader, dataset):
            part.set_epoch(epoch)
        super()._run_epoch(model, epoch, train_dataloader, *rest, **named)  # type: ignore[no-untyped-call]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and len(self.trained.objectives):
            # Each process has the terms of its own share of the batch.
            terms = self.accelerator.reduce(self.trained.terms, reduction="sum")
            logs |= {name: round(value.item(), 4) for name, value in terms.items()}
            own = terms[self.trained.family.loss_name].item()
            for objective in self.trained.objectives:
                parts = objective.parts(self.trained.model)  # type: ignore[operator]
                compared = {str(objective.name): terms[str(objective.name)].item()} | parts
                logs |= parts | {f"{name}_ratio": value / max(own, 1e-9) for name, value in compared.items()}
                logs |= objective.logged(self.trained.model)  # type: ignore[operator]
        super().log(logs, start_time)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Corpus WER of greedy transcripts of the validation examples, shared out over the processes."""
        dataset: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        share_buffers(self.trained)
        rows = range(self.args.process_index, len(dataset), self.args.world_size)
        decoding = Decoding(language=self.language, batch_size=self.args.eval_batch_size)
        with parametrize.cached():  # weights that an objective computes: once, and not for every token
            pairs = transcribe_examples(self.trained.family, decoding, dataset, rows)
        pairs = sorted(gather_object(pairs))
        names, references, hypotheses = (list(column) for column in zip(*pairs, strict=True))
        report = measure_errors([str(name) for name in names], references, hypotheses, self.normalizer)
        metrics = {f"{metric_key_prefix}_wer": report.wer, f"{metric_key_prefix}_cer": report.cer}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def try_average(self, folder: Path, count: int) -> None:
        """Average the last `count` checkpoints, and keep the average where its validation WER is below the best."""
        best = {name: tensor.clone() for name, tensor in self.trained.state_dict().items()}
        self.trained.load_state_dict(average([path / WEIGHTS for path in checkpoints(folder)[-count:]]), strict=False)
        if self.evaluate(metric_key_prefix="average")["average_wer"] >= float(self.state.best_metric or 0.0):
            self.trained.load_state_dict(best)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        # Trainer saves plain modules without regard to tied tensors; objectives have to be kept too, to resume.
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_model(self.trained, str(folder / WEIGHTS))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        safetensors.torch.load_model(self.trained, Path(resume_from_checkpoint) / WEIGHTS)

    def _load_best_model(self) -> None:
        safetensors.torch.load_model(self.trained, Path(str(self.state.best_model_checkpoint)) / WEIGHTS)


def always(_: int) -> float:
    """The factor of a rate that does not change."""
    return 1.0


def share_buffers(model: nn.Module) -> None:
    """Give all processes the buffers of the first: statistics of batch norm differ, and the first one's are saved."""
    if torch.distributed.is_initialized():
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, 0)


def transcribe_examples(
    family: Family, decoding: Decoding, dataset: Dataset[Example], rows: Sequence[int]
) -> list[tuple[int, str, str]]:
    """(row, reference, hypothesis) of each row."""
    references = []

    def clips() -> Iterator[Clip]:
        for row in rows:
            example = dataset[row]
            references.append(example.text)
            yield Clip(str(row), example.audio, family.sampling_rate)

    hypotheses = [found.text for found in family.transcribe(clips(), decoding)]
    return list(zip(rows, references, hypotheses, strict=True))


def train(
    family: Family,
    config: Training,
    *,
    training_data: Any,
    validation_data: Any,
    language: str,
    normalizer: Normalizer,
    folder: Path,
    objectives: Sequence[Objective] = (),
    device: str | None = None,
) -> list[dict[str, float]]:
    """Train the family's model in place and leave the weights that `config.keep` names in it; returns the log.

    Checkpoints go to `folder`; a second call with the same folder goes on from the last of them. Raises SottoError for
    settings that do not fit the family or the data.
    """
    if config.label_smoothing and not family.smooths_labels:
        raise SottoError("there is no label smoothing for a CTC model; leave out label_smoothing")
    if any(isinstance(module, QuantizedWeight) for module in family.model.modules()):
        raise SottoError("the model is quantized, and its weights cannot be trained; let quantization be the last step")
    if config.shortest_first and not varied(training_data.lengths):
        raise SottoError("shortest_first: all training examples have one length, or none that is known; leave it out")
    trained = TrainedModel(family, objectives, config.label_smoothing)
    trainer = SpeechTrainer(
        model=trained,
        args=trainer_arguments(config, folder, device, family.idle_weights),
        train_dataset=training_data,
        eval_dataset=validation_data,
        data_collator=Collator(
            family.collator(language), [each.collate for each in objectives if each.collate is not None]
        ),
        callbacks=[AfterStep(trained), PrintedLog()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.trained, trainer.normalizer, trainer.language = trained, normalizer, language
    trainer.shortest_first = config.shortest_first
    trainer.sampler_lengths = training_data.lengths if config.length_bucketing and varied(training_data.lengths) else []
    with (
        ExitStack() as attached,
        spec_augment(family.model, config.mask_time, config.mask_frequency),
        attention(family.model, config.attention),
        depthwise_in_fp32(family.model),
    ):
        for objective in objectives:
            attached.enter_context(objective.attached(family.model))
        try:
            trainer.train(resume_from_checkpoint=last_checkpoint(folder))
            if config.average_last > 1:
                trainer.try_average(folder, config.average_last)
        except SottoError as error:  # one raised in a loader's process comes with the whole traceback before it
            raise SottoError(str(error).splitlines()[-1].removeprefix("sotto.errors.SottoError: ")) from error
    family.model.eval()
    return list(trainer.state.log_history)


@contextmanager
def attention(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Compute attention in the way that transformers calls `name`, and then as before."""
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def kept_wer(log: Sequence[dict[str, float]], keep: Literal["best", "last"]) -> float:
    """Validation WER of the weights that a training left."""
    found = [entry[name] for entry in log for name in ("eval_wer", "average_wer") if name in entry]
    return min(found) if keep == "best" else found[-1]


def multiplies_bf16(device: str | None) -> bool:
    """Whether bfloat16 pays. On CPUs without AVX-512 torch 2.13's products take it 60 times slower than float32."""
    on_gpu = torch.cuda.is_available() and device != "cpu"
    return on_gpu or torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "NO AVX", "AVX2")


def trainer_arguments(config: Training, folder: Path, device: str | None, idle_weights: bool) -> TrainingArguments:
    """`config` in Trainer's own words."""
    wants_bf16 = config.precision == "bf16"
    takes_bf16 = wants_bf16 and multiplies_bf16(device)
    if wants_bf16 and not takes_bf16:
        logger.warning("this CPU is slow at bf16: training in fp32 instead")
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=config.steps,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        lr_scheduler_type="constant_with_warmup" if config.schedule == "constant" else config.schedule,
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        adam_beta2=config.adam_beta2,
        max_grad_norm=config.maximum_gradient,
        bf16=takes_bf16,
        torch_compile=config.compile,
        use_cpu=device == "cpu" or not torch.cuda.is_available(),
        eval_strategy="steps",
        eval_steps=config.evaluate_every,
        save_strategy="steps",
        save_steps=config.evaluate_every,
        save_total_limit=config.average_last + 1,  # the best one is kept beside the last
        load_best_model_at_end=config.keep == "best",
        metric_for_best_model="wer",
        greater_is_better=False,
        logging_steps=config.log_every,
        dataloader_num_workers=config.workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        label_names=["labels"],
        seed=config.seed,
        data_seed=config.seed,
        report_to=[],
        disable_tqdm=True,
        ddp_find_unused_parameters=idle_weights,
    )
    arguments._n_gpu = 1  # several of them take a process each; Trainer would multiply the batch
    world = arguments.world_size
    if config.batch_size % world:
        raise SottoError(f"batch_size {config.batch_size} does not divide over {world} processes")
    arguments.per_device_train_batch_size = config.batch_size // world
    return arguments
