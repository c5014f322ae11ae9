"""Carrying out a recipe: one checkpoint and one measurement per step, resumable, with a report at the end.

The folder of a run:

    recipe.yaml  inputs.json    the resolved recipe; what tells its base and data from others
    steps/0-base/               numbers.json
    steps/1-low_rank/           model/ and numbers.json (written last: a step with it is finished)
    steps/speed.json            latencies of all of them, measured in turn
    model/                      the last step's checkpoint
    exports/onnx-int8/          what the recipe's `export` asks for
    steps/export-onnx-int8.json its numbers
    report.html  report.json
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sotto.checkpoint import Recognizer, load, save
from sotto.configuration import parse, to_plain
from sotto.data import ClipSource, fingerprint
from sotto.distribution import processes
from sotto.errors import NotAcceptedError
from sotto.exports import clips_needed, clips_of, export_on, is_export
from sotto.exports.record import read_record
from sotto.measurement import evaluate, measure_cost, measure_speeds, skipped_lines
from sotto.methods import StepContext, methods
from sotto.metrics.errors import ErrorReport, compare
from sotto.metrics.speed import LatencyReport, machine
from sotto.model_card import model_card
from sotto.named_checkpoints import checkpoints_in, digest_of_weights, local_or_hub, mark_of
from sotto.opening import cost_of, open_model
from sotto.recipe import Recipe, recipe_as_yaml
from sotto.report import write_report
from sotto.report.numbers import ModelNumbers, RunNumbers
from sotto.run_folder import claimed, write_text
from sotto.run_inputs import base_of, check_needs, open_sources, open_train
from sotto.text import Normalizer, get_normalizer

NUMBERS = "numbers.json"
SPEED = "speed.json"


@dataclass(frozen=True)
class StepNumbers:
    """What is kept of a finished step: the numbers of the report, and WER on validation where the recipe asks."""

    model: ModelNumbers
    validation_wer: float | None = None
    skipped: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """role -> clips that were skipped up to here, each with its reason"""
    machine: Mapping[str, str | int] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """A recipe being carried out in `folder`; relative paths in the recipe start from `root`."""

    recipe: Recipe
    root: Path
    folder: Path
    sources: dict[str, ClipSource]
    train: tuple[ClipSource, ...]
    say: Callable[[str], None]

    @property
    def normalizer(self) -> Normalizer:
        return get_normalizer(self.recipe.normalizer, self.recipe.language)

    def step_folder(self, index: int, name: str) -> Path:
        return self.folder / "steps" / f"{index}-{name}"


def carry_out(recipe: Recipe, root: Path, folder: Path, say: Callable[[str], None]) -> RunNumbers:
    """Carry out `recipe` in `folder` and return the numbers; a second call skips the steps that are finished.

    `say` is told what is going on, a line at a time. Raises SottoError on bad input, before any work where that can be
    known, and NotAcceptedError where a step costs more than the recipe accepts.
    """
    base = base_of(recipe, root)
    check_needs(recipe)
    recognizer = load(base, device=processes().device)
    recognizer.language = recipe.language
    sources = open_sources(recipe, root, recognizer.sampling_rate)
    run = Run(recipe, root, folder, sources, open_train(recipe, root, recognizer.sampling_rate, sources), say)
    main = processes().is_main_process
    with claimed(folder, recipe_as_yaml(recipe), inputs_of(run, recognizer)) if main else nullcontext():
        processes().wait_for_everyone()
        return carry_out_steps(run, recognizer, base)


def inputs_of(run: Run, recognizer: Recognizer) -> dict[str, str]:
    """What tells base, teachers and data from others of the same name: one trained again, a corrected transcript.

    Raises SottoError where a checkpoint that a step names cannot be opened.
    """
    assert recognizer.folder is not None
    named = dict.fromkeys(name for step in run.recipe.steps for name in checkpoints_in(step))
    return {
        "base": digest_of_weights(recognizer.folder),
        **{name: mark_of(local_or_hub(name, run.root)) for name in named},
        **{role: fingerprint(source) for role, source in run.sources.items()},
        **({"train": " ".join(map(fingerprint, run.train))} if run.train else {}),
    }


def carry_out_steps(run: Run, recognizer: Recognizer, base: str | Path) -> RunNumbers:
    """What `carry_out` does once the folder is this run's alone."""
    finished = [measured_base(run, recognizer)]
    for index, step in enumerate(run.recipe.steps, start=1):
        recognizer, measured_step = carry_out_step(run, recognizer, index, step, finished)
        finished.append(measured_step)
        check_acceptance(run.recipe, methods.name_of(step), finished)
    numbers = run_numbers(run, finished)
    if processes().is_main_process:
        publish(run, len(run.recipe.steps))
        if "test" in run.sources:
            numbers = with_speeds(numbers, speeds(run, base))
        write_report(numbers, run.folder)
        write_exports(run)
    processes().wait_for_everyone()
    if run.recipe.export:
        exports = tuple(measured_export(run, each.name, finished[0].model.errors) for each in run.recipe.export)
        numbers = replace(numbers, exports=exports)
        if processes().is_main_process:
            write_report(numbers, run.folder)
        processes().wait_for_everyone()
    return numbers


def measured_base(run: Run, recognizer: Recognizer) -> StepNumbers:
    folder = run.step_folder(0, "base")
    known = read_numbers(folder)
    if known is not None:
        run.say("base: measured already")
        return known
    run.say("base: measuring")
    numbers = measured(run, recognizer, "base", None)
    return kept(folder, numbers)


def carry_out_step(
    run: Run, recognizer: Recognizer, index: int, step: Any, finished: list[StepNumbers]
) -> tuple[Recognizer, StepNumbers]:
    """The model after step `index`, from disk where the step is finished."""
    name = methods.name_of(step)
    folder = run.step_folder(index, name)
    known = read_numbers(folder)
    if known is not None:
        run.say(f"{name}: finished already")
        return reloaded(folder / "model", recognizer), known
    run.say(f"{name}: applying")
    start = time.monotonic()
    context = StepContext(
        folder=folder / "work",
        calibration=run.sources.get("calibration"),
        train=run.train,
        validation=run.sources.get("validation"),
        language=run.recipe.language,
        normalizer=run.normalizer,
        seed=run.recipe.seed,
        open=lambda checkpoint: load(local_or_hub(checkpoint, run.root)),
    )
    if context.validation is not None:
        context = replace(
            context,
            validation_wer=lambda tried: evaluated(run, tried, run.sources["validation"]).wer,
            accepted_wer=accepted_wer(run.recipe, finished),
        )
    notes = methods.handler(step)(recognizer, step, context)
    seconds = time.monotonic() - start
    if processes().is_main_process:
        card = model_card(run.recipe, recognizer, notes)
        save(recognizer, folder / "model", dtype=run.recipe.dtype, card=card, packed=run.recipe.pack_zeros)
    processes().wait_for_everyone()
    saved = reloaded(folder / "model", recognizer)  # what is measured is what is on disk
    run.say(f"{name}: measuring")
    numbers = measured(run, saved, name, finished[0])
    model = replace(numbers.model, notes=tuple(notes), seconds=seconds)
    return saved, kept(folder, replace(numbers, model=model))


def reloaded(folder: Path, before: Recognizer) -> Recognizer:
    """The checkpoint in `folder`, to take the place of `before`."""
    return replace(load(folder, device=before.model.device), language=before.language)


def measured(run: Run, recognizer: Recognizer, name: str, base: StepNumbers | None) -> StepNumbers:
    """Cost, and errors on test and validation."""
    numbers = measure_cost(recognizer, name)
    if "test" in run.sources:
        source = run.sources["test"]
        errors = evaluated(run, recognizer, source)
        against = base.model.errors if base is not None else None
        numbers = replace(
            numbers,
            errors=errors,
            comparison=compare(against, errors) if against is not None else None,
        )
    wer = None
    if run.recipe.accept is not None:
        wer = evaluated(run, recognizer, run.sources["validation"]).wer
    return StepNumbers(numbers, wer, skipped_clips(run), machine())


def with_speeds(numbers: RunNumbers, latencies: list[LatencyReport]) -> RunNumbers:
    pairs = zip(numbers.models, latencies, strict=True)
    return replace(numbers, models=tuple(replace(model, latency=latency) for model, latency in pairs))


def speeds(run: Run, base: str | Path) -> list[LatencyReport]:
    """Latency of the base and of every step's checkpoint on the first test clip, kept for a second start."""
    path = run.folder / "steps" / SPEED
    if path.is_file():
        return [parse(LatencyReport, each, str(path)) for each in json.loads(path.read_text(encoding="utf-8"))]
    run.say("measuring speed")
    steps = enumerate(run.recipe.steps, start=1)
    checkpoints = [base, *(run.step_folder(index, methods.name_of(step)) / "model" for index, step in steps)]
    found = measure_speeds(checkpoints, next(iter(run.sources["test"])).audio, processes().device)
    write_text(path, json.dumps([to_plain(each) for each in found], indent=1))
    return found


def skipped_clips(run: Run) -> dict[str, tuple[str, ...]]:
    lines = {role: skipped_lines(source) for role, source in run.sources.items()}
    lines["train"] = tuple(dict.fromkeys(line for source in run.train for line in skipped_lines(source)))
    return {role: found for role, found in lines.items() if found}


def evaluated(run: Run, recognizer: Recognizer, source: ClipSource) -> ErrorReport:
    return evaluate(recognizer, source, run.recipe.decoding, run.normalizer)


def accepted_wer(recipe: Recipe, finished: list[StepNumbers]) -> float | None:
    """The most WER on validation that the recipe accepts, where it says so."""
    before = finished[0].validation_wer
    return None if recipe.accept is None or before is None else before + recipe.accept.wer_increase / 100


def check_acceptance(recipe: Recipe, name: str, finished: list[StepNumbers]) -> None:
    before, after = finished[0].validation_wer, finished[-1].validation_wer
    if recipe.accept is None or before is None or after is None:
        return
    increase = 100 * (after - before)
    if increase > recipe.accept.wer_increase:
        raise NotAcceptedError(
            f"step {name} raises WER on validation by {increase:.2f} points, from {before:.2%} to {after:.2%}; "
            f"the recipe accepts {recipe.accept.wer_increase:g}"
        )


def run_numbers(run: Run, finished: list[StepNumbers]) -> RunNumbers:
    models = [step.model for step in finished]
    test = run.sources.get("test")
    errors = models[0].errors
    return RunNumbers(
        title=run.recipe.title or f"{Path(run.recipe.base).name}, compressed",
        base=run.recipe.base,
        models=tuple(models),
        decoding=run.recipe.decoding.describe(),
        test_clips=f"{test.config.path}, {errors.clips} clips" if test is not None and errors is not None else "",
        skipped={role: clips for step in finished for role, clips in step.skipped.items()},
        machine=finished[-1].machine,
        recipe=recipe_as_yaml(run.recipe),
        commit=git_commit(),
    )


def publish(run: Run, last: int) -> None:
    """Show the last step's checkpoint as `model/`, without a second copy of the weights where the disk can."""
    target = run.folder / "model"
    if target.exists():  # by an earlier start; a user may have put files of her own beside the weights
        return
    name = methods.name_of(run.recipe.steps[-1])
    partial = run.folder / ".model.partial"
    shutil.copytree(run.step_folder(last, name) / "model", partial, copy_function=link_or_copy)
    partial.rename(target)


def write_exports(run: Run) -> None:
    """Write the last checkpoint as the recipe's `export` says; what was written and proved before stays."""
    for each in run.recipe.export:
        folder = run.folder / "exports" / each.name
        if is_export(folder):
            run.say(f"{each.name}: exported already")
            continue
        run.say(f"{each.name}: exporting")
        numbers_of_export(run, each.name).unlink(missing_ok=True)  # of one that was there before
        recognizer = replace(load(run.folder / "model", device="cpu"), language=run.recipe.language)
        known = run.sources.get("calibration")  # never the test clips: scales may be taken from these
        count = clips_needed(each.to, each.precision)
        for note in export_on(recognizer, folder, each.to, each.precision, clips_of(known, recognizer, count)).notes:
            run.say(f"{each.name}: {note}")


def measured_export(run: Run, name: str, before: ErrorReport | None) -> ModelNumbers:
    """Size of an export, and its errors on the test clips in its own runtime; kept for a second start."""
    path, folder = numbers_of_export(run, name), run.folder / "exports" / name
    if path.is_file():
        return parse(ModelNumbers, json.loads(path.read_text(encoding="utf-8")), str(path))
    run.say(f"{name}: measuring")
    record = read_record(folder)
    opened = replace(open_model(folder, device=processes().device), language=run.recipe.language)
    found = replace(cost_of(opened, str(folder)), name=name, notes=(*record.notes, record.agreement.words))
    if "test" in run.sources:
        errors = evaluated(run, opened, run.sources["test"])
        found = replace(found, errors=errors, comparison=None if before is None else compare(before, errors))
    processes().wait_for_everyone()  # each looked for the file
    if processes().is_main_process:
        write_text(path, json.dumps(to_plain(found), ensure_ascii=False, indent=1))
    return found


def numbers_of_export(run: Run, name: str) -> Path:
    return run.folder / "steps" / f"export-{name}.json"


def link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def read_numbers(folder: Path) -> StepNumbers | None:
    """The numbers of a finished step, or None where it is not finished."""
    path = folder / NUMBERS
    if not path.is_file():
        return None
    return parse(StepNumbers, json.loads(path.read_text(encoding="utf-8")), str(path))


def kept(folder: Path, numbers: StepNumbers) -> StepNumbers:
    """Mark a step as finished."""
    if processes().is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / NUMBERS, json.dumps(to_plain(numbers), ensure_ascii=False, indent=1))
    processes().wait_for_everyone()
    return numbers


def git_commit() -> str | None:
    """The commit of the folder that the command was started in, if it is a git checkout."""
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
