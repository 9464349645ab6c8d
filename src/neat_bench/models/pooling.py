"""A classifier on the mean of the token states, for sentence encoders that were trained that way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput


class MeanPooledClassifier(nn.Module):
    """encoder -> mean over the unpadded tokens -> dropout -> linear head.

    The head starts as transformers starts its heads: weights normal with the config's initializer_range,
    biases zero.
    """

    base_model_prefix = "encoder"

    def __init__(self, encoder: nn.Module, outputs: int) -> None:
        super().__init__()
        self.encoder, self.config = encoder, encoder.config
        config: Any = encoder.config
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, outputs)
        nn.init.normal_(self.classifier.weight, std=config.initializer_range)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, attention_mask: Tensor, **inputs: Tensor) -> SequenceClassifierOutput:
        """Return logits (batch x outputs) for the mask (batch x tokens) and the encoder's other inputs."""
        hidden = self.encoder(attention_mask=attention_mask, **inputs).last_hidden_state
        mask = attention_mask[..., None].to(hidden.dtype)
        mean = torch.sum(hidden * mask, dim=1) / mask.sum(dim=1)
        return SequenceClassifierOutput(logits=self.classifier(self.dropout(mean)))
