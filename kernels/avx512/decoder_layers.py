"""All layers of a Llama in one call (see decoder_layers.cpp).

Legend: T tokens, D hidden size, H query heads, K key heads, X = H + 2 K, d head size, I intermediate size, R rows.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch

from .. import huge_pages
from ..attention_inputs import AttentionInputs, LastTokens
from . import library
from .linear import GatedPanels, PanelLinear

_P, _I, _F, _N = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """One layer's. Gate, up and down have no bias."""

    input_norm_D: torch.Tensor
    qkv: PanelLinear
    qkv_bias_O: torch.Tensor | None
    output: PanelLinear
    output_bias_D: torch.Tensor | None
    mlp_norm_D: torch.Tensor
    gate_up: GatedPanels
    down: PanelLinear


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """What all layers have in common."""

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    rms_norm_eps: float
    attention_scale: float


class _Layer(ctypes.Structure):
    _fields_ = [
        (name, _P)
        for name in ("input_norm", "qkv", "qkv_bias", "output", "output_bias", "mlp_norm", "gate_up", "down")
    ]


class _Shape(ctypes.Structure):
    _fields_ = [
        *((name, _I) for name in ("num_layers", "hidden", "num_heads", "num_kv_heads", "head_dim", "intermediate")),
        ("eps", _F),
        ("scale", _F),
    ]


class _Sequences(ctypes.Structure):
    _fields_ = [
        *((name, _P) for name in ("block_tables", "query_start", "context_lens")),
        ("table_stride", _I),
        ("count", _I),
    ]


class _Step(ctypes.Structure):
    _fields_ = [
        ("num_tokens", _I),
        ("block_size", _I),
        *((name, _P) for name in ("cos", "sin", "slots", "k_caches", "v_caches")),
        ("sequences", _Sequences),
        ("last_rows", _P),
        ("last_sequences", _Sequences),
        *((name, _P) for name in ("normed", "qkv", "attended", "gated", "added")),
    ]


@cache
def _function(dtype: torch.dtype) -> "ctypes._NamedFuncPointer":
    compiled = library.load()
    assert compiled is not None, "panels are filled by the library"
    name = str(dtype).removeprefix("torch.")
    return compiled.function(f"nfold_decoder_layers_{name}", _P, _P, _P, _P, _N)


class DecoderLayers:
    """From embeddings to what the final norm takes."""

    def __init__(self, layers: Sequence[DecoderWeights], shape: DecoderShape) -> None:
        self._layers = layers  # which hold the memory that `_layers_there` points to
        self._shape = shape
        self._dtype = layers[0].qkv.dtype
        assert shape.head_dim * self._dtype.itemsize % 4 == 0, "bfloat16 is multiplied in pairs"
        self._compute = _function(self._dtype)
        self._memory = torch.empty(0, dtype=self._dtype)
        self._layers_there = (_Layer * len(layers))(
            *(
                _Layer(
                    layer.input_norm_D.data_ptr(),
                    layer.qkv.packed.data_ptr(),
                    _address(layer.qkv_bias_O),
                    layer.output.packed.data_ptr(),
                    _address(layer.output_bias_D),
                    layer.mlp_norm_D.data_ptr(),
                    layer.gate_up.packed.data_ptr(),
                    layer.down.packed.data_ptr(),
                )
                for layer in layers
            )
        )
        self._shape_there = _Shape(
            len(layers),
            shape.hidden_size,
            shape.num_heads,
            shape.num_kv_heads,
            shape.head_dim,
            shape.intermediate_size,
            shape.rms_norm_eps,
            shape.attention_scale,
        )

    def __call__(
        self,
        x_TD: torch.Tensor,
        cos_Td: torch.Tensor,
        sin_Td: torch.Tensor,
        k_caches: Sequence[torch.Tensor],
        v_caches: Sequence[torch.Tensor],
        inputs: AttentionInputs,
        last: LastTokens | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the last layer adds to the residual, and the residual; of the `last` tokens, where these are given,
        [R, D]. `x_TD` is overwritten, and what comes back by the next call."""
        assert x_TD.is_contiguous()
        assert x_TD.dtype == self._dtype == k_caches[0].dtype
        shape, T = self._shape, len(x_TD)
        H, K, d = shape.num_heads, shape.num_kv_heads, shape.head_dim
        widths = (shape.hidden_size, (H + 2 * K) * d, H * d, shape.intermediate_size, shape.hidden_size)
        if len(self._memory) < T * sum(widths):
            self._memory = x_TD.new_empty(T * sum(widths))
            huge_pages.advise(self._memory)
        normed, qkv, attended, gated, added = self._memory[: T * sum(widths)].split([T * width for width in widths])
        k_there, v_there = _addresses(k_caches), _addresses(v_caches)
        step = _Step(
            T,
            inputs.block_size,
            cos_Td.data_ptr(),
            sin_Td.data_ptr(),
            inputs.slot_mapping_T.data_ptr(),
            ctypes.addressof(k_there),
            ctypes.addressof(v_there),
            _sequences(inputs),
            None if last is None else last.rows_R.data_ptr(),
            _Sequences() if last is None else _sequences(last.attention),
            *(part.data_ptr() for part in (normed, qkv, attended, gated, added)),
        )
        self._compute(
            self._layers_there,
            ctypes.byref(self._shape_there),
            ctypes.byref(step),
            x_TD.data_ptr(),
            torch.get_num_threads(),
        )
        num_rows = T if last is None else len(last.rows_R)
        return added.view(T, -1)[:num_rows], x_TD[:num_rows]


def _address(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _addresses(tensors: Sequence[torch.Tensor]) -> "ctypes.Array[ctypes.c_void_p]":
    return (_P * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


def _sequences(inputs: AttentionInputs) -> _Sequences:
    tables_SB = inputs.block_tables_SB
    assert tables_SB.stride(1) == 1
    return _Sequences(
        tables_SB.data_ptr(),
        inputs.query_start.data_ptr(),
        inputs.context_lens_S.data_ptr(),
        tables_SB.stride(0),
        len(tables_SB),
    )
