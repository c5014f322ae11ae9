"""Which heads of Whisper's decoder tell when words were said."""

from __future__ import annotations

from typing import Any


def alignment_heads_of(model: Any) -> list[tuple[int, int]] | None:
    """Pairs of (decoder layer, head); None where there are none."""
    return getattr(model.generation_config, "alignment_heads", None) if model.can_generate() else None


def renumber_alignment_heads(model: Any, moved: Any, only_layer: int | None = None) -> None:
    """Keep `generation_config.alignment_heads`, pairs of (decoder layer, head), true after layers or heads went.

    `moved(layer, head)` gives the new pair, or None where it is gone. Word timestamps need these heads.
    """
    pairs = alignment_heads_of(model)
    if pairs is None:
        return
    kept = [moved(at, head) if only_layer in (None, at) else (at, head) for at, head in pairs]
    model.generation_config.alignment_heads = [list(pair) for pair in kept if pair is not None] or None
