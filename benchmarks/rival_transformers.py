"""transformers' continuous batching as a worker of `engine_throughput.py`."""

import argparse
import itertools
from collections.abc import Sequence

import engine_worker
import torch
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig
from workload import Workload

BLOCK_SIZE = 16


def make_engine(args: argparse.Namespace, workload: Workload) -> engine_worker.Generate:
    torch.set_num_threads(args.threads)
    model = AutoModelForCausalLM.from_pretrained(
        args.checkpoint, dtype=getattr(torch, args.dtype), attn_implementation="sdpa"
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
    runs = itertools.count()

    def run(prompts: Sequence[list[int]], num_tokens: Sequence[int]) -> list[list[int]]:
        name = next(runs)
        for index, (prompt, count) in enumerate(zip(prompts, num_tokens, strict=True)):
            manager.add_request(prompt, f"{name}-{index}", max_new_tokens=count)
        tokens: dict[int, list[int]] = {}
        while len(tokens) < len(prompts):
            result = manager.get_result(timeout=600)
            if result is None or result.error:
                raise SystemExit(f"transformers failed: {result.error if result else 'no result in 600 s'}")
            tokens[int(result.request_id.split("-")[1])] = list(result.generated_tokens)
        return [tokens[index] for index in range(len(prompts))]

    return run


if __name__ == "__main__":
    engine_worker.run(make_engine)
