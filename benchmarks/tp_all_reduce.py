"""What the ranks of a tensor parallel replica on one CPU host pay to talk: shared memory against gloo.

    python benchmarks/tp_all_reduce.py [--ranks 2] [--rounds 7] [--engine] [--unpinned]
        [--keep benchmarks/results]

Both carry the same tensors in the same processes, in turns, each rank on cores of its own if there are enough: the
sum after half a layer (tokens x hidden size), the logits' gather, a step's message. Medians over the rounds of rank
0's time per call; the sums of two ranks must be equal bit by bit. `--engine` runs the `small` Llama over each as
well, 1 and 64 sequences, tokens/s. The last line is JSON.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from kept_results import keep
from nfold.cluster.provenance import provenance
from nfold.models.engine.generate import generate
from nfold.models.engine.native import NativeEngine
from nfold.models.engine.protocol import SamplingParams
from nfold.models.engine.settings import EngineSettings
from nfold.models.engine.tp_loop import follow
from nfold.models.parallel import TpGroup
from workload import SMALL, make_checkpoint

CPU = torch.device("cpu")
HIDDEN_SIZES = (64, 512, 1024, 4096)
NUMS_OF_TOKENS = (1, 8, 64, 512)
DTYPES = (torch.float32, torch.bfloat16)
VOCAB_SIZE = 32000
MESSAGE_BYTES = (100, 20_000)
ROUND_S = 0.02
TIMEOUT_S = 120.0
NUM_DECODES = 64
TRANSPORTS = ("gloo", "shared")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--engine", action="store_true", help="tokens/s of an engine over each, too")
    parser.add_argument("--unpinned", action="store_true", help="the system places the ranks' threads")
    parser.add_argument("--keep", type=Path, help="a folder: also write the last line there, as kept results are")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        checkpoint = make_checkpoint(Path(directory) / "small", SMALL, "bfloat16") if args.engine else None
        context = multiprocessing.get_context("spawn")
        arguments = (args.ranks, f"file://{directory}/meeting", args.rounds, not args.unpinned, checkpoint)
        others = [context.Process(target=run_rank, args=(rank, *arguments)) for rank in range(1, args.ranks)]
        for process in others:
            process.start()
        try:
            figures = run_rank(0, *arguments)
            for process in others:
                process.join(TIMEOUT_S)
        finally:
            for process in others:
                process.kill()
    line = {"ranks": args.ranks, "pinned": not args.unpinned, **figures, "provenance": provenance().model_dump()}
    keep("tp_all_reduce", line, args.keep)
    print(json.dumps(line))


def run_rank(
    rank: int, size: int, method: str, rounds: int, is_pinned: bool, checkpoint: Path | None
) -> dict[str, Any]:
    cores = sorted(os.sched_getaffinity(0))
    per_rank = len(cores) // size
    if per_rank and is_pinned:
        os.sched_setaffinity(0, cores[rank * per_rank : (rank + 1) * per_rank])
    torch.set_num_threads(max(1, per_rank))
    groups = {
        name: TpGroup.connect(rank, size, f"{method}-{name}", CPU, TIMEOUT_S, shares_memory=name == "shared")
        for name in TRANSPORTS
    }
    if groups["shared"]._memory is None:
        sys.exit("the ranks cannot share memory here (run with logging to see why): nothing to compare")
    figures = {"us_per_call": collectives(groups, rounds)}
    if checkpoint is not None:
        figures["engine_tokens_per_s"] = engines(groups, checkpoint)
    for group in groups.values():
        group.barrier()
        group.close()
    return figures


def collectives(groups: dict[str, TpGroup], rounds: int) -> dict[str, dict[str, float]]:
    rank = groups["gloo"].rank
    if rank == 0:
        print(f"{'':34}{'gloo us':>10}{'shared us':>10}{'gloo/shared':>12}")
    found: dict[str, dict[str, float]] = {}

    def compare(name: str, call: Callable[[TpGroup], object]) -> None:
        times = {key: statistics.median(times) for key, times in timed(groups, call, rounds).items()}
        found[name] = {key: round(us, 1) for key, us in times.items()}
        found[name]["ratio"] = round(times["gloo"] / times["shared"], 2)
        if rank == 0:
            print(f"{name:34}{times['gloo']:10.1f}{times['shared']:10.1f}{found[name]['ratio']:12.2f}", flush=True)

    for dtype in DTYPES:
        for hidden_size in HIDDEN_SIZES:
            for num_tokens in NUMS_OF_TOKENS:
                generator = torch.Generator().manual_seed(rank)
                x = torch.randn(num_tokens, hidden_size, generator=generator).to(dtype)
                sums = [group.all_reduce(x.clone()) for group in groups.values()]
                if groups["gloo"].size == 2 and not torch.equal(*sums):
                    sys.exit(f"rank {rank}: sums of {num_tokens} x {hidden_size} {dtype} differ")
                y = torch.zeros_like(x)
                compare(
                    f"sum {num_tokens} x {hidden_size} {dtype}".replace("torch.", ""),
                    lambda group, y=y: group.all_reduce(y),
                )
    for num_rows in (1, 64):
        logits = torch.zeros(num_rows, VOCAB_SIZE // groups["gloo"].size)
        compare(f"gather {num_rows} x {VOCAB_SIZE} float32", lambda group, x=logits: group.all_gather_last(x))
    for num_bytes in MESSAGE_BYTES:
        message = bytes(num_bytes) if rank == 0 else None
        compare(f"message of {num_bytes} bytes", lambda group, sent=message: group.broadcast_bytes(sent))
    return found


def timed(groups: dict[str, TpGroup], call: Callable[[TpGroup], object], rounds: int) -> dict[str, list[float]]:
    """Microseconds per call; every rank does the same number of calls, as rank 0 finds that a round needs."""
    times: dict[str, list[float]] = {name: [] for name in groups}
    num_calls = dict.fromkeys(groups, 3)
    for number in range(-1, rounds):
        for name, group in groups.items():
            group.barrier()
            start = time.perf_counter()
            for _ in range(num_calls[name]):
                call(group)
            each_s = (time.perf_counter() - start) / num_calls[name]
            if number < 0:
                wanted = str(max(3, min(2000, int(ROUND_S / each_s)))).encode()
                num_calls[name] = int(group.broadcast_bytes(wanted if group.rank == 0 else None))
            else:
                times[name].append(each_s * 1e6)
    return times


def engines(groups: dict[str, TpGroup], checkpoint: Path) -> dict[str, Any]:
    settings = EngineSettings(model_dir=checkpoint, kv_cache_bytes=64 << 20, max_num_seqs=64, prefix_cache=False)
    rates: dict[int, dict[str, list[float]]] = {n: {name: [] for name in groups} for n in (1, 64)}
    for _ in range(3):
        for name, group in groups.items():
            engine = NativeEngine.load(settings, group, CPU)
            if group.rank > 0:
                follow(engine)
                continue
            for num_sequences, found in rates.items():
                params = [SamplingParams(max_tokens=NUM_DECODES, ignore_eos=True)] * num_sequences
                prompts = [[10 + number] * 8 for number in range(num_sequences)]
                generate(engine, prompts[:1], params[:1])
                start = time.perf_counter()
                generate(engine, prompts, params)
                found[name].append(num_sequences * NUM_DECODES / (time.perf_counter() - start))
            engine.close()
    if groups["gloo"].rank > 0:
        return {}
    found = {
        f"{n} sequences": {k: round(statistics.median(v), 1) for k, v in rate.items()} for n, rate in rates.items()
    }
    for name, rate in found.items():
        print(f"engine, {name}: {rate['gloo']} tokens/s over gloo, {rate['shared']} through shared memory")
    return found


if __name__ == "__main__":
    main()
