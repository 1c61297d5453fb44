"""What this machine allows, as a worker of `engine_throughput.py`: bytes read per second and products per second.

The matrix rate is oneDNN's with packed weights, 64 rows: the vendor's library, not ours, is the yardstick.
"""

import argparse
import json
import time
from collections.abc import Callable

import torch

REPEATS = 15
ROWS = 64
SHAPES = ((1024, 1536), (1024, 1024), (1024, 5632), (2816, 1024))
READ_BYTES = 512 << 20


def best_s(work: Callable[[], object]) -> float:
    times: list[float] = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), required=True)
    parser.add_argument("--threads", type=int, required=True)
    args, _ = parser.parse_known_args()
    torch.set_num_threads(args.threads)
    x = torch.ones(READ_BYTES // 4)
    bytes_per_s = x.nbytes / best_s(x.sum)
    rate = 0.0
    for num_inputs, num_outputs in SHAPES:
        weight = torch.ones(num_outputs, num_inputs, dtype=getattr(torch, args.dtype))
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
        rows = torch.ones(ROWS, num_inputs, dtype=weight.dtype)
        seconds = best_s(
            lambda rows=rows, packed=packed: torch.ops.mkldnn._linear_pointwise(rows, packed, None, "none", [], "")
        )
        rate = max(rate, 2 * ROWS * num_inputs * num_outputs / seconds)
    print(json.dumps({"bytes_per_s": bytes_per_s, "flop_per_s": rate}))


if __name__ == "__main__":
    main()
