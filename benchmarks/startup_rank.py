"""One rank of `startup.py`, in a process of its own: loads, uses its whole KV cache, and prints what that took.

before         after loading                  after use
| python, torch, a tiny engine | weights ...  | KV cache ... |
"""

import argparse
import json
import mmap
import os
import time
from pathlib import Path

import torch
from nfold.models.engine.generate import generate
from nfold.models.engine.native import NativeEngine
from nfold.models.engine.protocol import SamplingParams
from nfold.models.engine.settings import EngineSettings
from nfold.models.engine.tp_loop import follow
from nfold.models.parallel import TpGroup
from nfold.models.sums import CHECKPOINT

CPU = torch.device("cpu")
TIMEOUT_S = 120.0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--meeting", required=True)
    parser.add_argument("--kv-cache-bytes", type=int, default=None)
    parser.add_argument("--read", choices=("cold", "warm"), help="time reading the file first; not for memory")
    parser.add_argument("--quantization", default="auto")
    parser.add_argument("--kv-cache-dtype", default="auto")
    args = parser.parse_args()
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // args.size))
    tp = TpGroup.connect(args.rank, args.size, f"file://{args.meeting}", CPU, TIMEOUT_S)
    use(NativeEngine.load(EngineSettings(model_dir=CHECKPOINT, kv_cache_bytes=1 << 20), tp, CPU))
    settings = EngineSettings(
        model_dir=args.checkpoint,
        kv_cache_bytes=args.kv_cache_bytes,
        quantization=args.quantization,
        kv_cache_dtype=args.kv_cache_dtype,
        prefix_cache=False,
    )
    reading_s = read_s(args.checkpoint / "model.safetensors", args.read) if args.read and args.rank == 0 else None
    tp.barrier()
    before, start_s = resident_bytes("VmRSS"), time.perf_counter()
    engine = NativeEngine.load(settings, tp, CPU)
    tp.barrier()
    load_s, peak_bytes = time.perf_counter() - start_s, resident_bytes("VmHWM") - before
    loaded_bytes = resident_bytes("VmRSS") - before
    use(engine)
    tp.barrier()
    figures = {
        "read_s": reading_s,
        "load_s": load_s,
        "loaded_bytes": loaded_bytes,
        "peak_bytes": peak_bytes,
        "resident_bytes": resident_bytes("VmRSS") - before,
        "kv_cache_bytes": engine.info.settings["kv_cache_bytes"],
        "bytes_per_weight": getattr(torch, str(engine.info.settings["dtype"])).itemsize,
    }
    print(json.dumps(figures))


def read_s(file: Path, memory: str) -> float:
    """Seconds to read the file into new memory. `warm`: what is free was in use just before, then and on return."""
    num_bytes = file.stat().st_size
    if memory == "warm":
        use_memory(num_bytes)
    start_s = time.perf_counter()
    content = file.read_bytes()  # held, so that giving it back is not timed
    taken_s = time.perf_counter() - start_s
    del content
    if memory == "warm":
        use_memory(num_bytes)
    return taken_s


def use_memory(num_bytes: int) -> None:
    """Writes to so many bytes in ordinary pages, and as many in huge ones, and frees them."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    with mmap.mmap(-1, num_bytes, flags) as huge, mmap.mmap(-1, num_bytes, flags) as ordinary:
        huge.madvise(mmap.MADV_HUGEPAGE)
        for memory in (ordinary, huge):
            memory[:: mmap.PAGESIZE] = bytes(len(range(0, num_bytes, mmap.PAGESIZE)))


def use(engine: NativeEngine) -> None:
    """Steps with as many tokens as there may be, and every block of the KV cache written once."""
    for cache in (*engine.core._kv.k, *engine.core._kv.v):
        cache.zero_()
    if engine.tp.rank > 0:
        follow(engine)
        return
    longest = engine.info.max_model_len - 4
    params = [SamplingParams(max_tokens=4, ignore_eos=True)] * 2
    generate(engine, [[1] * longest] * 2, params)
    engine.close()


def resident_bytes(field: str) -> int:
    """`VmRSS` now, or `VmHWM`, the highest so far."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) << 10
    raise ValueError(f"/proc/self/status has no {field}")


if __name__ == "__main__":
    main()
