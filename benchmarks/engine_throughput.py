"""nfold's native engine against transformers' continuous batching: same checkpoint, same prompts, same run.

    python benchmarks/engine_throughput.py [--checkpoint DIR] [--dtype bfloat16] [--requests 64] [--repeats 3]

Each engine runs in a process of its own, in turn, `--repeats` times; the medians count. In float32 the greedy
tokens of both are compared as well. Last line: JSON.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from workload import SMALL, Workload, make_checkpoint, make_workload, vocab_size_of

ENGINES = ("nfold", "transformers")
BLOCK_SIZE = 16


def run_nfold(checkpoint: Path, dtype: str, workload: Workload) -> tuple[float, list[list[int]]]:
    import torch
    from nfold.models.engine.generate import generate
    from nfold.models.engine.native import NativeEngine
    from nfold.models.engine.protocol import SamplingParams
    from nfold.models.engine.settings import EngineSettings
    from nfold.models.parallel import TpGroup

    settings = EngineSettings(model_dir=checkpoint, dtype=dtype, prefix_cache=False, block_size=BLOCK_SIZE)
    engine = NativeEngine.load(settings, TpGroup.single(), torch.device("cpu"))
    generate(engine, workload.prompts[:2], [SamplingParams(max_tokens=4, ignore_eos=True)] * 2)
    sampling = [SamplingParams(max_tokens=n, ignore_eos=True) for n in workload.max_tokens]
    start = time.perf_counter()
    completions = generate(engine, workload.prompts, sampling)
    return time.perf_counter() - start, [list(map(int, completion.token_ids)) for completion in completions]


def run_transformers(checkpoint: Path, dtype: str, workload: Workload) -> tuple[float, list[list[int]]]:
    import torch
    from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

    model = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=getattr(torch, dtype), attn_implementation="sdpa"
    )
    num_blocks = sum(
        -(-(len(p) + n) // BLOCK_SIZE) for p, n in zip(workload.prompts, workload.max_tokens, strict=True)
    )
    manager = model.init_continuous_batching(
        generation_config=GenerationConfig(do_sample=False, eos_token_id=-1, max_new_tokens=192),
        continuous_batching_config=ContinuousBatchingConfig(
            page_size=BLOCK_SIZE, num_blocks=num_blocks + 64, max_batch_tokens=2048, allow_block_sharing=False
        ),
    )
    manager.start()
    manager.add_request(workload.prompts[0], "warm-up", max_new_tokens=4)
    manager.get_result("warm-up", timeout=120)
    start = time.perf_counter()
    for index, (prompt, num_tokens) in enumerate(zip(workload.prompts, workload.max_tokens, strict=True)):
        manager.add_request(prompt, str(index), max_new_tokens=num_tokens)
    tokens: dict[int, list[int]] = {}
    while len(tokens) < len(workload.prompts):
        result = manager.get_result(timeout=600)
        if result is None or result.error:
            raise SystemExit(f"transformers failed: {result.error if result else 'no result in 600 s'}")
        tokens[int(result.request_id)] = list(result.generated_tokens)
    seconds = time.perf_counter() - start
    manager.stop(block=True)
    return seconds, [tokens[index] for index in range(len(workload.prompts))]


def worker(args: argparse.Namespace) -> None:
    import torch

    torch.set_num_threads(args.threads)
    workload = make_workload(args.requests, vocab_size_of(args.checkpoint), max_prompt=args.max_prompt)
    run = {"nfold": run_nfold, "transformers": run_transformers}[args.worker]
    seconds, tokens = run(args.checkpoint, args.dtype, workload)
    num_tokens = sum(map(len, tokens))
    assert num_tokens == workload.num_output_tokens, (num_tokens, workload.num_output_tokens)
    print(json.dumps({"tokens_per_s": num_tokens / seconds, "tokens": tokens}))


def measure(engine: str, args: argparse.Namespace) -> dict:
    command = [sys.executable, __file__, "--worker", engine, "--checkpoint", str(args.checkpoint)]
    command += ["--dtype", args.dtype, "--requests", str(args.requests), "--threads", str(args.threads)]
    command += ["--max-prompt", str(args.max_prompt)]
    environment = os.environ | {"OMP_NUM_THREADS": str(args.threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{engine} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(args: argparse.Namespace) -> None:
    workload = make_workload(args.requests, vocab_size_of(args.checkpoint), max_prompt=args.max_prompt)
    print(
        f"{args.requests} requests, {workload.num_prompt_tokens} prompt and {workload.num_output_tokens} output "
        f"tokens, greedy, {args.dtype}, {args.threads} threads, {args.checkpoint.name}"
    )
    runs: dict[str, list[dict]] = {engine: [] for engine in ENGINES}
    for repeat in range(args.repeats):
        for engine in ENGINES:
            runs[engine].append(measure(engine, args))
            print(
                f"  run {repeat + 1}  {engine:<13}{runs[engine][-1]['tokens_per_s']:8.1f} output tokens/s",
                flush=True,
            )
    ours, rival = (statistics.median(run["tokens_per_s"] for run in runs[engine]) for engine in ENGINES)
    equal = sum(a == b for a, b in zip(runs["nfold"][0]["tokens"], runs["transformers"][0]["tokens"], strict=True))
    print(f"nfold {ours:.1f} tokens/s, transformers {rival:.1f}: {ours / rival:.2f} times (goal 3)")
    print(f"equal greedy answers: {equal} of {args.requests}")
    figures: dict[str, object] = {
        "dtype": args.dtype,
        "tokens_per_s": ours,
        "rival_tokens_per_s": rival,
        "ratio": ours / rival,
    }
    from nfold.cluster.provenance import provenance

    figures["provenance"] = provenance().model_dump()
    print(json.dumps(figures | {"equal_answers": equal, "num_requests": args.requests, "repeats": args.repeats}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--checkpoint", type=Path, help="a Llama in Hugging Face form; default: 168M random weights"
    )
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="float32")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--max-prompt", type=int, default=512)
    parser.add_argument("--worker", choices=ENGINES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args)
    elif args.checkpoint:
        compare(args)
    else:
        with tempfile.TemporaryDirectory() as directory:
            args.checkpoint = make_checkpoint(Path(directory) / "small-llama", SMALL, args.dtype)
            compare(args)


if __name__ == "__main__":
    main()
