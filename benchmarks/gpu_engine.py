"""The engine on one GPU: kernels right and how fast, then Llama 2 70B Offline, each against the device's roofline.

    python benchmarks/gpu_engine.py [--only kernels|engine] [--keep benchmarks/results]     a GPU; under 8 minutes
    python benchmarks/gpu_engine.py --tiny                                                  anywhere: is it whole?

Runs alone, without Ray; nfold is read from the checkout where it is not installed. Random weights, made on the
device; OpenOrca-like lengths, end-of-sequence ignored, greedy. With `--tiny` the kernels run in Triton's
interpreter and the engine on the CPU's own kernels: its figures say nothing of speed.
Last line: JSON. Exits with 1 when a kernel is wrong or a part failed, which does not keep the others from running.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
import traceback
import types
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from kept_results import keep

ROOT = Path(__file__).resolve().parent.parent
GOAL_TOKENS_PER_S, GOAL_ROOFLINE = 4400.0, 0.70
KEPT_FOR_EXIT_S = 15.0
ENGINE_SHARE = 0.6


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a small model and small shapes, without a GPU")
    parser.add_argument("--only", choices=("kernels", "engine"), help="one half")
    parser.add_argument("--weights", choices=("fp8", "bfloat16"), default="fp8")
    parser.add_argument("--kv", choices=("fp8", "bfloat16"), default="fp8", help="the cache's numbers")
    parser.add_argument("--eager", action="store_true", help="no graphs")
    parser.add_argument("--no-overlap", action="store_true", help="each step is read before the next is launched")
    parser.add_argument("--layers", type=int, help="fewer than the model's 80")
    parser.add_argument("--requests", type=int, default=8000)
    parser.add_argument("--max-num-seqs", type=int, default=1024)
    parser.add_argument("--max-num-batched-tokens", type=int, default=4096)
    parser.add_argument("--block-size", type=int, default=64)
    parser.add_argument("--profile-steps", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=460.0, help="for everything")
    parser.add_argument("--keep", type=Path, help="a folder for the last line")
    args = parser.parse_args()
    if args.tiny:
        args.requests, args.max_num_seqs, args.max_num_batched_tokens, args.block_size = 12, 4, 64, 16
    return args


def find_nfold() -> None:
    """From the checkout where it is not installed."""
    if importlib.util.find_spec("nfold") is None:
        nfold = types.ModuleType("nfold")
        nfold.__path__ = [str(ROOT)]
        sys.modules["nfold"] = nfold


def provenance(device) -> dict[str, str]:
    import torch
    from nfold.kernels.triton import rms_norm

    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": name,
        "commit": commit.stdout.strip() or "unknown",
        "torch": torch.__version__,
        "triton": rms_norm.triton.__version__,
    }


def main() -> None:
    deadline_s = time.perf_counter() + (args := parse_args()).seconds
    if args.tiny:
        os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported
    find_nfold()
    import torch

    if not args.tiny and not torch.cuda.is_available():
        raise SystemExit("gpu_engine.py: torch sees no GPU here; --tiny runs anywhere")
    device = torch.device("cpu" if args.tiny else "cuda:0")
    from gpu_engine_timing import measure_limits
    from nfold.kernels.quantized import fp8_dtype

    fp8 = fp8_dtype(device)
    result: dict[str, object] = {"benchmark": "gpu_engine", "tiny": args.tiny, **provenance(device)}
    limits = measure_limits(device, fp8, args.tiny)
    result["limits"] = limits.__dict__
    print(
        f"{result['hardware']}: copies {limits.bytes_per_s / 1e12:.2f} TB/s, products "
        f"{limits.bf16_flop_per_s / 1e12:.0f} TFLOP/s in bfloat16, {limits.fp8_flop_per_s / 1e12:.0f} in FP8"
    )
    wrong: list[str] = []
    if args.only != "engine":
        # Most of the time is the engine's.
        until_s = deadline_s - (ENGINE_SHARE * args.seconds if args.only is None else 0.0)
        with going_on(result, wrong, "kernels"):
            result["kernels"] = kernels = run_kernels(args, device, fp8, limits, until_s)
            wrong += [name for name, row in kernels.items() if not row["ok"]]
    if args.only != "kernels":
        with going_on(result, wrong, "graphs"):
            result["graphs"] = graphs = check_graphs(device, args.tiny)
            wrong += [] if graphs["equal"] == graphs["answers"] else ["graphs"]
        with going_on(result, wrong, "engine"):
            result |= run_engine(args, device, fp8, limits, deadline_s)
    keep("gpu_engine", result, args.keep)
    if wrong:
        print(f"wrong: {', '.join(wrong)}")
    print(json.dumps(result))
    sys.exit(1 if wrong else 0)


@contextmanager
def going_on(result: dict[str, object], wrong: list[str], part: str) -> Generator[None]:
    """One part's failure does not lose what the others find: device time is dear."""
    try:
        yield
    except Exception as error:
        traceback.print_exc()
        result[f"{part}_raised"] = repr(error)
        wrong.append(part)


def run_kernels(args: argparse.Namespace, device, fp8, limits, until_s: float):
    import torch
    from gpu_engine_kernels import check_and_time
    from nfold.kernels.triton import ops as triton_ops
    from ops.case import Setting, Sizes

    # The interpreter's products do not know bfloat16.
    dtype = torch.float32 if args.tiny else torch.bfloat16
    sizes = Sizes.tiny() if args.tiny else Sizes(block_size=args.block_size)
    return check_and_time(Setting(triton_ops, sizes, device, fp8, dtype), limits, until_s)


def check_graphs(device, is_tiny: bool) -> dict[str, int]:
    """How many of a small model's answers are the same, token by token, from graphs, each launched before the last
    is read, and from their steps one by one; on CPU, where no graphs are, from padded steps and from plain ones."""
    import torch
    from gpu_engine_model import SMALL, TINY, random_llama
    from gpu_engine_offline import make_engine, make_requests
    from nfold.models.engine.generate import collect_completions

    model, _ = random_llama(TINY if is_tiny else SMALL, "bfloat16", device)
    requests = make_requests(12 if is_tiny else 64, model.config.vocab_size, 40)
    answers = []
    for decodes, overlap in zip(
        ("padded", "plain") if is_tiny else ("graphs", "padded"), (True, False), strict=True
    ):
        engine, _ = make_engine(
            model,
            decodes=decodes,
            overlap=overlap,
            kv_cache_bytes=1 << 30,
            kv_dtype=torch.bfloat16,
            max_num_seqs=24,
            max_num_batched_tokens=256,
            block_size=16,
        )
        engine.submit(requests)
        steps = []
        while engine.has_work():
            steps.append(engine.step())
        answers.append([answer.token_ids.tolist() for answer in collect_completions(steps, len(requests))])
    equal = sum(ours == theirs for ours, theirs in zip(*answers, strict=True))
    print(f"graphs with overlap: {equal} of {len(requests)} answers of a small model are the same without both")
    return {"equal": equal, "answers": len(requests)}


def run_engine(args: argparse.Namespace, device, fp8, limits, deadline_s: float) -> dict[str, object]:
    from dataclasses import replace

    import torch
    from gpu_engine_model import LLAMA_2_70B, TINY, random_llama
    from gpu_engine_offline import figures, make_engine, make_requests, run_offline, saturated, split_step
    from nfold.models.kv_cache import KvCache

    config = TINY if args.tiny else LLAMA_2_70B
    config = replace(config, num_layers=args.layers or config.num_layers)
    start_s = time.perf_counter()
    model, weights = random_llama(config, args.weights, device)
    kv_dtype = fp8 if args.kv == "fp8" else torch.bfloat16
    decodes = "padded" if args.tiny else "plain" if args.eager else "graphs"
    engine, settings = make_engine(
        model,
        decodes=decodes,
        overlap=False if args.no_overlap else None,
        kv_dtype=kv_dtype,
        max_num_seqs=args.max_num_seqs,
        max_num_batched_tokens=args.max_num_batched_tokens,
        block_size=args.block_size,
    )
    kv_tokens = settings.num_kv_blocks * settings.block_size
    print(
        f"{config.num_layers} layers, {weights.bytes / 1e9:.1f} GB of weights ({args.weights}), a cache of "
        f"{kv_tokens} tokens ({args.kv}), made in {time.perf_counter() - start_s:.0f} s"
    )
    longest = 40 if args.tiny else 1024
    warm_up = make_requests(min(args.requests, 64), config.vocab_size, min(longest, 32))
    run_offline(engine, warm_up, 60.0)
    requests = make_requests(args.requests, config.vocab_size, longest)
    steps = run_offline(engine, requests, deadline_s - time.perf_counter() - KEPT_FOR_EXIT_S)
    if not engine.has_work():
        engine.submit(requests)
    split = split_step(engine, args.profile_steps)
    kv_bytes = KvCache.bytes_per_block(1, config.num_layers, model.num_kv_heads, config.head_dim, kv_dtype)
    window = saturated(steps, settings.max_num_seqs)
    found = figures(steps, window, weights, kv_bytes, limits, args.weights == "fp8")
    print(
        f"Offline: {found['tokens_per_s']:.0f} tokens/s over {found['window_s']:.0f} s saturated (goal "
        f"{GOAL_TOKENS_PER_S:.0f}), {found['tokens_per_s_whole']:.0f} over all; a step {found['step_ms']:.1f} ms\n"
        f"of the roofline {found['roofline_share']:.0%} (goal {GOAL_ROOFLINE:.0%}): memory "
        f"{found['memory_share']:.0%}, products {found['compute_share']:.0%}"
    )
    print("a step: " + ", ".join(f"{part} {ms:.2f} ms" for part, ms in split.items()))
    names = {"decodes": decodes, "model": f"Llama 2 70B, {config.num_layers} layers" if not args.tiny else "tiny"}
    return (
        names
        | {"weights": args.weights, "kv": args.kv, "settings": settings.as_dict()}
        | found
        | {"split_ms": split}
    )


if __name__ == "__main__":
    main()
