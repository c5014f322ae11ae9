"""Write an export, prove it, and hand it over; open one again."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from itertools import islice
from pathlib import Path

from sotto.checkpoint import EXPORT_RECORD, Recognizer, load, partial_folder, replace_folder
from sotto.data import Clip, ClipSource, DataConfig, open_data
from sotto.demo import DEMO_CLIPS
from sotto.errors import SottoError
from sotto.exports.capability import check_taken, told
from sotto.exports.copies import floating_copy
from sotto.exports.record import ExportRecord, read_record, write_record
from sotto.exports.targets import TARGETS, reason_of, target_named
from sotto.exports.verification import Agreement, Heard, agreement, by_export, by_model, check, windows
from sotto.families import Inputs
from sotto.families.fitted_windows import forget_fit, is_fitted
from sotto.measurement import measure_cost, size_of
from sotto.structure import check as check_structure
from sotto.structure import from_json, to_json

CLIPS = 4  # that an export is compared on
CALIBRATION_CLIPS = 64  # at most and others, for scales of what is multiplied
EXACT = "float32"
WHOLE_WINDOWS = "clips are padded to the whole window: there none is fitted to them"


def export(
    model: Recognizer | str | Path,
    folder: str | Path,
    *,
    to: str,
    precision: str = "float32",
    audio: str | Path | None = None,
    language: str | None = None,
) -> ExportRecord:
    """Write `model` for the runtime `to`, where `folder` is, and say how near the export is to the model.

    It is opened in its own runtime and compared with the model on four of the clips of `audio` (bundled ones where
    none are named); a precision that needs calibration takes up to 64 others of `audio`, which it needs. What is
    rounded is proved in float32 first. Raises SottoError, and leaves nothing, where it computes something else, or
    where the target does not take the model.
    """
    if precision in target_named(to, precision).calibrated and audio is None:  # before anything is loaded
        raise SottoError(f"{precision} takes its scales from speech like that which it will hear; name it with audio")
    recognizer = model if isinstance(model, Recognizer) else load(model, device="cpu")
    recognizer = replace(recognizer, language=language or recognizer.language)
    clips = clips_of(audio, recognizer, clips_needed(to, precision))
    return export_on(recognizer, Path(folder), to, precision, clips)


def export_on(recognizer: Recognizer, place: Path, to: str, precision: str, clips: Sequence[Clip]) -> ExportRecord:
    """What `export` does once model and clips are there."""
    target = target_named(to, precision)
    if place.exists() and not is_export(place) and (not place.is_dir() or any(place.iterdir())):
        raise SottoError(f"{place} exists and is no export; name a new folder")
    if recognizer.folder is not None and is_export(recognizer.folder):
        raise SottoError(f"{recognizer.folder} is an export; name the checkpoint that it was made of")
    check_taken(recognizer.structure, to)
    cost = measure_cost(recognizer, to)
    reference = replace(recognizer, model=floating_copy(recognizer))
    whole = is_fitted(recognizer.processor.feature_extractor) and not target.fits_windows
    if whole:
        reference.processor = copy.deepcopy(recognizer.processor)
        forget_fit(reference.processor.feature_extractor)
    try:
        with partial_folder(place.resolve()) as partial:
            proof = Proof(reference, clips[:CLIPS])
            exact = proved_before_rounding(proof, place, to) if precision != EXACT else None
            others = clips[CLIPS:] if len(clips) >= 2 * CLIPS else clips  # scales of very few clips are worse
            of_target = target.write(reference, partial, precision, others)
            notes = (*told(recognizer.structure, to, precision), *of_target, *(WHOLE_WINDOWS,) * whole)
            found = compared(proof, partial, place, to, precision)
            check(found, target.computed_in.get(precision, precision))
            record = ExportRecord(
                target=to,
                precision=precision,
                structure=to_json(recognizer.structure),
                parameters=cost.parameters,
                encoder_flops=cost.encoder_flops,
                decoder_flops=cost.decoder_flops,
                decoder_tokens=cost.decoder_tokens,
                window_seconds=recognizer.window_seconds,
                agreement=found,
                before_rounding=exact,
                sotto=version("sotto"),
                notes=notes,
            )
            write_record(record, partial)
            replace_folder(partial, place.resolve())
    except OSError as error:
        raise SottoError(f"{place}: cannot be written ({error.strerror or error}); nothing was left there") from error
    return record


@dataclass(frozen=True)
class Proof:
    """What an export is asked, and what the model makes of it: once for all proofs, and only where one was written,
    since a target's writing refuses models that cannot transcribe."""

    reference: Recognizer
    clips: Sequence[Clip]

    @cached_property
    def asked(self) -> Sequence[Inputs]:
        return windows(self.reference, self.clips)

    @cached_property
    def expected(self) -> Heard:
        return by_model(self.reference, self.asked, self.clips)


def proved_before_rounding(proof: Proof, place: Path, to: str) -> Agreement:
    """How near the same export is without rounding, which hides what a wrong graph does; nothing is kept of it."""
    with partial_folder(place.resolve()) as partial:
        TARGETS[to].write(proof.reference, partial, EXACT, ())
        found = compared(proof, partial, place, to, EXACT)
    check(found, EXACT)
    return found


def compared(proof: Proof, partial: Path, place: Path, to: str, precision: str) -> Agreement:
    """How near what was written to `partial`, for `place`, is to the model. Raises SottoError where it does not run."""
    asked, expected = proof.asked, proof.expected  # whose errors are not the runtime's
    try:
        found = by_export(TARGETS[to].read(partial, precision), asked, proof.clips, proof.reference.language)
    except Exception as error:  # every runtime has kinds of its own
        reason = reason_of(error).replace(str(partial), str(place))
        raise SottoError(f"{to} cannot run what was written ({reason}); nothing was left") from error
    return agreement(expected, found)


def clips_needed(to: str, precision: str) -> int:
    """How many clips are heard, at most."""
    return CLIPS + CALIBRATION_CLIPS if precision in target_named(to, precision).calibrated else CLIPS


def clips_of(audio: str | Path | ClipSource | None, recognizer: Recognizer, count: int) -> Sequence[Clip]:
    """At most `count` clips from all over the audio, bundled ones where there is none, cut to what is heard at once."""
    source = audio
    if not isinstance(source, ClipSource):
        config = DataConfig(str(DEMO_CLIPS if source is None else source), samples=count)
        source = open_data(config, sampling_rate=recognizer.sampling_rate)
    step = max(1, (size_of(source) or 0) // count)
    clips = [clip.cut(recognizer.family.longest_seconds) for clip in islice(source.shard(0, step), count)]
    if not clips:
        raise SottoError(f"no clip of {source.config.path} could be heard; an export is compared on some")
    return clips


def is_export(name: str | Path) -> bool:
    return (Path(name) / EXPORT_RECORD).is_file()


def open_export(folder: str | Path) -> Recognizer:
    """An exported folder as a recogniser, whose model the runtime computes: on the CPU, and not to be changed.

    Raises SottoError where it is damaged, its record is that of another model, or the runtime is not installed.
    """
    record = read_record(Path(folder))
    found = TARGETS[record.target].open(Path(folder), record.precision)
    try:
        check_structure(from_json(record.structure), found.model.config)
    except SottoError as error:
        raise SottoError(f"{Path(folder) / EXPORT_RECORD}: {error}; export the model again") from error
    return found
