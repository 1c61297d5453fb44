"""Cases of `paged_attention` at a model's shapes (see `case.py`)."""

from collections.abc import Iterator

import torch
from nfold.kernels.attention_inputs import AttentionInputs
from nfold.kernels.reference import paged_attention as reference

from .case import Case, Setting


def cases(setting: Setting) -> Iterator[Case]:
    sizes = setting.sizes
    context = sizes.context
    decodes = [(context // 2 + n % context, 1) for n in range(sizes.num_decodes)]
    prompts = [(context, context)] * max(1, sizes.num_prefill_tokens // context)
    steps = {
        "decode": decodes,
        "prefill": prompts,
        "one long decode": [(8 * context, 1)],
        "mixed": decodes[: sizes.num_decodes // 2] + prompts[:2] + [(2 * context, context)],
    }
    for what, step in steps.items():
        for dtype in (setting.dtype, setting.fp8):
            yield _case(setting, f"paged_attention, {what}, {str(dtype).removeprefix('torch.')} cache", step, dtype)


def _case(setting: Setting, name: str, step: list[tuple[int, int]], dtype: torch.dtype) -> Case:
    """`step` has (context, query tokens) of each sequence; blocks lie scattered."""
    ops, sizes = setting.ops, setting.sizes
    H, K, d, b = sizes.num_heads, sizes.num_kv_heads, sizes.head_dim, sizes.block_size
    counts = [-(-context // b) for context, _ in step]
    cache_shape = (sum(counts), b, K, d)
    k_cache, v_cache = (setting.random(*cache_shape, seed=seed).to(dtype) for seed in (1, 2))
    free = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(0)).int().split(counts)
    tables = torch.nn.utils.rnn.pad_sequence(list(free), batch_first=True).to(setting.device)
    contexts, lens = [context for context, _ in step], [queries for _, queries in step]
    inputs = AttentionInputs(
        slot_mapping_T=torch.zeros(sum(lens), dtype=torch.int64, device=setting.device),
        query_start=torch.tensor([0, *lens], device=setting.device).cumsum(0).int(),
        context_lens_S=torch.tensor(contexts, dtype=torch.int32, device=setting.device),
        block_tables_SB=tables,
        num_decodes=sum(queries == 1 for queries in lens),
        query_lens=tuple(lens),
        host_context_lens=tuple(contexts),
        block_size=b,
    )
    qkv = setting.random(sum(lens), H + 2 * K, d)
    q = qkv[:, :H]
    plan = ops.prepare_attention(inputs)
    scale = d**-0.5

    def wanted() -> tuple[torch.Tensor, ...]:
        return (
            reference.paged_attention(q, k_cache, v_cache, reference.prepare_attention(inputs, k_cache), scale),
        )

    def run() -> torch.Tensor:
        return ops.paged_attention(q, k_cache, v_cache, plan, scale)

    pairs = sum(queries * context - queries * (queries - 1) // 2 for context, queries in step)
    return Case(
        name,
        run=run,
        wanted=wanted,
        got=lambda: (run(),),
        bytes=2 * sum(contexts) * K * d * dtype.itemsize + 2 * sum(lens) * H * d * q.itemsize,
        flops=4 * pairs * H * d,
        tolerance=0.03,
    )
