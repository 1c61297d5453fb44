"""A small simulated accelerator with round numbers, and a clock that tests turn."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from nfold.models.engine.protocol import SamplingParams, StepOutputs, SubmitBatch
from nfold.models.engine.simulated.engine import SimulatedEngine
from nfold.models.engine.simulated.profile import (
    EngineLimits,
    LoadgenRun,
    ScenarioProfile,
    StepTimeCurve,
    StepTimeProfile,
)


class FakeClock:
    """Seconds that pass only in `sleep`, or when a test moves `now_s`."""

    def __init__(self, now_s: float = 100.0) -> None:
        self.now_s = now_s
        self.sleeps: list[float] = []

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, duration_s: float) -> None:
        self.sleeps.append(duration_s)
        self.now_s += duration_s


def make_profile(kv_capacity_tokens: int = 10_000, **limits: int | bool) -> StepTimeProfile:
    """10 ms a step, 1 ms a prompt token, 0.1 ms a decode token, 1 us a context token; 8 slots, 64 tokens a step."""
    settings = EngineLimits(max_num_seqs=8, max_num_batched_tokens=64)
    return StepTimeProfile(
        accelerator="TEST",
        model="test",
        workload="openorca",
        num_accelerators=1,
        max_model_len=256,
        vocab_size=1000,
        kv_capacity_tokens=kv_capacity_tokens,
        kv_capacity_source="",
        curve=StepTimeCurve(fixed_s=0.01, prefill_token_s=0.001, decode_token_s=0.0001, kv_token_s=1e-6),
        curve_source="",
        scenarios={
            "server": ScenarioProfile(
                limits=replace(settings, **limits),
                limits_source="",
                run=LoadgenRun("assumed", "", 100, None, 20.0),
                figures={},
            )
        },
    )


def make_engine(clock: FakeClock, profile: StepTimeProfile | None = None, **options: object) -> SimulatedEngine:
    return SimulatedEngine(profile or make_profile(), clock=clock, sleep=clock.sleep, **options)


def make_batch(
    ids: Sequence[int],
    *,
    prompt_len: int = 10,
    max_tokens: int = 5,
    seeds: Sequence[int] | None = None,
    ignore_eos: bool = False,
) -> SubmitBatch:
    """Requests that differ in their prompts."""
    return SubmitBatch.build(
        ids,
        [np.arange(request_id, request_id + prompt_len, dtype=np.int32) for request_id in ids],
        [
            SamplingParams(max_tokens=max_tokens, seed=seed, ignore_eos=ignore_eos)
            for seed in (seeds if seeds is not None else [0] * len(ids))
        ],
    )


def run_out(engine: SimulatedEngine) -> list[StepOutputs]:
    """Step until there is no work."""
    steps: list[StepOutputs] = []
    while engine.has_work():
        steps.append(engine.step())
    return steps


def answers_of(steps: Sequence[StepOutputs]) -> dict[int, list[int]]:
    """Token ids by request."""
    found: dict[int, list[int]] = {}
    for outputs in steps:
        for request_id, token_id in zip(outputs.request_ids.tolist(), outputs.token_ids.tolist(), strict=True):
            found.setdefault(request_id, []).append(token_id)
    return found
