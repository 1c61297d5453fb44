"""The compiled ops as functions of tensors, with the contracts of `kernels/ops.py`; float32 and bfloat16 on CPU.

Legend: T tokens, D hidden size, H query heads, K key heads, X = H + 2 K heads side by side, d head size,
I intermediate size or inputs, N blocks of the cache, b tokens per block, R rows, V vocabulary, O outputs.
"""

import ctypes
from functools import cache

import torch

from ..attention_inputs import AttentionInputs
from . import library

_P, _I, _F, _N = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int
_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


class Functions:
    """The library's functions of one data type."""

    def __init__(self, compiled: library.Library, name: str) -> None:
        self.rms_norm = compiled.function(f"nfold_rms_norm_{name}", _P, _P, _P, _F, _P, _I, _I, _N)
        self.quantize_rows = compiled.function(f"nfold_quantize_rows_{name}", _P, _I, _I, _P, _P, _N)
        self.silu_and_mul = compiled.function(f"nfold_silu_and_mul_{name}", _P, _P, _I, _I, _N)
        self.rotary_and_write_kv = compiled.function(
            f"nfold_rotary_and_write_kv_{name}", _P, _P, _P, _P, _P, _P, _I, _I, _I, _I, _N
        )
        self.paged_attention = compiled.function(
            f"nfold_paged_attention_{name}", _P, _I, _P, _P, _P, _P, _I, _P, _P, _I, _I, _I, _I, _I, _F, _N
        )


@cache
def functions(dtype: torch.dtype) -> Functions | None:
    """None where this machine or this data type has no compiled ops."""
    compiled = library.load()
    return Functions(compiled, _NAMES[dtype]) if compiled is not None and dtype in _NAMES else None


def rms_norm(
    do: Functions, x_TD: torch.Tensor, residual_TD: torch.Tensor | None, weight_D: torch.Tensor, eps: float
) -> torch.Tensor:
    """The norm of x, or of residual + x, which then stands in the residual."""
    x_TD, y_TD = x_TD.contiguous(), torch.empty_like(x_TD, memory_format=torch.contiguous_format)
    residual = None
    if residual_TD is not None:
        assert residual_TD.is_contiguous()
        residual = residual_TD.data_ptr()
    T, D = x_TD.shape
    threads = torch.get_num_threads()
    do.rms_norm(x_TD.data_ptr(), residual, weight_D.data_ptr(), eps, y_TD.data_ptr(), T, D, threads)
    return y_TD


def quantize_rows(do: Functions, x_RI: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """To e4m3 of OCP."""
    x_RI = x_RI.contiguous()
    R, I = x_RI.shape  # noqa: E741
    numbers_RI, scale_R1 = torch.empty(R, I, dtype=torch.float8_e4m3fn), torch.empty(R, 1)
    do.quantize_rows(x_RI.data_ptr(), R, I, numbers_RI.data_ptr(), scale_R1.data_ptr(), torch.get_num_threads())
    return numbers_RI, scale_R1


def silu_and_mul(do: Functions, x_T2I: torch.Tensor) -> torch.Tensor:
    x_T2I = x_T2I.contiguous()
    T, double = x_T2I.shape
    y_TI = x_T2I.new_empty(T, double // 2)
    do.silu_and_mul(x_T2I.data_ptr(), y_TI.data_ptr(), T, double // 2, torch.get_num_threads())
    return y_TI


def rotary_and_write_kv(
    do: Functions,
    qkv_TXd: torch.Tensor,
    cos_Td: torch.Tensor,
    sin_Td: torch.Tensor,
    k_cache_NbKd: torch.Tensor,
    v_cache_NbKd: torch.Tensor,
    slot_mapping_T: torch.Tensor,
) -> torch.Tensor:
    assert qkv_TXd.is_contiguous()
    T, X, d = qkv_TXd.shape
    K = k_cache_NbKd.shape[2]
    do.rotary_and_write_kv(
        qkv_TXd.data_ptr(),
        cos_Td.data_ptr(),
        sin_Td.data_ptr(),
        k_cache_NbKd.data_ptr(),
        v_cache_NbKd.data_ptr(),
        slot_mapping_T.data_ptr(),
        T,
        X - 2 * K,
        K,
        d,
        torch.get_num_threads(),
    )
    return qkv_TXd[:, : X - 2 * K]


def paged_attention(
    do: Functions,
    q_THd: torch.Tensor,
    k_cache_NbKd: torch.Tensor,
    v_cache_NbKd: torch.Tensor,
    inputs: AttentionInputs,
    scale: float,
) -> torch.Tensor:
    T, H, d = q_THd.shape
    if q_THd.stride()[1:] != (d, 1):
        q_THd = q_THd.contiguous()
    _, b, K, _ = k_cache_NbKd.shape
    tables_SB = inputs.block_tables_SB
    assert tables_SB.stride(1) == 1
    assert d * q_THd.itemsize % 4 == 0, "bfloat16 is multiplied in pairs"
    o_THd = q_THd.new_empty(T, H, d)
    do.paged_attention(
        q_THd.data_ptr(),
        q_THd.stride(0),
        k_cache_NbKd.data_ptr(),
        v_cache_NbKd.data_ptr(),
        o_THd.data_ptr(),
        tables_SB.data_ptr(),
        tables_SB.stride(0),
        inputs.query_start.data_ptr(),
        inputs.context_lens_S.data_ptr(),
        tables_SB.shape[0],
        b,
        H,
        K,
        d,
        scale,
        torch.get_num_threads(),
    )
    return o_THd


@cache
def _argmax() -> "ctypes._NamedFuncPointer | None":
    compiled = library.load()
    return compiled and compiled.function("nfold_argmax_float32", _P, _I, _I, _P, _N)


def argmax(logits_RV: torch.Tensor) -> torch.Tensor | None:
    """int64 [R]; None where there is no compiled op."""
    compute = _argmax()
    if compute is None:
        return None
    logits_RV = logits_RV.contiguous()
    R, V = logits_RV.shape
    ids_R = torch.empty(R, dtype=torch.int64)
    compute(logits_RV.data_ptr(), R, V, ids_R.data_ptr(), torch.get_num_threads())
    return ids_R
