"""Our greedy tokens equal transformers', however they are scheduled."""

from typing import Any

import pytest
import torch
from cpu_kernels import kernels
from engines import NUM_TOKENS, Case, greedy, load_engine, transformers_logprobs
from nfold.models.engine.generate import collect_completions, generate
from nfold.models.engine.native import NativeEngine
from nfold.models.engine.protocol import SubmitBatch

SCHEDULES: dict[str, dict[str, Any]] = {
    "all at once": {"max_num_batched_tokens": 1024, "prefix_cache": False},
    "one by one": {"max_num_seqs": 1, "prefix_cache": False},
    "chunks": {"max_num_batched_tokens": 7, "max_num_seqs": 5, "prefix_cache": False},
    "chunks with prefix cache": {"max_num_batched_tokens": 7, "max_num_seqs": 5},
    "prefix cache": {"max_num_batched_tokens": 1024},
    "few blocks": {"num_kv_blocks": 16, "max_model_len": 120, "max_num_batched_tokens": 64, "prefix_cache": False},
    "few blocks with prefix cache": {"num_kv_blocks": 16, "max_model_len": 120, "max_num_batched_tokens": 64},
}


def answers_of(engine: NativeEngine, case: Case) -> list[list[int]]:
    completions = generate(engine, case.prompts, [greedy(NUM_TOKENS)] * len(case.prompts))
    return [completion.token_ids.tolist() for completion in completions]


@pytest.mark.parametrize("overlap", [False, True], ids=["one by one", "overlap"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_tokens_equal_those_of_transformers(case: Case, schedule: str, overlap: bool) -> None:
    engine = load_engine(case.checkpoint, overlap=overlap, **SCHEDULES[schedule])
    assert answers_of(engine, case) == case.answers
    stats = engine.stats()
    assert (stats.total_preemptions > 0) == schedule.startswith("few blocks")
    assert (stats.total_cached_prompt_tokens > 0) == ("prefix cache" in schedule)
    assert stats.total_prompt_tokens == sum(map(len, case.prompts))
    assert stats.num_kv_blocks_used == 0


def test_tokens_equal_those_of_transformers_without_compiled_kernels(case: Case) -> None:
    with kernels("torch"):
        assert answers_of(load_engine(case.checkpoint, max_num_batched_tokens=60), case) == case.answers


def test_a_second_time_all_prompts_are_in_the_prefix_cache(case: Case) -> None:
    engine = load_engine(case.checkpoint)
    assert answers_of(engine, case) == case.answers
    cached_before = engine.stats().total_cached_prompt_tokens
    assert answers_of(engine, case) == case.answers
    cached = engine.stats().total_cached_prompt_tokens - cached_before
    assert cached == sum((len(prompt) - 1) // 8 * 8 for prompt in case.prompts)


@pytest.mark.parametrize("overlap", [False, True], ids=["one by one", "overlap"])
def test_requests_that_arrive_while_others_run(case: Case, overlap: bool) -> None:
    engine = load_engine(case.checkpoint, max_num_batched_tokens=20, overlap=overlap)
    waiting, steps = list(enumerate(case.prompts)), []
    while waiting or engine.has_work():
        if waiting and len(steps) % 3 == 0:
            request_id, prompt = waiting.pop()
            engine.submit(SubmitBatch.build([request_id], [prompt], [greedy(NUM_TOKENS)]))
        steps.append(engine.step())
    completions = collect_completions(steps, len(case.prompts))
    assert [completion.token_ids.tolist() for completion in completions] == case.answers
    assert max(len(step) for step in steps) > 4
    assert any(step.step.num_prefill_tokens and step.step.num_decode_tokens for step in steps)


def test_bfloat16_takes_tokens_that_are_near_the_best_in_float32(case: Case) -> None:
    engine = load_engine(case.checkpoint, dtype="bfloat16")
    assert engine.info.settings["dtype"] == "bfloat16"
    prompt = case.prompts[5]
    (completion,) = generate(engine, [prompt], [greedy(NUM_TOKENS)])
    answer = torch.from_numpy(completion.token_ids).long()
    logprobs = transformers_logprobs(case.checkpoint, [*prompt, *answer.tolist()])[len(prompt) - 1 : -1]
    gaps = logprobs.max(-1).values - logprobs.gather(1, answer[:, None])[:, 0]
    assert float(gaps.max()) < 0.5
