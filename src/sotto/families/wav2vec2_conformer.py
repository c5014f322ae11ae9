"""Wav2Vec2-Conformer: convolutions over samples, a Conformer (Wang et al., 2020), a vocabulary of characters."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Wav2Vec2Processor

from sotto.families.ctc import Ctc, checked
from sotto.families.family import Inputs
from sotto.surgery import layer_path, layers_of


@dataclass(frozen=True)
class Wav2Vec2Conformer(Ctc):
    @staticmethod
    def load_processor(name: str | Path) -> Any:
        return checked(Wav2Vec2Processor.from_pretrained(name))

    @property
    def idle_weights(self) -> bool:
        """transformers has a convolution for positions even where others are used."""
        return True

    @property
    def samples_per_frame(self) -> int:
        return int(self.model.config.inputs_to_logits_ratio)

    @property
    def takes_batches(self) -> bool:
        """Group norm is taken over the whole length, padding included."""
        return bool(self.model.config.feat_extract_norm != "group")

    def frame_counts(self, inputs: Inputs) -> torch.Tensor:
        counts: torch.Tensor = self.model._get_feat_extract_output_lengths(inputs["attention_mask"].sum(-1))
        return counts

    def outputs(self, inputs: Inputs, **settings: bool) -> Any:
        """transformers lets what it computes for padding into the convolution modules; here it is kept out of them."""
        counts = self.frame_counts(inputs)

        def silence(_: Any, heard: tuple[torch.Tensor]) -> torch.Tensor:
            frames = torch.arange(heard[0].shape[-1], device=counts.device)
            return heard[0].masked_fill(frames >= counts[:, None, None], 0.0)

        nothing_to_keep_out = not torch.compiler.is_exporting() and inputs["attention_mask"].all()
        handles = [] if nothing_to_keep_out else self.before_depthwise(silence)
        try:
            return super().outputs(inputs, **settings)
        finally:
            for handle in handles:
                handle.remove()

    def before_depthwise(self, hook: Any) -> list[Any]:
        """Have `hook` change what the depthwise convolution of every layer hears (batch, channels, frames)."""
        return [
            self.model.get_submodule(
                layer_path(stack, index, f"{convolution.name}.{convolution.depthwise}")
            ).register_forward_pre_hook(hook)
            for stack, index in layers_of(self.model)
            for convolution in stack.convolutions
        ]
