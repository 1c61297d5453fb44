"""What every engine's worker does alike: read the arguments, time the workload and one request alone, print JSON.

It runs in the engine's own environment: numpy is all that it may count on.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from workload import Workload, make_workload, vocab_size_of

Generate = Callable[[Sequence[list[int]], Sequence[int]], list[list[int]]]
"""Prompts and the number of tokens wanted for each, to the tokens."""

ALONE_PROMPT = 128
ALONE_TOKENS = 64
ALONE_REPEATS = 3


def run(make_engine: Callable[[argparse.Namespace, Workload], Generate]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), required=True)
    parser.add_argument("--requests", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--max-prompt", type=int, required=True)
    args = parser.parse_args()
    workload = make_workload(args.requests, vocab_size_of(args.checkpoint), max_prompt=args.max_prompt)
    generate = make_engine(args, workload)
    generate(workload.prompts[:2], [4, 4])  # warm-up
    alone = (workload.prompts[0] * ALONE_PROMPT)[:ALONE_PROMPT]
    batch1_s = statistics.median(_time_alone(generate, alone) for _ in range(ALONE_REPEATS))
    start = time.perf_counter()
    tokens = generate(workload.prompts, workload.max_tokens)
    seconds = time.perf_counter() - start
    assert list(map(len, tokens)) == workload.max_tokens, "an engine must give as many tokens as asked for"
    print(json.dumps({"seconds": seconds, "batch1_s_per_token": batch1_s, "tokens": tokens}))


def _time_alone(generate: Generate, prompt: list[int]) -> float:
    """Seconds per token after the first."""
    times: list[float] = []
    for num_tokens in (1, 1 + ALONE_TOKENS):
        start = time.perf_counter()
        generate([prompt], [num_tokens])
        times.append(time.perf_counter() - start)
    return (times[1] - times[0]) / ALONE_TOKENS
