"""What an engine costs before its first request: memory per rank against what was configured, and time to load
against reading the checkpoint's file twice.

    python benchmarks/startup.py [--tp 1] [--tp 2] [--stored fp8] [--quantization fp8] [--kv-cache-dtype fp8]
                                 [--repeats 5] [--cold]

The model is the `small` Llama of the engine benchmarks, bf16, from a fixed seed. With `--stored fp8` the checkpoint
holds its linear layers in FP8, with a scale per output; `--quantization fp8` rounds them while they are loaded.
Loading is timed with a small KV cache, so that the time is that of the weights. Reading is one plain read of the
whole file into new memory of ordinary pages, by rank 0, in the same process as loading and just before it, while
other ranks sleep. For both the file is in the page cache, and memory is such as was in use a moment before: a
virtual machine's host may have taken away what is free, large pieces first, and giving it back takes longer than
either side (`--cold` leaves that in). Resident bytes are what the engine adds to a process that has already had
another engine, when all of a KV cache of the default size is written. The last line is JSON.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from nfold.kernels.reference import fp8
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from workload import SMALL, make_checkpoint

FILE = "model.safetensors"
MAX_SHARE = 1.1
MAX_READS = 2.0
SMALL_CACHE_BYTES = 16 << 20
TIMEOUT_S = 300.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tp", type=int, action="append", help="ranks; default: 1; repeatable")
    parser.add_argument("--stored", choices=("bf16", "fp8"), default="bf16", help="linear layers in the checkpoint")
    parser.add_argument("--quantization", choices=("auto", "fp8", "mxfp4"), default="auto")
    parser.add_argument("--kv-cache-dtype", choices=("auto", "fp8"), default="auto")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cold", action="store_true", help="read and load into what memory the system has to give")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        checkpoint = make_checkpoint(Path(directory) / "small", SMALL, "bfloat16")
        if args.stored == "fp8":
            store_as_fp8(checkpoint)
        weight_bytes = (checkpoint / FILE).stat().st_size
        print(
            f"small Llama, {args.stored}, {weight_bytes / 1e6:.0f} MB; a KV cache of the default size on each rank"
        )
        figures = {f"tp{size}": measure(size, checkpoint, args) for size in args.tp or [1]}
    print(json.dumps({"weight_bytes": weight_bytes, **figures}))


def store_as_fp8(checkpoint: Path) -> None:
    """Rounds the checkpoint's linear layers, as published FP8 checkpoints have them."""
    stored: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(checkpoint / FILE).items():
        if is_linear(name):
            stored[name], stored[f"{name}_scale"] = fp8.quantize_rows(tensor, torch.float8_e4m3fn)
        else:
            stored[name] = tensor
    save_file(stored, checkpoint / FILE, metadata={"format": "pt"})
    config = json.loads((checkpoint / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "activation_scheme": "dynamic"}
    (checkpoint / "config.json").write_text(json.dumps(config))


def is_linear(name: str) -> bool:
    return name.endswith("_proj.weight")


def measure(size: int, checkpoint: Path, args: argparse.Namespace) -> dict[str, object]:
    """Medians. Memory is that of ranks that have not read the file besides."""
    is_fp8 = "fp8" in (args.stored, args.quantization)
    runs: list[list[dict[str, float]]] = []
    timed: list[list[dict[str, float]]] = []
    for _ in range(args.repeats):
        timed.append(run_ranks(size, checkpoint, args, is_timed=True))
        runs.append(run_ranks(size, checkpoint, args, is_timed=False))
    load_s = statistics.median(max(rank["load_s"] for rank in ranks) for ranks in timed)
    once_s = statistics.median(ranks[0]["read_s"] for ranks in timed)
    share = statistics.median(
        max(rank["resident_bytes"] / configured(checkpoint, size, rank, is_fp8=is_fp8) for rank in ranks)
        for ranks in runs
    )
    peak = statistics.median(max(rank["peak_bytes"] for rank in ranks) for ranks in runs)
    print(
        f"tp {size}: resident {share:.1%} of weights and KV cache (at most {MAX_SHARE:.0%}), peak while loading"
        f" {peak / 1e6:.0f} MB; loaded in {load_s:.2f} s, {load_s / once_s:.2f} times reading the file"
        f" ({once_s:.2f} s; at most {MAX_READS})"
    )
    return {
        "resident_share": round(share, 4),
        "peak_bytes": peak,
        "load_s": round(load_s, 4),
        "read_s": round(once_s, 4),
        "loads_per_read": round(load_s / once_s, 3),
        "holds": share <= MAX_SHARE and load_s <= MAX_READS * once_s,
    }


def configured(checkpoint: Path, size: int, rank: dict[str, float], *, is_fp8: bool) -> float:
    """What the rank should take. FP8 numbers are bytes; all others, MXFP4 on CPU too, are bf16, or float32 where
    that is emulated."""
    weight_bytes = 0.0
    with safe_open(checkpoint / FILE, framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118
            shape = tensors.get_slice(name).get_shape()
            if is_fp8 and is_linear(name):
                weight_bytes += math.prod(shape) + 4 * shape[0]
            elif not name.endswith("_scale"):
                weight_bytes += math.prod(shape) * rank["bytes_per_weight"]
    return weight_bytes / size + rank["kv_cache_bytes"]


def run_ranks(size: int, checkpoint: Path, args: argparse.Namespace, *, is_timed: bool) -> list[dict[str, float]]:
    script = Path(__file__).with_name("startup_rank.py")
    timing = ["--kv-cache-bytes", str(SMALL_CACHE_BYTES), "--read", "cold" if args.cold else "warm"]
    with tempfile.TemporaryDirectory() as directory:
        processes = [
            subprocess.Popen(
                [
                    sys.executable,
                    str(script),
                    *("--checkpoint", str(checkpoint), "--rank", str(rank), "--size", str(size)),
                    *("--meeting", f"{directory}/meeting"),
                    *(timing if is_timed else []),
                    *("--quantization", args.quantization, "--kv-cache-dtype", args.kv_cache_dtype),
                ],
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(size)
        ]
        try:
            outputs = [process.communicate(timeout=TIMEOUT_S)[0] for process in processes]
        finally:
            for process in processes:
                process.kill()
        for process in processes:
            if process.returncode:
                raise SystemExit(f"a rank ended with status {process.returncode}")
    return [json.loads(output.splitlines()[-1]) for output in outputs]


if __name__ == "__main__":
    main()
