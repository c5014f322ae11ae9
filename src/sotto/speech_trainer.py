"""transformers' Trainer for speech: what is trained as one module, and how a step, a validation and a checkpoint go."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from accelerate.utils import gather_object
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback

from sotto.data import Clip
from sotto.decoding import Decoding
from sotto.examples import IGNORED, Batch, Example
from sotto.families import Family
from sotto.length_sampler import LengthSampler
from sotto.metrics.errors import measure_errors
from sotto.objectives import Objective
from sotto.text import Normalizer
from sotto.training_checkpoints import WEIGHTS, average, checkpoints


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
