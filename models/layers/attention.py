"""Grouped-query attention over the paged cache, heads split over the ranks.

Legend: T tokens, D hidden size, H query heads of this rank, K key heads of this rank,
X heads of several kinds side by side, d head size.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch

from ...kernels import ops
from ...kernels.quantized import fp8_dtype
from ..config import ModelConfig
from ..errors import ConfigError
from ..parallel import TpGroup
from ..quantization.formats import UNQUANTIZED, Quantization
from ..weights.slots import Slot
from .linear import ColumnLinear, Part, RowLinear


@dataclass(frozen=True, slots=True)
class AttentionStep:
    """What attention needs of a step on every layer.

    Attributes:
        rows_R: the tokens whose attention is wanted, None for all; `plan` is made for them.
    """

    cos_Td: torch.Tensor
    sin_Td: torch.Tensor
    slot_mapping_T: torch.Tensor
    plan: ops.AttentionPlan
    rows_R: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class HeadSplit:
    """A rank's heads. With fewer key heads than ranks, neighbours share one and each keeps a copy."""

    num_heads: int
    num_kv_heads: int
    first_head: int
    first_kv_head: int

    @classmethod
    def of(cls, config: ModelConfig, tp: TpGroup) -> "HeadSplit":
        heads, kv_heads, size = config.num_heads, config.num_kv_heads, tp.size
        if heads % size or (kv_heads % size and size % kv_heads):
            right = [n for n in range(1, heads + 1) if heads % n == 0 and (kv_heads % n == 0 or n % kv_heads == 0)]
            expected = f"{heads} heads and {kv_heads} key-value heads can be split over {right} ranks"
            raise ConfigError("tp", size, expected)
        num_kv_heads = max(1, kv_heads // size)
        return cls(
            num_heads=heads // size,
            num_kv_heads=num_kv_heads,
            first_head=tp.rank * (heads // size),
            first_kv_head=tp.rank * kv_heads // size,
        )


class Attention:
    """From hidden states to hidden states; writes the tokens' keys and values to the layer's cache.

    `first` brings queries, keys and values; `output` is the product behind. An FP8 cache holds keys and values
    divided by the layer's scales: the checkpoint's, else 1.
    """

    def __init__(
        self,
        name: str,
        config: ModelConfig,
        tp: TpGroup,
        *,
        dtype: torch.dtype,
        device: torch.device,
        quantization: Quantization = UNQUANTIZED,
    ) -> None:
        split = HeadSplit.of(config, tp)
        d = config.head_dim
        self._num_heads = split.num_heads
        self._num_kv_heads = split.num_kv_heads
        self._head_dim = d
        self._scale = d**-0.5
        query_start, key_start = split.first_head * d, split.first_kv_head * d
        query_stop, key_stop = query_start + split.num_heads * d, key_start + split.num_kv_heads * d
        self.first = ColumnLinear(
            config.hidden_size,
            [
                Part(f"{name}.q_proj", config.num_heads * d, query_start, query_stop),
                Part(f"{name}.k_proj", config.num_kv_heads * d, key_start, key_stop),
                Part(f"{name}.v_proj", config.num_kv_heads * d, key_start, key_stop),
            ],
            bias=config.attention_bias,
            dtype=dtype,
            device=device,
            quantization=quantization,
        )
        self.output = RowLinear(
            f"{name}.o_proj",
            config.num_heads * d,
            config.hidden_size,
            tp,
            bias=config.attention_bias,
            dtype=dtype,
            device=device,
            quantization=quantization,
        )
        self._kv_scales = KvScales(name, quantization, device)

    def __call__(
        self, x_TD: ops.Rows, k_cache: torch.Tensor, v_cache: torch.Tensor, step: AttentionStep
    ) -> torch.Tensor:
        H, K = self._num_heads, self._num_kv_heads
        qkv_TXd = self.first(x_TD).view(-1, H + 2 * K, self._head_dim)
        k_scale, v_scale = self._kv_scales.k, self._kv_scales.v
        q_THd = ops.rotary_and_write_kv(
            qkv_TXd, step.cos_Td, step.sin_Td, k_cache, v_cache, step.slot_mapping_T, k_scale, v_scale
        )
        if step.rows_R is not None:
            q_THd = q_THd.index_select(0, step.rows_R)
        o_THd = ops.paged_attention(q_THd, k_cache, v_cache, step.plan, self._scale, k_scale, v_scale)
        return self.output(o_THd.flatten(1))

    def slots(self) -> Iterator[Slot]:
        yield from self.first.slots()
        yield from self.output.slots()
        yield from self._kv_scales.slots()

    def pack(self) -> None:
        self.first.pack()
        self.output.pack()


class KvScales:
    """What one layer's keys and values are divided by in an FP8 cache."""

    def __init__(self, name: str, quantization: Quantization, device: torch.device) -> None:
        self.k = 1.0
        self.v = 1.0
        self._name = name
        # Checkpoints mean OCP's type, which reaches about twice as far as gfx942's.
        self._factor = 2.0 if fp8_dtype(device) == torch.float8_e4m3fnuz else 1.0
        self._quantization = quantization

    def slots(self) -> Iterator[Slot]:
        if not self._quantization.has_kv_scales:
            return
        for letter in ("k", "v"):
            yield Slot(
                f"{self._name}.{letter}_scale",
                (1,),
                partial(self._set, letter),
                dim=0,
                start=0,
                stop=1,
                other_names=(f"{self._name}.{letter}_proj.output_scale",),
                may_be_scalar=True,
                asked_by=self._quantization.origin,
            )

    def _set(self, letter: str, scale: torch.Tensor) -> None:
        setattr(self, letter, float(scale) * self._factor)
