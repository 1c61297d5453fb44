"""Offline: all requests at once; each step against the device's roofline, and what it is made of."""

import gc
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from gpu_engine_model import Weights
from gpu_engine_timing import Limits
from nfold.models.engine.core import DecodeSteps, EngineCore
from nfold.models.engine.native import NativeEngine
from nfold.models.engine.protocol import FinishReason, SamplingParams, StepRecord, SubmitBatch
from nfold.models.engine.settings import EngineSettings, ResolvedSettings
from nfold.models.engine.simulated.lengths import OPENORCA
from nfold.models.kv_cache import KvCache
from nfold.models.llama import LlamaForCausalLM
from nfold.models.parallel import TpGroup

MEAN_ANSWER = 294
PARTS = {  # of a kernel's name, the first that is found
    "attention": ("attend", "merge", "flash", "scaled_dot_product"),
    "quantise": ("quantize",),
    "norm": ("rms_norm",),
    "rotary and cache": ("rotary",),
    "activation": ("silu",),
    "sampling": ("greedy", "sample", "argmax"),
    "products": ("gemm", "nvjet", "cutlass", "cijk", "scaled_mm", "addmm", "matmul", "linear", "::mm"),
    "copies": ("memcpy", "memset", "copy_", "decode_inputs"),
}


@dataclass(frozen=True)
class Step:
    end_s: float
    num_tokens: int
    num_ended: int
    record: StepRecord


def make_engine(
    model: LlamaForCausalLM,
    *,
    decodes: DecodeSteps,
    overlap: bool | None,
    kv_cache_bytes: int | None = None,
    kv_dtype: torch.dtype,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    block_size: int,
) -> tuple[NativeEngine, ResolvedSettings]:
    settings = EngineSettings(
        model_dir=Path("random weights"),
        max_model_len=2048,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        block_size=block_size,
        kv_cache_bytes=kv_cache_bytes,
        prefix_cache=False,
        overlap=overlap,
    )
    sizes = (model.num_layers, model.num_kv_heads, model.head_dim, kv_dtype)
    free_bytes = None
    if model.device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()  # what earlier parts of the program left
        free_bytes, _ = torch.cuda.mem_get_info(model.device)
    resolved = settings.resolve(
        model_max_len=model.config.max_position_embeddings,
        kv_bytes_per_token=KvCache.bytes_per_block(1, *sizes),
        free_bytes=free_bytes,
        dtype="bfloat16",
        device=str(model.device),
        quantization=model.quantization.name,
        kv_cache_dtype=str(kv_dtype).removeprefix("torch."),
    )
    return NativeEngine(EngineCore(model, resolved, decodes=decodes), resolved, TpGroup.single()), resolved


def make_requests(num_requests: int, vocabulary: int, max_tokens: int) -> SubmitBatch:
    """OpenOrca-like lengths, 294 prompt and 294 answer tokens on average, cut at `max_tokens` each."""
    random = np.random.default_rng(0)
    prompt_lens = np.minimum(OPENORCA.prompt.with_mean(294).sample(num_requests, random), max_tokens)
    answer_lens = np.minimum(OPENORCA.answer.with_mean(MEAN_ANSWER).sample(num_requests, random), max_tokens)
    prompts = [random.integers(0, vocabulary, length).astype(np.int32) for length in prompt_lens]
    return SubmitBatch.build(
        range(num_requests), prompts, [SamplingParams(max_tokens=int(n), ignore_eos=True) for n in answer_lens]
    )


def run_offline(engine: NativeEngine, requests: SubmitBatch, limit_s: float) -> list[Step]:
    """Steps until all is answered or `limit_s` are over."""
    engine.submit(requests)
    steps: list[Step] = []
    start_s = time.perf_counter()
    while engine.has_work() and time.perf_counter() - start_s < limit_s:
        outputs = engine.step()
        assert not (outputs.finish == FinishReason.ERROR).any(), "a request does not fit the engine"
        num_ended = int((outputs.finish != FinishReason.NONE).sum())
        steps.append(
            Step(time.perf_counter() - start_s, int((outputs.token_ids >= 0).sum()), num_ended, outputs.step)
        )
    return steps


def saturated(steps: list[Step], num_slots: int) -> list[Step]:
    """Steps from when as many requests have ended as run at once, while others wait; all if there are none."""
    ended = np.cumsum([step.num_ended for step in steps])
    waiting = np.array([step.record.num_left_waiting > 0 for step in steps])
    inside = np.flatnonzero((ended >= min(num_slots, ended[-1] // 2)) & waiting)
    return steps[inside[0] : inside[-1] + 1] if len(inside) > 1 else steps


def figures(
    steps: list[Step], window: list[Step], weights: Weights, kv_bytes_per_token: int, limits: Limits, is_fp8: bool
) -> dict[str, float]:
    """Rooflines are of steps: the weights and the cached tokens read once, the linear layers' products."""
    step_s = np.array([step.record.step_s for step in window])
    num_tokens = np.array([step.record.num_prefill_tokens + step.record.num_decode_tokens for step in window])
    num_rows = np.array([step.num_tokens for step in window])
    num_kv = np.array([step.record.num_kv_tokens for step in window])
    memory_s = (weights.bytes + num_kv * kv_bytes_per_token) / limits.bytes_per_s
    rate = limits.fp8_flop_per_s if is_fp8 else limits.bf16_flop_per_s
    compute_s = 2 * weights.layers * num_tokens / rate + 2 * weights.head * num_rows / limits.bf16_flop_per_s
    window_s = float(step_s.sum())
    return {
        "tokens_per_s": float(num_rows.sum()) / window_s,
        "tokens_per_s_whole": sum(step.num_tokens for step in steps) / steps[-1].end_s,
        "window_s": window_s,
        "window_steps": len(window),
        "step_ms": 1e3 * float(np.mean(step_s)),
        "tokens_per_step": float(np.mean(num_tokens)),
        "output_tokens_per_step": float(np.mean(num_rows)),
        "kv_tokens_per_step": float(np.mean(num_kv)),
        "memory_share": float(memory_s.sum()) / window_s,
        "compute_share": float(compute_s.sum()) / window_s,
        "roofline_share": float(np.maximum(memory_s, compute_s).sum()) / window_s,
    }


def split_step(engine: NativeEngine, num_steps: int) -> dict[str, float]:
    """Milliseconds of one step by what the device does, `idle` where it waits for the host; on CPU, of the host."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    on_gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CUDA] if on_gpu else [ProfilerActivity.CPU]
    with profile(activities=activities) as profiler:
        start_s = time.perf_counter()
        for _ in range(num_steps):
            engine.step()
        wall_ms = 1e3 * (time.perf_counter() - start_s) / num_steps
    split = dict.fromkeys([*PARTS, "other"], 0.0)
    for event in profiler.key_averages():
        if on_gpu and event.device_type != DeviceType.CUDA:
            continue
        micros = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        name = event.key.lower()
        part = next((part for part, keys in PARTS.items() if any(key in name for key in keys)), "other")
        split[part] += micros / 1e3 / num_steps
    split["idle"] = max(0.0, wall_ms - sum(split.values()))
    return split
