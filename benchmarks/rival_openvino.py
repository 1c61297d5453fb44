"""OpenVINO GenAI's continuous batching as a worker of `engine_throughput.py`.

The checkpoint is converted first, into a folder beside it. Weights, KV cache and products are of the type that is
measured: OpenVINO's own choice would be 8-bit keys and values.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import engine_worker
import numpy as np
import openvino as ov
import openvino_genai as genai
from workload import Workload

TYPES = {"bfloat16": "bf16", "float32": "f32"}


def convert(checkpoint: Path) -> Path:
    from optimum.intel import OVModelForCausalLM

    folder = checkpoint.with_name(f"{checkpoint.name}-openvino")
    if not (folder / "openvino_model.xml").exists():
        model = OVModelForCausalLM.from_pretrained(checkpoint, export=True, load_in_8bit=False, compile=False)
        model.save_pretrained(folder)
    return folder


def make_engine(args: argparse.Namespace, workload: Workload) -> engine_worker.Generate:
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = 1
    scheduler.max_num_batched_tokens = 2048
    scheduler.max_num_seqs = 256
    scheduler.enable_prefix_caching = False
    properties = {
        "INFERENCE_PRECISION_HINT": TYPES[args.dtype],
        "KV_CACHE_PRECISION": TYPES[args.dtype],
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
        "INFERENCE_NUM_THREADS": args.threads,
    }
    folder = convert(args.checkpoint)
    pipeline = genai.ContinuousBatchingPipeline(folder, scheduler, "CPU", properties, {})

    def run(prompts: Sequence[list[int]], num_tokens: Sequence[int]) -> list[list[int]]:
        handles = []
        for index, (prompt, count) in enumerate(zip(prompts, num_tokens, strict=True)):
            config = genai.GenerationConfig(max_new_tokens=count, ignore_eos=True, do_sample=False)
            handles.append(pipeline.add_request(index, ov.Tensor(np.array([prompt], np.int64)), config))
        tokens: list[list[int]] = [[] for _ in prompts]
        while pipeline.has_non_finished_requests():
            pipeline.step()
        for answer, handle in zip(tokens, handles, strict=True):
            answer += handle.read_all()[0].generated_ids
        return tokens

    return run


if __name__ == "__main__":
    engine_worker.run(make_engine)
