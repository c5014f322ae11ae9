"""Parakeet: log-mel features, a FastConformer (Rekesh et al., 2023), a vocabulary of word pieces."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import ParakeetProcessor

from sotto.families.ctc import Ctc, checked
from sotto.families.family import Inputs


@dataclass(frozen=True)
class Parakeet(Ctc):
    """transformers keeps padding out of all that it computes."""

    @staticmethod
    def load_processor(name: str | Path) -> Any:
        return checked(ParakeetProcessor.from_pretrained(name))

    @property
    def idle_weights(self) -> bool:
        """Layers are left out at random in training, where the config says so."""
        return bool(self.model.config.encoder_config.layerdrop > 0)

    @property
    def samples_per_frame(self) -> int:
        hop: int = self.processor.feature_extractor.hop_length
        return hop * int(self.model.config.encoder_config.subsampling_factor)

    def frame_counts(self, inputs: Inputs) -> torch.Tensor:
        counts: torch.Tensor = self.model._get_subsampling_output_length(inputs["attention_mask"].sum(-1))
        return counts
