"""Every kernel against its reference, and its time against the device's roofline."""

import importlib
import time

import torch
from gpu_engine_timing import Limits, seconds
from ops.case import Case, Setting

Row = dict[str, float | bool | str]

OPS = (
    "rms_norm",
    "rotary_and_write_kv",
    "paged_attention",
    "silu_and_mul",
    "quantize_rows",
    "sample_tokens",
    "decode_inputs",
)


@torch.inference_mode()
def check_and_time(setting: Setting, limits: Limits, until_s: float) -> dict[str, Row]:
    """A row per case: `error`, the largest absolute difference; `ok`; `us`; `roofline`, the least time by ours.
    Where one failed: `ok` and what was `raised`. After `until_s` of `time.perf_counter` no case begins."""
    rows: dict[str, Row] = {}
    print(f"{'kernel':<52}{'error':>10}{'':>7}{'us':>10}{'of roofline':>13}")
    for op in OPS:
        for case in importlib.import_module(f"ops.{op}").cases(setting):
            if time.perf_counter() > until_s:
                print("no time is left for the other kernels")
                return rows
            try:
                rows[case.name] = _row(case, setting, limits)
            except Exception as error:
                rows[case.name] = {"ok": False, "raised": repr(error)}
                print(f"{case.name:<52}{error!r:.200}", flush=True)
    return rows


def _row(case: Case, setting: Setting, limits: Limits) -> Row:
    error = _error(case)
    ok = error <= case.tolerance
    took = seconds(case.run, setting.device)
    share = limits.seconds(case.bytes, case.flops) / took
    print(
        f"{case.name:<52}{error:>10.2g}{'' if ok else '  WRONG':>7}{1e6 * took:>10.1f}{share:>13.0%}",
        flush=True,
    )
    return {"error": error, "ok": ok, "us": 1e6 * took, "roofline": share}


def _error(case: Case) -> float:
    """Infinite where one has a number that is none."""
    worst = 0.0
    for got, wanted in zip(case.got(), case.wanted(), strict=True):
        assert got.shape == wanted.shape, f"{case.name}: {got.shape} and {wanted.shape}"
        difference = (got.double() - wanted.double()).abs().max()
        worst = max(worst, float(difference) if bool(difference.isfinite()) else float("inf"))
    return worst
