"""Decode-only steps padded to a graph's batch sizes bring the same tokens as steps of their own size."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from cpu_kernels import IMPLEMENTATIONS, Implementation, kernels
from engines import NUM_TOKENS, Case, greedy, load_engine_of
from fake_graphs import broken_graphs, fake_graphs, has_graphs
from nfold.models.engine.generate import generate
from nfold.models.engine.graph import Capture, Compute, Outputs, _PaddedStep, padded_sizes


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
    with kernels("compiled"):
        engine = load_engine_of(case.checkpoint, decodes="graphs", graphs=fake_graphs)
        completions = generate(engine, case.prompts, [greedy(NUM_TOKENS)] * len(case.prompts))
    assert [completion.token_ids.tolist() for completion in completions] == case.answers
    assert has_graphs(engine)
    engine.close()
    assert not has_graphs(engine)  # or NCCL would wait for them


def test_all_steps_are_computed_before_any_is_captured(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """A capture is never the first to run a kernel, and ranks compute alike whatever becomes of one's captures."""
    events: list[str] = []
    compute = _PaddedStep._compute

    def noted(step: _PaddedStep, host_context_lens: tuple[int, ...]) -> Outputs:
        events.append(f"step of {step.size}")
        return compute(step, host_context_lens)

    def graphs() -> Capture:
        def capture(compute: Compute) -> Compute:
            events.append("capture")
            return compute

        return capture

    monkeypatch.setattr(_PaddedStep, "_compute", noted)
    with kernels("compiled"):
        load_engine_of(case.checkpoint, decodes="graphs", graphs=graphs)
    sizes = [f"step of {size}" for size in (11, 8, 4, 2, 1)]
    assert events == [*sizes, *["capture"] * 5]


def test_ranks_have_graphs_together_or_none(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    answers: list[bool] = []

    def refuses(yes: bool) -> bool:
        answers.append(yes)
        return False

    with kernels("compiled"):
        for graphs, reason in ((fake_graphs, "another rank failed"), (broken_graphs, "operation not permitted")):
            engine = load_engine_of(case.checkpoint, decodes="graphs", graphs=graphs, agrees=refuses)
            assert not has_graphs(engine)
            assert f"launched one by one: {reason}" in caplog.text
            completions = generate(engine, case.prompts, [greedy(NUM_TOKENS)] * len(case.prompts))
            assert [completion.token_ids.tolist() for completion in completions] == case.answers
    assert answers == [True, False]


def test_a_single_ranks_failed_capture_is_an_error(case: Case) -> None:
    with kernels("compiled"), pytest.raises(RuntimeError, match="operation not permitted"):
        load_engine_of(case.checkpoint, decodes="graphs", graphs=broken_graphs)


def test_sizes() -> None:
    assert padded_sizes(1) == [1]
    assert padded_sizes(11) == [1, 2, 4, 8, 11]
    sizes = padded_sizes(1000)
    assert sizes[-1] == 1000
    assert all(later - size <= max(8, size / 8 + 1) for size, later in pairwise(sizes))
    assert len(sizes) < 50
    assert torch.tensor(sizes).unique().tolist() == sizes
