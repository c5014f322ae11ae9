"""Models that are called as transformers' own, and computed by the graphs of another runtime.

So decoding, long audio, timestamps, beams and everything that Sotto measures is the code that runs the original.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn
from transformers import ParakeetForCTC, Wav2Vec2ConformerForCTC, WhisperForConditionalGeneration
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput, Seq2SeqLMOutput

from sotto.architectures import architecture_of
from sotto.exports.on_cpu import OnCpu, refuse_attentions

Arrays = dict[str, NDArray[Any]]
Graph = Callable[[Arrays], dict[str, torch.Tensor]]
"""Named inputs -> named outputs."""


class GraphEncoder(nn.Module):
    """Whisper's encoder."""

    main_input_name = "input_features"

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, input_features: torch.Tensor, **_: Any) -> BaseModelOutput:
        found = self.graph({"input_features": input_features.float().numpy()})
        return BaseModelOutput(last_hidden_state=found["last_hidden_state"])


class GraphWhisper(OnCpu, WhisperForConditionalGeneration):
    """Whisper whose encoder and decoder are graphs; no weights by themselves, and no attentions to look at."""

    def __init__(self, config: Any, encoder: nn.Module) -> None:
        with torch.device("meta"):
            super().__init__(config)
        self.graph_encoder = encoder

    def get_encoder(self, modality: str | None = None) -> Any:
        return self.graph_encoder

    @abstractmethod
    def step(self, tokens: torch.Tensor, states: torch.Tensor, cache: EncoderDecoderCache) -> torch.Tensor:
        """Logits (batch, tokens, vocabulary) of tokens that follow those in `cache`, which then holds them too."""

    def forward(
        self,
        input_features: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: EncoderDecoderCache | None = None,
        output_attentions: bool | None = None,
        **_: Any,
    ) -> Seq2SeqLMOutput:
        refuse_attentions(output_attentions)
        assert decoder_input_ids is not None
        if encoder_outputs is None:
            assert input_features is not None
            encoder_outputs = self.graph_encoder(input_features)
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache()) if past_key_values is None else past_key_values
        logits = self.step(decoder_input_ids, encoder_outputs[0].float(), cache)
        return Seq2SeqLMOutput(logits=logits, past_key_values=cache)


class GraphCtc(OnCpu):
    """What both kinds of CTC models share."""

    graph: Graph
    main_input_name: str

    def forward(self, attention_mask: torch.Tensor, **heard: torch.Tensor) -> CausalLMOutput:
        samples = heard[self.main_input_name].float().numpy()
        arrays = {self.main_input_name: samples, "attention_mask": attention_mask.long().numpy()}
        return CausalLMOutput(logits=self.graph(arrays)["logits"])


class GraphParakeet(GraphCtc, ParakeetForCTC):
    """Parakeet-CTC as one graph."""

    def __init__(self, config: Any, graph: Graph) -> None:
        with torch.device("meta"):
            super().__init__(config)
        self.graph = graph


class GraphWav2Vec2Conformer(GraphCtc, Wav2Vec2ConformerForCTC):
    """Wav2Vec2-Conformer with a CTC head as one graph."""

    def __init__(self, config: Any, graph: Graph) -> None:
        with torch.device("meta"):
            super().__init__(config)
        self.graph = graph


def ctc_model(config: Any, graph: Graph) -> Any:
    kind: Any = GraphParakeet if architecture_of(config).name == "parakeet" else GraphWav2Vec2Conformer
    return kind(config, graph)
