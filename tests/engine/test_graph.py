"""Decode-only steps padded to a graph's batch sizes bring the same tokens as steps of their own size."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from cpu_kernels import IMPLEMENTATIONS, Implementation, kernels
from engines import BLOCK_SIZE, CPU, NUM_TOKENS, Case, greedy, make_settings
from nfold.models.engine.core import DecodeSteps, EngineCore
from nfold.models.engine.generate import generate
from nfold.models.engine.graph import padded_sizes
from nfold.models.engine.native import NativeEngine
from nfold.models.parallel import TpGroup
from nfold.models.registry import load_model


def load_engine(
    case: Case, *, decodes: DecodeSteps, num_kv_blocks: int = 256, overlap: bool = False
) -> NativeEngine:
    wishes = make_settings(
        case.checkpoint, max_num_seqs=11, num_kv_blocks=num_kv_blocks, max_model_len=120, overlap=overlap
    )
    model = load_model(case.checkpoint, tp=TpGroup.single(), device=CPU, dtype=None)
    assert wishes.kv_cache_bytes is not None
    settings = wishes.resolve(
        model_max_len=model.config.max_position_embeddings,
        kv_bytes_per_token=wishes.kv_cache_bytes // (num_kv_blocks * BLOCK_SIZE),
        free_bytes=None,
        dtype="float32",
        device="cpu",
    )
    return NativeEngine(EngineCore(model, settings, decodes=decodes), settings, TpGroup.single())


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_greedy_tokens_are_the_same(case: Case, implementation: Implementation) -> None:
    with kernels(implementation):
        engine = load_engine(case, decodes="padded")
        completions = generate(engine, case.prompts, [greedy(NUM_TOKENS)] * len(case.prompts))
    assert [completion.token_ids.tolist() for completion in completions] == case.answers


@pytest.mark.parametrize("overlap", [False, True], ids=["one by one", "overlap"])
def test_with_few_blocks_the_padding_touches_none_of_them(case: Case, overlap: bool) -> None:
    engine = load_engine(case, decodes="padded", num_kv_blocks=16, overlap=overlap)
    completions = generate(engine, case.prompts, [greedy(NUM_TOKENS)] * len(case.prompts))
    assert engine.stats().total_preemptions > 0
    assert [completion.token_ids.tolist() for completion in completions] == case.answers


def test_drawn_tokens_and_logprobs_are_the_same(case: Case) -> None:
    sampling = [
        greedy(10 + n, temperature=(0.0, 0.7, 1.5)[n % 3], top_k=(0, 5)[n % 2], seed=n, num_logprobs=n % 3 - 1)
        for n in range(len(case.prompts))
    ]
    ours, theirs = (
        generate(load_engine(case, decodes=decodes), case.prompts, sampling) for decodes in ("padded", "plain")
    )
    for padded, plain in zip(ours, theirs, strict=True):
        assert padded.token_ids.tolist() == plain.token_ids.tolist()
        np.testing.assert_allclose(padded.logprobs, plain.logprobs, atol=1e-5)
        np.testing.assert_array_equal(padded.top_ids, plain.top_ids)


def test_sizes() -> None:
    assert padded_sizes(1) == [1]
    assert padded_sizes(11) == [1, 2, 4, 8, 11]
    sizes = padded_sizes(1000)
    assert sizes[-1] == 1000
    assert all(later - size <= max(8, size / 8 + 1) for size, later in pairwise(sizes))
    assert len(sizes) < 50
    assert torch.tensor(sizes).unique().tolist() == sizes
