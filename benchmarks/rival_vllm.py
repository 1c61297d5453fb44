"""vLLM on CPU as a worker of `engine_throughput.py`."""

import argparse
from collections.abc import Sequence

import engine_worker
from vllm import LLM, SamplingParams
from workload import Workload


def make_engine(args: argparse.Namespace, workload: Workload) -> engine_worker.Generate:
    llm = LLM(
        str(args.checkpoint),
        dtype=args.dtype,
        max_model_len=2048,
        enable_prefix_caching=False,
        skip_tokenizer_init=True,
        generation_config="vllm",
    )

    def run(prompts: Sequence[list[int]], num_tokens: Sequence[int]) -> list[list[int]]:
        sampling = [
            SamplingParams(max_tokens=n, temperature=0, ignore_eos=True, detokenize=False) for n in num_tokens
        ]
        outputs = llm.generate([{"prompt_token_ids": p} for p in prompts], sampling, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    return run


if __name__ == "__main__":  # vLLM starts its engine in a process that imports this file
    engine_worker.run(make_engine)
