"""The bare path of overhead.py: the native engine in a loop on one core. Answers a JSON line per JSON line."""

import argparse
import json
import os
import sys
import time
from pathlib import Path

import torch
from nfold.models.engine.native import NativeEngine
from nfold.models.engine.protocol import SamplingParams, SubmitBatch
from nfold.models.engine.settings import EngineSettings
from nfold.models.parallel import TpGroup
from overhead_load import make_prompts, output_lengths
from workload import vocab_size_of


class Bare:
    def __init__(self, engine: NativeEngine, vocab_size: int) -> None:
        self._engine = engine
        self._prompts, self._lengths = make_prompts(vocab_size), output_lengths()
        self._num_submitted = 0
        self._busy_s = 0.0

    def _submit(self, count: int, max_tokens: int | None = None) -> None:
        ids = range(self._num_submitted, self._num_submitted + count)
        self._num_submitted += count
        rows = [index % len(self._prompts) for index in ids]
        sampling = [SamplingParams(max_tokens=max_tokens or self._lengths[row], ignore_eos=True) for row in rows]
        self._engine.submit(SubmitBatch.build(list(ids), [self._prompts[row] for row in rows], sampling))

    def tokens_per_s(self, concurrency: int, warmup_s: float, window_s: float) -> float:
        """Of a closed loop; what is in flight at the end is finished before this returns."""
        begin, start, num_tokens = time.perf_counter(), None, 0
        self._submit(concurrency)
        while (now := time.perf_counter()) < (start or now) + window_s:
            outputs = self._engine.step()
            if start is not None:
                num_tokens += len(outputs)
            elif time.perf_counter() - begin >= warmup_s:
                start = time.perf_counter()
            self._submit(int((outputs.finish > 0).sum()))
        assert start is not None
        rate = num_tokens / (now - start)
        while self._engine.has_work():
            self._engine.step()
        return rate

    def ttft_ms(self) -> float:
        begin = time.perf_counter()
        self._submit(1, max_tokens=1)
        num_rows = 0
        while not num_rows:
            step_begin = time.perf_counter()
            num_rows = len(self._engine.step())
            self._busy_s += time.perf_counter() - step_begin
        return 1e3 * (time.perf_counter() - begin)

    def busy_s(self) -> float:
        """In steps of TTFT samples, so far."""
        return self._busy_s


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--slots", type=int, required=True)
    parser.add_argument("--core", type=int, required=True)
    args = parser.parse_args()
    os.sched_setaffinity(0, {args.core})
    torch.set_num_threads(1)
    settings = EngineSettings(
        model_dir=args.checkpoint, dtype=args.dtype, prefix_cache=False, max_num_seqs=args.slots
    )
    bare = Bare(NativeEngine.load(settings, TpGroup.single(), torch.device("cpu")), vocab_size_of(args.checkpoint))
    for line in sys.stdin:
        question = json.loads(line)
        if question["kind"] == "ttft":
            figure = bare.ttft_ms()
        elif question["kind"] == "busy_s":
            figure = bare.busy_s()
        else:
            figure = bare.tokens_per_s(question["concurrency"], question["warmup_s"], question["window_s"])
        print(json.dumps({"figure": figure}), flush=True)


if __name__ == "__main__":
    main()
