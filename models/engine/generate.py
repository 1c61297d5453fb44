"""Prompts in, completions out, in this process: for tests, benchmarks and offline users."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .protocol import F32, I32, Engine, FinishReason, SamplingParams, StepOutputs, SubmitBatch


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer. Legend: N tokens, K top alternatives (the most that any request of the call asked for).

    Attributes:
        token_ids: int32 [N].
        finish: why it ended; ERROR, without tokens, when the engine can never serve the prompt.
        logprobs: float32 [N], NaN where not asked for.
        top_ids, top_logprobs: [N, K], padded with -1 and NaN.
    """

    token_ids: I32
    finish: FinishReason
    logprobs: F32
    top_ids: I32
    top_logprobs: F32


def generate(
    engine: Engine, prompts: Sequence[Sequence[int] | I32], sampling: Sequence[SamplingParams]
) -> list[Completion]:
    """Run all prompts to their ends in one continuous batch, `sampling[i]` for `prompts[i]`.

    The engine must have no other work. Raises EngineError when it cannot go on.
    """
    assert len(sampling) == len(prompts), f"{len(prompts)} prompts, {len(sampling)} sampling params"
    assert not engine.has_work(), "the engine has other work"
    engine.submit(SubmitBatch.build(range(len(prompts)), prompts, sampling))
    steps: list[StepOutputs] = []
    while engine.has_work():
        steps.append(engine.step())
    return collect_completions(steps, len(prompts))


def collect_completions(steps: Sequence[StepOutputs], num_requests: int) -> list[Completion]:
    """The completions of requests 0 to num_requests - 1, each ended, from the outputs of all steps."""
    K = max((step.top_ids.shape[1] for step in steps), default=0)
    request_ids = np.concatenate([np.zeros(0, np.int64), *(step.request_ids.astype(np.int64) for step in steps)])
    token_ids = np.concatenate([np.zeros(0, np.int32), *(step.token_ids for step in steps)])
    finish = np.concatenate([np.zeros(0, np.uint8), *(step.finish for step in steps)])
    logprobs = np.concatenate([np.zeros(0, np.float32), *(step.logprobs for step in steps)])
    top_ids = np.concatenate([np.zeros((0, K), np.int32), *(_widen(step.top_ids, K, -1) for step in steps)])
    top_logprobs = np.concatenate(
        [np.zeros((0, K), np.float32), *(_widen(step.top_logprobs, K, np.nan) for step in steps)]
    )
    order = np.argsort(request_ids, kind="stable")
    ends = np.cumsum(np.bincount(request_ids, minlength=num_requests))
    completions: list[Completion] = []
    for rows in np.split(order, ends[:-1]):
        with_token = rows[token_ids[rows] >= 0]
        completions.append(
            Completion(
                token_ids=token_ids[with_token],
                finish=FinishReason(int(finish[rows[-1]])),
                logprobs=logprobs[with_token],
                top_ids=top_ids[with_token],
                top_logprobs=top_logprobs[with_token],
            )
        )
    return completions


def _widen(array: NDArray[Any], num_columns: int, padding: float) -> NDArray[Any]:
    missing = num_columns - array.shape[1]
    return np.pad(array, ((0, 0), (0, missing)), constant_values=padding) if missing else array
