"""Sampled tokens are a function of prompt, settings and seed; log-probabilities are those of the raw logits."""

from pathlib import Path

import numpy as np
import pytest
from engines import NUM_TOKENS, Case, greedy, load_engine, random_prompts, transformers_logprobs
from nfold.models.engine.generate import generate
from nfold.models.engine.native import NativeEngine
from nfold.models.engine.protocol import SamplingParams

PROMPT = random_prompts(20, seed=3)[0]
SAMPLED = [
    SamplingParams(max_tokens=NUM_TOKENS, temperature=0.8, seed=1, ignore_eos=True),
    SamplingParams(max_tokens=NUM_TOKENS, temperature=1.5, top_k=20, seed=2**63 + 5, ignore_eos=True),
    SamplingParams(max_tokens=NUM_TOKENS, temperature=1.0, top_p=0.8, seed=3, ignore_eos=True),
    SamplingParams(max_tokens=NUM_TOKENS, temperature=1.2, top_k=50, top_p=0.9, seed=4, ignore_eos=True),
]


def answer(engine: NativeEngine, prompt: list[int], sampling: SamplingParams) -> list[int]:
    return generate(engine, [prompt], [sampling])[0].token_ids.tolist()


@pytest.fixture(scope="module")
def alone(checkpoint: Path) -> list[list[int]]:
    """The answer of each of SAMPLED to PROMPT, computed alone."""
    engine = load_engine(checkpoint)
    return [answer(engine, PROMPT, sampling) for sampling in SAMPLED]


@pytest.mark.parametrize(
    "schedule",
    [
        {},
        {"max_num_batched_tokens": 6},
        {"num_kv_blocks": 16, "max_model_len": 120, "prefix_cache": False},
        {"max_num_batched_tokens": 60, "overlap": True},
    ],
)
def test_a_seed_gives_the_same_tokens_in_any_batch(
    checkpoint: Path, alone: list[list[int]], schedule: dict[str, int]
) -> None:
    engine = load_engine(checkpoint, **schedule)
    prompts, sampling = [*random_prompts(5, 50, 33), *[PROMPT] * len(SAMPLED)], [greedy(NUM_TOKENS)] * 3 + SAMPLED
    completions = generate(engine, prompts, sampling)
    assert [completion.token_ids.tolist() for completion in completions[3:]] == alone
    assert (engine.stats().total_preemptions > 0) == ("num_kv_blocks" in schedule)


def test_a_continuation_elsewhere_goes_on_with_the_same_tokens(checkpoint: Path, alone: list[list[int]]) -> None:
    elsewhere = load_engine(checkpoint)
    for sampling, tokens in zip(SAMPLED, alone, strict=True):
        emitted = tokens[:7]
        rest = SamplingParams(
            max_tokens=NUM_TOKENS - 7,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            seed=sampling.seed,
            ignore_eos=True,
        )
        assert answer(elsewhere, PROMPT + emitted, rest) == tokens[7:]


def test_seeds_differ_and_one_choice_is_greedy(checkpoint: Path) -> None:
    engine = load_engine(checkpoint)
    hot = [SamplingParams(max_tokens=10, temperature=1.5, seed=seed, ignore_eos=True) for seed in range(5)]
    assert len({tuple(answer(engine, PROMPT, sampling)) for sampling in hot}) == 5
    only_best = SamplingParams(max_tokens=10, temperature=1.5, top_k=1, seed=9, ignore_eos=True)
    assert answer(engine, PROMPT, only_best) == answer(engine, PROMPT, greedy(10))


@pytest.mark.parametrize("overlap", [False, True], ids=["one by one", "overlap"])
def test_logprobs_equal_those_of_transformers(case: Case, overlap: bool) -> None:
    engine = load_engine(case.checkpoint, max_num_batched_tokens=40, overlap=overlap)
    prompts = [case.prompts[5], case.prompts[1], case.prompts[6]]
    hot = SamplingParams(max_tokens=6, temperature=1.3, top_k=5, seed=7, ignore_eos=True, num_logprobs=4)
    completions = generate(engine, prompts, [hot, greedy(8), greedy(9, num_logprobs=0)])
    assert np.isnan(completions[1].logprobs).all()
    assert (completions[1].top_ids == -1).all()
    assert (completions[2].top_ids == -1).all()
    assert np.isnan(completions[2].top_logprobs).all()
    for index in (0, 2):
        prompt, completion = prompts[index], completions[index]
        tokens = completion.token_ids.tolist()
        expected = transformers_logprobs(case.checkpoint, prompt + tokens)[len(prompt) - 1 : -1]
        chosen = [float(row[token]) for row, token in zip(expected, tokens, strict=True)]
        np.testing.assert_allclose(completion.logprobs, chosen, atol=1e-4)
        if index == 0:
            values, ids = expected.topk(4, dim=-1)
            assert completion.top_ids.tolist() == ids.tolist()
            np.testing.assert_allclose(completion.top_logprobs, values.numpy(), atol=1e-4)
