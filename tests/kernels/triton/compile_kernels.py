"""Compiles every kernel for one architecture, on a machine without it, and says what the machine code is like.

    python compile_kernels.py gfx950

The launchers themselves run, with Llama 2 70B's shapes, against a driver that only names the architecture; so what
is compiled is what production launches. Prints one JSON object: for each kernel a list of variants.
"""

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import triton
from nfold.kernels.attention_inputs import AttentionInputs
from nfold.kernels.running_slots import RunningSlots
from nfold.kernels.triton import (
    decode_inputs,
    paged_attention,
    quantize_rows,
    rms_norm,
    rotary_and_write_kv,
    sample_tokens,
    silu_and_mul,
)
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

H, K, d, D, INNER, V = 64, 8, 128, 8192, 28672, 32000


@dataclass(frozen=True)
class Variant:
    """`matrix` counts the instructions that multiply matrices, by name; spills are of registers, per thread."""

    what: str
    matrix: dict[str, int]
    num_vector_spills: int
    num_scalar_spills: int
    num_registers: int
    shared_bytes: int


class NamedDriver:
    """Stands in for Triton's driver: knows its architecture and nothing else."""

    def __init__(self, architecture: str) -> None:
        self.architecture = architecture

    def get_current_target(self) -> GPUTarget:
        if self.architecture.startswith("sm_"):
            return GPUTarget("cuda", int(self.architecture.removeprefix("sm_")), 32)
        return GPUTarget("hip", self.architecture, 64)

    def get_current_device(self) -> str:
        return self.architecture

    def get_current_stream(self, device: str) -> int:
        return 0


def launch_all() -> list[tuple[str, object]]:
    """What is compiled, and the kernel, of every launch: each launcher is called, and none launches."""
    compiled: list[tuple[str, object]] = []
    what = ""
    run = JITFunction.run

    def compile_only(self, *args, grid, warmup, **kwargs):
        compiled.append(
            (f"{self.fn.__name__.lstrip('_')}: {what}", run(self, *args, grid=grid, warmup=True, **kwargs))
        )

    JITFunction.run = compile_only
    x, weight = torch.zeros(2, D, dtype=torch.bfloat16), torch.zeros(D, dtype=torch.bfloat16)
    what = "alone"
    rms_norm.rms_norm(x, weight, 1e-5)
    what = "with residual"
    rms_norm.add_rms_norm(x, x.clone(), weight, 1e-5)
    what = "bfloat16"
    silu_and_mul.silu_and_mul(torch.zeros(2, 2 * INNER, dtype=torch.bfloat16))
    logits, one = torch.zeros(2, V), torch.ones(2)
    what = "greedy"
    sample_tokens.argmax(logits)
    what = "random"
    seeds = torch.zeros(2, dtype=torch.int64)
    sample_tokens.sample_tokens(logits, one, torch.ones(2, dtype=torch.int32), one, seeds, seeds)

    what = "a step"
    tables = torch.zeros(2, 64, dtype=torch.int32)
    running = RunningSlots(seeds, seeds, seeds, torch.ones(2, dtype=torch.int32), one, one, tables)
    decode_inputs.decode_inputs(running, seeds, 64)

    fp8 = torch.float8_e4m3fnuz if sys.argv[1] == "gfx942" else torch.float8_e4m3fn
    what = "to FP8"
    quantize_rows.quantize_rows(x, fp8)
    rms_norm.add_rms_norm_to_fp8(x, x.clone(), weight, 1e-5, fp8)
    silu_and_mul.silu_and_mul_to_fp8(torch.zeros(2, 2 * INNER, dtype=torch.bfloat16), fp8)
    # Small blocks, of which a turn of attention reads several, and large ones.
    for cache_dtype, b in ((torch.bfloat16, 16), (fp8, 64)):
        cache = torch.zeros(4, b, K, d, dtype=cache_dtype)
        name = str(cache_dtype).removeprefix("torch.")
        what = f"{name} cache"
        qkv, table = torch.zeros(2, H + 2 * K, d, dtype=torch.bfloat16), torch.zeros(2, d, dtype=torch.bfloat16)
        rotary_and_write_kv.rotary_and_write_kv(qkv, table, table, cache, cache, seeds)
        for kind, num_sequences, query_len, context in (
            ("decode", 2048, 1, 300),
            ("decode, split", 1, 1, 4000),
            ("prefill", 1, 16384, 16384),
            ("prefill, split", 1, 32, 4000),
        ):
            what = f"{kind}, {name} cache"
            inputs = AttentionInputs(
                slot_mapping_T=torch.zeros(0, dtype=torch.int64),
                query_start=torch.zeros(num_sequences + 1, dtype=torch.int32),
                context_lens_S=torch.zeros(num_sequences, dtype=torch.int32),
                block_tables_SB=torch.zeros(num_sequences, 256, dtype=torch.int32),
                num_decodes=num_sequences if query_len == 1 else 0,
                query_lens=(query_len,) * num_sequences,
                host_context_lens=(context,) * num_sequences,
                block_size=b,
            )
            plan = paged_attention.prepare_attention(inputs)
            q = torch.zeros(4, H + 2 * K, d, dtype=torch.bfloat16)[:, :H]
            paged_attention.paged_attention(q, cache, cache, plan, d**-0.5)
    JITFunction.run = run
    return compiled


def variant_of(what: str, kernel, folder: Path) -> Variant:
    asm, shared = kernel.asm, kernel.metadata.shared
    if "amdgcn" in asm:
        code = asm["amdgcn"]
        matrix = re.findall(r"\b(v_mfma_\w+)", code)
        (vector_spills,) = re.findall(r"\.vgpr_spill_count:\s+(\d+)", code)
        (scalar_spills,) = re.findall(r"\.sgpr_spill_count:\s+(\d+)", code)
        (registers,) = re.findall(r"\.vgpr_count:\s+(\d+)", code)
    else:
        matrix = re.findall(r"\b(wgmma\.mma_async\S*|mma\.sync\S*)", asm["ptx"])
        cubin = folder / "kernel.cubin"
        cubin.write_bytes(asm["cubin"])
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        usage = subprocess.run([tool, "--dump-resource-usage", cubin], capture_output=True, text=True, check=True)
        (registers,) = re.findall(r"\bREG:(\d+)", usage.stdout)
        # What does not fit in registers lies on the stack, 4 bytes each.
        (stack,) = re.findall(r"\bSTACK:(\d+)", usage.stdout)
        vector_spills, scalar_spills = int(stack) // 4, 0
    counts = {name: matrix.count(name) for name in sorted(set(matrix))}
    return Variant(what, counts, int(vector_spills), int(scalar_spills), int(registers), shared)


def main() -> None:
    triton.runtime.driver.set_active(NamedDriver(sys.argv[1]))
    with tempfile.TemporaryDirectory() as folder:
        variants = [variant_of(what, kernel, Path(folder)) for what, kernel in launch_all()]
    print(json.dumps([asdict(variant) for variant in variants]))


if __name__ == "__main__":
    main()
