"""How long something takes on the device, and what the device allows."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

_FLUSH_BYTES = 256 << 20  # several times the largest last-level cache


def seconds(run: Callable[[], object], device: torch.device, repeats: int = 15) -> float:
    """The median of some calls, each from a cold cache; on CPU of one, where times say nothing."""
    if device.type == "cpu":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    run()
    flush = torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device=device)
    pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for start, end in pairs:
        flush.zero_()
        start.record()
        run()
        end.record()
    torch.cuda.synchronize(device)
    return median(start.elapsed_time(end) for start, end in pairs) / 1e3


@dataclass(frozen=True)
class Limits:
    """Measured here: a copy, counted both ways, and large products by the vendor's library on random numbers."""

    bytes_per_s: float
    bf16_flop_per_s: float
    fp8_flop_per_s: float

    def seconds(self, bytes: float, flops: float) -> float:
        """The least that work of so many bytes and bfloat16 product operations takes."""
        return max(bytes / self.bytes_per_s, flops / self.bf16_flop_per_s)


def measure_limits(device: torch.device, fp8: torch.dtype, is_tiny: bool) -> Limits:
    size = 256 if is_tiny else 8192
    bytes_per_s = _copy_rate(device, (1 << 18) if is_tiny else (1 << 30))
    a, b = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    bf16 = 2 * size**3 / seconds(lambda: a @ b, device)
    if device.type == "cpu":
        return Limits(bytes_per_s, bf16, bf16)
    a8, b8, ones = a.to(fp8), b.to(fp8).t(), torch.ones(size, 1, device=device)
    fp8_rate = (
        2
        * size**3
        / seconds(
            lambda: torch._scaled_mm(a8, b8, scale_a=ones, scale_b=ones.t(), out_dtype=torch.bfloat16), device
        )
    )
    return Limits(bytes_per_s, bf16, fp8_rate)


def _copy_rate(device: torch.device, num_floats: int) -> float:
    source = torch.randn(num_floats, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: target.copy_(source), device)
