"""nfold's native engine as a worker of `engine_throughput.py`."""

import argparse
from collections.abc import Sequence

import engine_worker
import torch
from workload import Workload


def make_engine(args: argparse.Namespace, workload: Workload) -> engine_worker.Generate:
    from nfold.models.engine.generate import generate
    from nfold.models.engine.native import NativeEngine
    from nfold.models.engine.protocol import SamplingParams
    from nfold.models.engine.settings import EngineSettings
    from nfold.models.parallel import TpGroup

    torch.set_num_threads(args.threads)
    settings = EngineSettings(model_dir=args.checkpoint, dtype=args.dtype, prefix_cache=False)
    engine = NativeEngine.load(settings, TpGroup.single(), torch.device("cpu"))

    def run(prompts: Sequence[list[int]], num_tokens: Sequence[int]) -> list[list[int]]:
        sampling = [SamplingParams(max_tokens=n, ignore_eos=True) for n in num_tokens]
        return [completion.token_ids.tolist() for completion in generate(engine, prompts, sampling)]

    return run


if __name__ == "__main__":
    engine_worker.run(make_engine)
