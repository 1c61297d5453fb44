"""Every kernel against its reference, and its time against the device's roofline."""

import importlib

import torch
from gpu_engine_timing import Limits, seconds
from ops.case import Case, Setting

OPS = (
    "rms_norm",
    "rotary_and_write_kv",
    "paged_attention",
    "silu_and_mul",
    "quantize_rows",
    "sample_tokens",
)


@torch.inference_mode()
def check_and_time(setting: Setting, limits: Limits) -> dict[str, dict[str, float | bool]]:
    """A row per case: `error`, the largest absolute difference; `ok`; `us`; `roofline`, the least time by ours."""
    rows: dict[str, dict[str, float | bool]] = {}
    print(f"{'kernel':<52}{'error':>10}{'':>7}{'us':>10}{'of roofline':>13}")
    for op in OPS:
        for case in importlib.import_module(f"ops.{op}").cases(setting):
            error = _error(case)
            ok = error <= case.tolerance
            took = seconds(case.run, setting.device)
            share = limits.seconds(case.bytes, case.flops) / took
            rows[case.name] = {"error": error, "ok": ok, "us": 1e6 * took, "roofline": share}
            print(
                f"{case.name:<52}{error:>10.2g}{'' if ok else '  WRONG':>7}{1e6 * took:>10.1f}{share:>13.0%}",
                flush=True,
            )
    return rows


def _error(case: Case) -> float:
    """Infinite where one has a number that is none."""
    worst = 0.0
    for got, wanted in zip(case.got(), case.wanted(), strict=True):
        assert got.shape == wanted.shape, f"{case.name}: {got.shape} and {wanted.shape}"
        difference = (got.double() - wanted.double()).abs().max()
        worst = max(worst, float(difference) if bool(difference.isfinite()) else float("inf"))
    return worst
