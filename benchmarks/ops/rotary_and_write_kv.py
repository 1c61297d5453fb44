"""Cases of `rotary_and_write_kv` at a model's shapes (see `case.py`)."""

from collections.abc import Iterator

import torch
from nfold.kernels.reference import rotary_and_write_kv as reference

from .case import Case, Setting


def cases(setting: Setting) -> Iterator[Case]:
    ops, sizes = setting.ops, setting.sizes
    H, K, d, b = sizes.num_heads, sizes.num_kv_heads, sizes.head_dim, sizes.block_size
    for what, T in (("prefill", sizes.num_prefill_tokens), ("decode", sizes.num_decodes)):
        qkv = setting.random(T, H + 2 * K, d)
        angles = setting.random(T, d // 2, dtype=torch.float32, seed=1)
        cos, sin = angles.cos(), angles.sin()
        tables = (torch.cat((cos, cos), -1).to(qkv.dtype), torch.cat((-sin, sin), -1).to(qkv.dtype))
        slots = torch.randperm(T, device=setting.device)
        for dtype in (setting.dtype, setting.fp8):
            caches = [torch.zeros(-(-T // b), b, K, d, dtype=dtype, device=setting.device) for _ in range(2)]
            scratch = qkv.clone()

            def call(op, qkv=qkv, tables=tables, caches=caches, slots=slots) -> tuple[torch.Tensor, ...]:
                fresh = [torch.zeros_like(cache) for cache in caches]
                q = op(qkv.clone(), *tables, *fresh, slots, 1.0, 1.0)
                return q.float(), *(cache.float() for cache in fresh)

            yield Case(
                f"rotary_and_write_kv, {what}, {_name(dtype)} cache",
                run=lambda scratch=scratch, tables=tables, caches=caches, slots=slots: ops.rotary_and_write_kv(
                    scratch, *tables, *caches, slots
                ),
                wanted=lambda call=call: call(reference.rotary_and_write_kv),
                got=lambda call=call: call(ops.rotary_and_write_kv),
                bytes=(2 * T * H * d + 2 * T * K * d) * qkv.itemsize + 2 * T * K * d * dtype.itemsize,
                tolerance=0.13 if dtype == setting.dtype else 1.0,  # two places at 8: of bfloat16, of FP8
            )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
