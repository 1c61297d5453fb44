"""What an engine costs before its first request: memory per rank against what was configured, and time to load
against reading the checkpoint's file twice.

    python benchmarks/startup.py [--tp 1] [--tp 2] [--quantization fp8] [--kv-cache-dtype fp8] [--repeats 5]

The model is the `small` Llama of the engine benchmarks, bf16, from a fixed seed. Its file is in the page cache, for
both sides. Loading is timed with a small KV cache, so that the time is that of the weights. Resident bytes are what
the engine adds to a process that has already had another engine, when all of a KV cache of the default size is
written. The last line is JSON.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from workload import SMALL, make_checkpoint

MAX_SHARE = 1.1
MAX_READS = 2.0
SMALL_CACHE_BYTES = 16 << 20
BYTES_PER_WEIGHT = 2
TIMEOUT_S = 300.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tp", type=int, action="append", help="ranks; default: 1; repeatable")
    parser.add_argument("--quantization", choices=("auto", "fp8", "mxfp4"), default="auto")
    parser.add_argument("--kv-cache-dtype", choices=("auto", "fp8"), default="auto")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        checkpoint = make_checkpoint(Path(directory) / "small", SMALL, "bfloat16")
        file = checkpoint / "model.safetensors"
        weight_bytes = file.stat().st_size
        print(f"small Llama, bf16, {weight_bytes / 1e6:.0f} MB; a KV cache of the default size on each rank")
        figures = {f"tp{size}": measure(size, checkpoint, args) for size in args.tp or [1]}
    print(json.dumps({"weight_bytes": weight_bytes, **figures}))


def measure(size: int, checkpoint: Path, args: argparse.Namespace) -> dict[str, object]:
    """Loads and reads take turns; medians."""
    file = checkpoint / "model.safetensors"
    runs: list[list[dict[str, float]]] = []
    reads_s: list[float] = []
    loads_s: list[float] = []
    for _ in range(args.repeats):
        reads_s.append(read_s(file))
        loads_s.append(max(rank["load_s"] for rank in run_ranks(size, checkpoint, args, SMALL_CACHE_BYTES)))
        runs.append(run_ranks(size, checkpoint, args))
    load_s = statistics.median(loads_s)
    once_s = statistics.median(reads_s)
    share = statistics.median(
        max(rank["resident_bytes"] / configured(file, size, rank) for rank in ranks) for ranks in runs
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


def configured(file: Path, size: int, rank: dict[str, float]) -> float:
    """On CPU quantised weights are held as what is not quantised: bf16, or float32 where that is emulated."""
    return file.stat().st_size / BYTES_PER_WEIGHT * rank["bytes_per_weight"] / size + rank["kv_cache_bytes"]


def read_s(file: Path) -> float:
    """Seconds to read the file into new memory."""
    start = time.perf_counter()
    file.read_bytes()
    return time.perf_counter() - start


def run_ranks(
    size: int, checkpoint: Path, args: argparse.Namespace, kv_cache_bytes: int | None = None
) -> list[dict[str, float]]:
    script = Path(__file__).with_name("startup_rank.py")
    with tempfile.TemporaryDirectory() as directory:
        processes = [
            subprocess.Popen(
                [
                    sys.executable,
                    str(script),
                    *("--checkpoint", str(checkpoint), "--rank", str(rank), "--size", str(size)),
                    *("--meeting", f"{directory}/meeting"),
                    *(("--kv-cache-bytes", str(kv_cache_bytes)) if kv_cache_bytes else ()),
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
