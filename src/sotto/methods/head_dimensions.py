"""Which dimension the heads of every attention get: one for all, by an energy threshold, or within a budget."""

from __future__ import annotations

from collections.abc import Mapping

from sotto.checkpoint import Recognizer
from sotto.data import ClipSource
from sotto.errors import SottoError
from sotto.exports.runtimes import place_of
from sotto.head_reduction_math import HeadBases
from sotto.methods.budget_costs import EncoderCosts, sizes_within, time_note
from sotto.methods.divergence import divergence, transcripts_of
from sotto.methods.head_costs import head_costs
from sotto.methods.head_narrowing import AttentionPlace, narrow
from sotto.methods.head_reduction_config import HeadReduction
from sotto.progress import track
from sotto.surgery import head_dim_of

COMPARED_WINDOWS = 8  # all choices are held against each other on the same ones, so few of them tell


def choose_head_dims(
    recognizer: Recognizer, config: HeadReduction, bases: Mapping[AttentionPlace, HeadBases], clips: ClipSource
) -> tuple[dict[AttentionPlace, int], list[str]]:
    """The head dimension of every attention whose heads are to be narrower, and notes on how they were chosen.

    An attention that is not named stays as it is. Raises SottoError where that is all of them by the config, and where
    a budget cannot be met.
    """
    now = {place: head_dim_of(recognizer.model, *place) for place in bases}
    if config.head_dim is not None:
        if config.head_dim >= max(now.values()):
            raise SottoError(
                f"head_reduction: no head has more than {config.head_dim} channels; give a smaller head_dim"
            )
        return {place: config.head_dim for place in bases if config.head_dim < now[place]}, []
    choices = {place: range(config.multiple, now[place], config.multiple) for place in bases}
    if not any(choices.values()):
        raise SottoError(
            f"head_reduction: no head has more than {config.multiple} channels; give a smaller multiple than that"
        )
    if config.threshold is not None:
        return by_threshold(config.threshold, choices, bases), []
    costs = head_costs(recognizer, config, choices)
    found = by_budget(config, costs, errors_of(recognizer, choices, bases, clips))
    if config.time is None:
        return found, []
    where = place_of(config.runtime, recognizer.model.device)
    return found, [time_note(costs.total, costs.left(found), where)]


def by_threshold(
    threshold: float, choices: Mapping[AttentionPlace, range], bases: Mapping[AttentionPlace, HeadBases]
) -> dict[AttentionPlace, int]:
    """For each attention by itself the smallest choice that holds more than the threshold of scores and of outputs."""
    enough = {
        place: [channels for channels in choices[place] if basis.shares[channels - 1] > threshold]
        for place, basis in bases.items()
    }
    return {place: found[0] for place, found in enough.items() if found}


def errors_of(
    recognizer: Recognizer,
    choices: Mapping[AttentionPlace, range],
    bases: Mapping[AttentionPlace, HeadBases],
    clips: ClipSource,
) -> dict[tuple[AttentionPlace, int], float]:
    """About how far the model moves where one attention has narrower heads, in nats a decision, for every choice.

    Measured in the middle of an attention's choices. The others lie from there as the energies do that they lose.
    """
    heard = clips.spread(COMPARED_WINDOWS)
    transcripts = transcripts_of(recognizer, heard, COMPARED_WINDOWS, "comparing head dimensions")
    found = {}
    for place, own in track([item for item in choices.items() if item[1]], "narrowing one attention"):
        middle, lost = own[len(own) // 2], bases[place].lost.tolist()
        tried = recognizer.copy()
        narrow(tried, {place: middle}, bases)
        moved = divergence(tried, recognizer, transcripts)
        for channels in own:
            found[place, channels] = moved * lost[channels - 1] / max(lost[middle - 1], 1e-300)
    return found


def by_budget(
    config: HeadReduction,
    costs: EncoderCosts[AttentionPlace],
    errors: Mapping[tuple[AttentionPlace, int], float],
) -> dict[AttentionPlace, int]:
    """The choices within the budget that move the model least, taking what each attention moves it to add up.

    Raises SottoError where no choices meet the budget.
    """
    assert config.budget is not None
    return sizes_within(
        config.budget,
        costs,
        lambda place, channels: errors[place, channels],
        "head_reduction",
        "; follow it by low_rank",
    )
