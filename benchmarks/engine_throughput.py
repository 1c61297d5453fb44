"""nfold's native engine against others on CPU: same checkpoint, same prompts, same run.

    python benchmarks/engine_throughput.py [--rival transformers] [--rival vllm] [--rival openvino]
        [--dtype float32] [--dtype bfloat16] [--requests 64] [--repeats 3] [--keep benchmarks/results]

Each engine runs in a process of its own, in turn, `--repeats` times; the medians count. vLLM and OpenVINO get
virtual environments of their own, made once. Beside the speed of the whole workload: the time per token of one
request alone; both also as a share of what the machine allows, measured in the same run. In float32 the greedy
tokens are compared as well. Last line: JSON, one entry for each type; `ratio` is against the better rival.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from kept_results import keep
from rivals import DEFAULT_FOLDER, HERE, RIVALS
from workload import SMALL, Workload, count_weights, make_checkpoint, make_workload, vocab_size_of

GOAL = 1.25
DTYPE_BYTES = {"float32": 4, "bfloat16": 2}
TIMEOUT_S = 1200


def run_worker(name: str, dtype: str, args: argparse.Namespace) -> dict:
    """The last line of a worker: of nfold, of a rival or of the limits."""
    python, script, environment = Path(sys.executable), HERE / f"engine_{name}.py", {}
    if name in RIVALS:
        rival = RIVALS[name]
        python, script = rival.python(args.venvs), HERE / rival.script
        environment = rival.environment(rival.venv(args.venvs), args.threads)
    command = [str(python), str(script), "--checkpoint", str(args.checkpoints[dtype]), "--dtype", dtype]
    command += ["--requests", str(args.requests), "--threads", str(args.threads)]
    command += ["--max-prompt", str(args.max_prompt)]
    environment = os.environ | {"OMP_NUM_THREADS": str(args.threads)} | environment
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    return next(json.loads(line) for line in reversed(done.stdout.splitlines()) if line.startswith("{"))


def compare(dtype: str, args: argparse.Namespace) -> dict[str, object]:
    """The figures of one type."""
    workload = make_workload(args.requests, vocab_size_of(args.checkpoints[dtype]), max_prompt=args.max_prompt)
    print(
        f"{dtype}: {args.requests} requests, {workload.num_prompt_tokens} prompt and {workload.num_output_tokens} "
        f"output tokens, greedy, {args.threads} threads"
    )
    engines = ["nfold", *args.rival]
    runs: dict[str, list[dict]] = {name: [] for name in engines}
    for repeat in range(args.repeats):
        for name in engines:
            run = run_worker(name, dtype, args)
            runs[name].append(run)
            speed, alone = workload.num_output_tokens / run["seconds"], 1e3 * run["batch1_s_per_token"]
            print(
                f"  run {repeat + 1}  {name:<13}{speed:8.1f} output tokens/s, alone {alone:6.2f} ms per token",
                flush=True,
            )
    speeds = {
        name: workload.num_output_tokens / statistics.median(run["seconds"] for run in runs[name])
        for name in engines
    }
    alone = {name: statistics.median(run["batch1_s_per_token"] for run in runs[name]) for name in engines}
    rival = max(args.rival, key=speeds.__getitem__)
    figures: dict[str, object] = {
        "ratio": speeds["nfold"] / speeds[rival],
        "tokens_per_s": speeds["nfold"],
        "rival_tokens_per_s": speeds[rival],
        "rival": rival,
        "batch1_ratio": min(alone[name] for name in args.rival) / alone["nfold"],
        "all_tokens_per_s": speeds,
        "all_batch1_ms_per_token": {name: 1e3 * seconds for name, seconds in alone.items()},
    }
    figures |= shares(dtype, workload, speeds["nfold"], alone["nfold"], args)
    if dtype == "float32":
        pairs = zip(runs["nfold"][0]["tokens"], runs[rival][0]["tokens"], strict=True)
        figures["equal_answers"] = sum(ours == theirs for ours, theirs in pairs)
        print(f"equal greedy answers: {figures['equal_answers']} of {args.requests}")
    print(
        f"{dtype}: nfold {speeds['nfold']:.1f} tokens/s, {rival} {speeds[rival]:.1f}: {figures['ratio']:.2f} times "
        f"(goal {GOAL}); alone {figures['batch1_ratio']:.2f} times as fast as the fastest rival (goal 1)\n"
        f"of what the machine allows: {figures['batch1_bandwidth_share']:.0%} of its memory bandwidth alone, "
        f"{figures['matrix_share']:.0%} of its matrix rate with all requests"
    )
    return figures


def shares(
    dtype: str, workload: Workload, tokens_per_s: float, batch1_s: float, args: argparse.Namespace
) -> dict[str, float]:
    """Of the machine's limits: weights read once for each token of a request alone, the workload's products."""
    limits = run_worker("limits", dtype, args)
    layers, head = count_weights(args.checkpoints[dtype])
    weight_bytes = (layers + head) * DTYPE_BYTES[dtype]
    flops = 2 * layers * (workload.num_prompt_tokens + workload.num_output_tokens)
    flops += 2 * head * workload.num_output_tokens
    seconds = workload.num_output_tokens / tokens_per_s
    return {
        "batch1_bandwidth_share": weight_bytes / batch1_s / limits["bytes_per_s"],
        "matrix_share": flops / seconds / limits["flop_per_s"],
        "machine_gbytes_per_s": limits["bytes_per_s"] / 1e9,
        "machine_gflop_per_s": limits["flop_per_s"] / 1e9,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rival", choices=sorted(RIVALS), action="append", help="default: transformers; repeatable"
    )
    parser.add_argument(
        "--dtype", choices=sorted(DTYPE_BYTES), action="append", help="default: float32; repeatable"
    )
    parser.add_argument(
        "--checkpoint", type=Path, help="a Llama in Hugging Face form; default: 168M random weights"
    )
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--max-prompt", type=int, default=512)
    parser.add_argument(
        "--venvs", type=Path, default=DEFAULT_FOLDER, help="where the rivals' environments are kept"
    )
    parser.add_argument("--keep", type=Path, help="a folder: also write the last line there, as kept results are")
    args = parser.parse_args()
    args.rival = args.rival or ["transformers"]
    args.dtype = args.dtype or ["float32"]
    for name in args.rival:
        RIVALS[name].python(args.venvs)
    with tempfile.TemporaryDirectory() as directory:
        args.checkpoints = {
            dtype: args.checkpoint or make_checkpoint(Path(directory) / f"small-{dtype}", SMALL, dtype)
            for dtype in args.dtype
        }
        figures = {dtype: compare(dtype, args) for dtype in args.dtype}
    from nfold.cluster.provenance import provenance

    line = (
        figures
        | {"rivals": args.rival, "num_requests": args.requests, "repeats": args.repeats, "threads": args.threads}
        | {"provenance": provenance().model_dump()}
    )
    keep("-".join(["engine_throughput", *args.rival, *args.dtype]), line, args.keep)
    print(json.dumps(line))


if __name__ == "__main__":
    main()
