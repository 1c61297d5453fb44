"""What a model's replicas have outstanding, reckoned anew from how far answers have come."""

import numpy as np
import pytest
from nfold.deployments.model_state import Model
from nfold.deployments.replica_loads import ReplicaLoads
from nfold.deployments.request_loops import release
from nfold.deployments.request_queue import SAMPLE, sample_of
from nfold.deployments.request_table import RequestTable
from nfold.models.engine.protocol import SamplingParams, SubmitBatch

PROMPT = [1, 2, 3]
SHORT, LONG = 40, 400


@pytest.fixture
def model() -> Model:
    """It has given answers of 40 and of 400 tokens, as many of each, whatever the prompt."""
    table, loads = RequestTable(), ReplicaLoads()
    model = Model("m", 0, 100, table, loads)
    model.numbers = np.array([loads.add(8), loads.add(8)])
    lens = np.tile([SHORT, LONG], 500)
    model.answers.observe(np.full(len(lens), len(PROMPT)), lens)
    model.enqueue(requests(model, SAMPLE + 1))
    return model


def requests(model: Model, count: int, *, ignore_eos: bool = False) -> np.ndarray:
    """New ones, of 1,000 tokens at most."""
    params = SamplingParams(1000, ignore_eos=ignore_eos)
    return model._table.add(SubmitBatch.build(range(count), [PROMPT] * count, [params] * count), model.number, 0.0)


def bound(model: Model, replica: int, emitted: list[int], *, ignore_eos: bool = False) -> np.ndarray:
    """Requests at a replica that have had so many tokens."""
    table, slots = model._table, requests(model, len(emitted), ignore_eos=ignore_eos)
    prompt_tokens, output_tokens = model.expected_tokens(slots)
    table.replica[slots] = replica
    table.charge[slots], table.prompt_charge[slots] = output_tokens, prompt_tokens
    model._loads.bind(table.replica[slots].astype(np.int64), prompt_tokens, output_tokens)
    for slot, num_tokens in zip(slots, emitted, strict=True):
        ids = table.wire_ids[[slot] * num_tokens]
        booked = table.book(ids, np.zeros(num_tokens, np.int32), np.zeros(num_tokens, np.uint8))
        model._loads.output_tokens[replica] -= booked.num_tokens
    return slots


def test_an_answer_that_is_not_short_is_long(model: Model) -> None:
    """Before that, two answers half given seemed to need 20 tokens, as if they were as long as others."""
    bound(model, 0, [200, 200])
    bound(model, 1, [0, 0])
    before = model._loads.output_tokens.copy()
    model.reckon(5.0)

    mean = (SHORT + LONG) / 2
    assert before[:2] == pytest.approx([2 * (mean - 200), 2 * mean], rel=0.05)
    assert model._loads.output_tokens[:2] == pytest.approx([2 * (LONG - 200), 2 * mean], rel=0.05)
    assert model.reckoned_s == 5.0
    assert model.mean_queued == pytest.approx((len(PROMPT), mean), rel=0.05)


def test_the_books_close_when_requests_leave(model: Model) -> None:
    slots = np.concatenate([bound(model, 0, [0, 10, 200]), bound(model, 1, [200], ignore_eos=True)])
    model.reckon(0.0)
    assert model._loads.output_tokens[1] == 800, "it cannot end sooner"
    release(slots[[1, 2, 3]], model._table.charges(), model._loads.outstanding())

    [left] = model.expected_tokens(slots[:1])[1]
    assert model._loads.output_tokens[:2] == pytest.approx([left, 0.0])


def test_a_long_queue_is_known_by_some_of_all_its_parts() -> None:
    queue = np.arange(10 * SAMPLE)
    some = sample_of(queue)
    assert SAMPLE / 2 <= len(some) <= SAMPLE
    assert some.mean() == pytest.approx(queue.mean(), rel=0.01)
    assert sample_of(queue[:SAMPLE]).tolist() == queue[:SAMPLE].tolist()
