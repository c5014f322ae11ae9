"""The one training loop: transformers' Trainer on accelerate, taking objectives."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel, PrinterCallback, TrainingArguments

from sotto.depthwise import depthwise_in_fp32
from sotto.errors import SottoError
from sotto.families import Family
from sotto.length_sampler import varied
from sotto.objectives import Objective
from sotto.quantized_layers import QuantizedWeight
from sotto.spec_augment import spec_augment
from sotto.speech_trainer import AfterStep, Collator, PrintedLog, SpeechTrainer, TrainedModel
from sotto.text import Normalizer
from sotto.training_checkpoints import last_checkpoint

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
