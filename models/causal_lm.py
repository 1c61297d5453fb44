"""What the engine asks of a model on one rank.

Legend: T tokens of a step, D hidden size, R rows whose logits are wanted, V vocabulary.
"""

from typing import Protocol

import torch

from ..kernels.attention_inputs import AttentionInputs, LastTokens
from .config import ModelConfig
from .kv_cache import KvCache
from .quantization.formats import Quantization


class CausalLM(Protocol):
    """A decoder-only language model, one rank's share. `num_kv_heads` is of this rank."""

    config: ModelConfig
    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype
    quantization: Quantization
    device: torch.device

    def forward(
        self,
        token_ids_T: torch.Tensor,
        positions_T: torch.Tensor,
        kv: KvCache,
        inputs: AttentionInputs,
        last: LastTokens | None = None,
    ) -> torch.Tensor:
        """Hidden states after the last norm of the tokens in `last` [R, D], or of all [T, D]; writes the keys and
        values of all to `kv`.

        Both ids and positions are int64 on the model's device.
        """
        ...

    def logits(self, hidden_RD: torch.Tensor) -> torch.Tensor:
        """float32 [R, V], the whole vocabulary, bit-identical on every rank."""
        ...
