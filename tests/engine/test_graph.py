"""Decode-only steps padded to a graph's batch sizes bring the same tokens as steps of their own size."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from cpu_kernels import IMPLEMENTATIONS, Implementation, kernels
from engines import NUM_TOKENS, Case, greedy, load_engine_of
from nfold.models.engine.generate import generate
from nfold.models.engine.graph import Outputs, _PaddedStep, padded_sizes


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_greedy_tokens_are_the_same(case: Case, implementation: Implementation) -> None:
    with kernels(implementation):
        engine = load_engine_of(case.checkpoint, decodes="padded")
        completions = generate(engine, case.prompts, [greedy(NUM_TOKENS)] * len(case.prompts))
    assert [completion.token_ids.tolist() for completion in completions] == case.answers


@pytest.mark.parametrize("overlap", [False, True], ids=["one by one", "overlap"])
def test_with_few_blocks_the_padding_touches_none_of_them(case: Case, overlap: bool) -> None:
    engine = load_engine_of(case.checkpoint, decodes="padded", num_kv_blocks=16, overlap=overlap)
    completions = generate(engine, case.prompts, [greedy(NUM_TOKENS)] * len(case.prompts))
    assert engine.stats().total_preemptions > 0
    assert [completion.token_ids.tolist() for completion in completions] == case.answers


def test_drawn_tokens_and_logprobs_are_the_same(case: Case) -> None:
    sampling = [
        greedy(10 + n, temperature=(0.0, 0.7, 1.5)[n % 3], top_k=(0, 5)[n % 2], seed=n, num_logprobs=n % 3 - 1)
        for n in range(len(case.prompts))
    ]
    ours, theirs = (
        generate(load_engine_of(case.checkpoint, decodes=decodes), case.prompts, sampling)
        for decodes in ("padded", "plain")
    )
    for padded, plain in zip(ours, theirs, strict=True):
        assert padded.token_ids.tolist() == plain.token_ids.tolist()
        np.testing.assert_allclose(padded.logprobs, plain.logprobs, atol=1e-5)
        np.testing.assert_array_equal(padded.top_ids, plain.top_ids)


def test_a_graph_needs_nothing_new_from_the_host(case: Case) -> None:
    """As replays do, steps are computed with what the host told the first ones, and leave results where these did.
    Like kernels on a GPU, the compiled ones read contexts on the device."""
    with kernels("compiled"):
        engine = load_engine_of(case.checkpoint, decodes="padded")
        assert engine.core._decodes is not None
        for step in engine.core._decodes._steps:
            step._replay = replay_of(step)
        completions = generate(engine, case.prompts, [greedy(NUM_TOKENS)] * len(case.prompts))
    assert [completion.token_ids.tolist() for completion in completions] == case.answers


@torch.inference_mode()
def replay_of(step: _PaddedStep) -> Callable[[], Outputs]:
    outputs = step._compute(step._longest_B)

    def replay() -> Outputs:
        for place, result in zip(outputs, step._compute(step._longest_B), strict=True):
            place.copy_(result)
        return outputs

    return replay


def test_sizes() -> None:
    assert padded_sizes(1) == [1]
    assert padded_sizes(11) == [1, 2, 4, 8, 11]
    sizes = padded_sizes(1000)
    assert sizes[-1] == 1000
    assert all(later - size <= max(8, size / 8 + 1) for size, later in pairwise(sizes))
    assert len(sizes) < 50
    assert torch.tensor(sizes).unique().tolist() == sizes
