"""The system under test against a router that does as it is told, with LoadGen's callbacks taken down."""

import os
from types import SimpleNamespace

import numpy as np
import pytest
from nfold.cluster.bench import sut as sut_module
from nfold.cluster.bench.samples import SampleSet, joined
from nfold.cluster.bench.sut import Sut
from nfold.deployments.router import TokenChunk
from nfold.models.engine.protocol import FinishReason
from nfold.models.errors import UnavailableError


class FakeRouter:
    def __init__(self) -> None:
        self._fd = os.eventfd(0)
        self.settings = SimpleNamespace(tick_s=1e9)
        self.bulks: list[dict] = []
        self.sinks: list = []
        self.refuse = False

    def submit_bulk(
        self, model, prompt_ids, lens, limits, seeds, tags, sink, *, ignore_eos, temperature, prompt_starts
    ):
        if self.refuse:
            raise UnavailableError("no replica is left")
        places = zip(prompt_starts, lens, strict=True)
        ids = [each for start, size in places for each in prompt_ids[start : start + size].tolist()]
        self.bulks.append({"ids": ids, "lens": lens.tolist(), "tags": tags.tolist(), "temperature": temperature})
        self.sink = sink

    def submit_many(self, model, prompts, sampling, sinks):
        self.sampling = sampling
        self.sinks += sinks

    def fileno(self):
        return self._fd

    def flush(self): ...
    def tick(self): ...
    def gather_s(self):
        return 0.0

    def drain_messages(self): ...
    def has_messages(self):
        return True

    def next_flush_s(self):
        return 0.0


class Loadgen:
    """Takes down what LoadGen was told, in order."""

    def __init__(self) -> None:
        self.said: list[tuple[str, int, int]] = []

    def first(self, responses):
        self.said += [("first", response.id, response.n_tokens) for response in responses]

    def done(self, responses):
        self.said += [("done", response.id, response.n_tokens) for response in responses]


def samples(num: int = 4) -> SampleSet:
    tokens, starts, lens = joined([[row] * (row + 1) for row in range(num)])
    return SampleSet(
        name="s",
        source="",
        synthetic=True,
        tokens=tokens,
        starts=starts,
        prompt_lens=lens,
        max_tokens=np.full(num, 9, np.int32),
        seeds=np.arange(num, dtype=np.uint64),
        temperature=0.5,
        answer_lens=np.full(num, 5, np.int32),
    )


@pytest.fixture
def rig():
    router, loadgen = FakeRouter(), Loadgen()

    def make(**options) -> Sut:
        return Sut(router, "m", samples(), first_complete=loadgen.first, complete=loadgen.done, **options)

    return router, loadgen, make


def rows(*values: int):
    return np.array(values, np.int64)


def finish(*reasons: FinishReason):
    return np.array(reasons, np.uint8)


def test_a_query_goes_out_as_one_batch_of_arrays(rig):
    router, _, make = rig
    sut = make()
    sut.issue([100, 101, 102], [2, 0, 2])
    sut.turn()
    assert router.bulks == [
        {"ids": [2, 2, 2, 0, 2, 2, 2], "lens": [3, 1, 3], "tags": [0, 1, 2], "temperature": 0.5}
    ]
    assert sut.num_open == 3


def test_loadgen_hears_of_first_tokens_and_of_whole_counts(rig):
    _, loadgen, make = rig
    sut = make()
    sut.issue([100, 101], [0, 1])
    sut.turn()
    sut.progress(rows(1), rows(), np.zeros(0, np.int32), finish(), 5.0)
    sut.progress(
        rows(0), rows(0, 1), np.array([5, 7], np.int32), finish(FinishReason.STOP, FinishReason.LENGTH), 6.0
    )
    assert loadgen.said == [("first", 101, 1), ("first", 100, 1), ("done", 100, 5), ("done", 101, 7)]
    assert sut.num_open == 0
    assert sut.queries.num_ended_tokens == 12


def test_first_tokens_are_kept_to_itself_where_loadgen_does_not_count_them(rig):
    _, loadgen, make = rig
    sut = make(tell_first=False)
    sut.issue([100], [0])
    sut.turn()
    sut.progress(rows(0), rows(0), np.array([5], np.int32), finish(FinishReason.STOP), 6.0)
    assert loadgen.said == [("done", 100, 5)]


def test_a_failed_request_is_ended_with_the_tokens_it_has(rig):
    _, loadgen, make = rig
    sut = make()
    sut.issue([100], [0])
    sut.turn()
    sut.progress(rows(), rows(0), np.array([0], np.int32), finish(FinishReason.ERROR), 6.0)
    assert loadgen.said == [("first", 100, 1), ("done", 100, 0)]
    assert sut.queries.num_failed == 1


def test_what_a_router_refuses_has_failed(rig):
    router, loadgen, make = rig
    router.refuse = True
    sut = make()
    sut.issue([100], [0])
    sut.turn()
    assert (sut.num_open, sut.queries.num_failed, sut.queries.first_error) == (0, 1, "no replica is left")
    assert ("done", 100, 0) in loadgen.said


def test_short_answers_are_counted(rig):
    _, _, make = rig
    sut = make()
    sut.issue([100, 101, 102], [0, 1, 2])
    sut.turn()
    reasons = finish(FinishReason.STOP, FinishReason.STOP, FinishReason.ERROR)
    sut.progress(rows(0, 1, 2), rows(0, 1, 2), np.array([4, 5, 1], np.int32), reasons, 6.0)
    assert sut.queries.num_short(samples().answer_lens) == 1
    assert sut.queries.num_short(None) == 0


def test_only_so_much_is_open_at_once(rig, monkeypatch: pytest.MonkeyPatch):
    router, _, make = rig
    monkeypatch.setattr(sut_module, "MAX_OPEN", 2)
    sut = make()
    sut.issue([100, 101, 102], [0, 1, 2])
    sut.turn()
    assert [bulk["tags"] for bulk in router.bulks] == [[0, 1]]
    sut.progress(rows(0), rows(0), np.array([5], np.int32), finish(FinishReason.STOP), 6.0)
    sut.turn()
    assert [bulk["tags"] for bulk in router.bulks] == [[0, 1], [2]]


def test_many_go_out_in_parts(rig, monkeypatch: pytest.MonkeyPatch):
    router, _, make = rig
    monkeypatch.setattr(sut_module, "MAX_AT_ONCE", 3)
    sut = make()
    sut.issue([100, 101, 102, 103], [3, 0, 1, 2])
    sut.turn()
    assert [bulk["lens"] for bulk in router.bulks] == [[4, 1, 2], [3]]


def test_accuracy_runs_give_loadgen_the_tokens(rig):
    router, _, make = rig
    taken: list[tuple[int, list[int]]] = []

    def done(responses):
        import ctypes

        for response in responses:
            kept = (ctypes.c_int32 * (response.size // 4)).from_address(response.data)
            taken.append((response.id, list(kept)))

    sut = make(keep_tokens=True)
    sut._complete = done
    sut.issue([100], [1])
    sut.turn()
    assert (router.sampling[0].max_tokens, router.sampling[0].temperature) == (9, 0.5)
    router.sinks[0](TokenChunk([7], FinishReason.NONE, 2))
    router.sinks[0](TokenChunk([8, 9], FinishReason.STOP, 2))
    assert taken == [(100, [7, 8, 9])]
    assert sut.queries.num_ended_tokens == 3


def test_queries_grow_and_keep_what_they_know(rig):
    _, _, make = rig
    sut = make()
    for number in range(3):
        sut.issue(list(range(number * 1000, number * 1000 + 1000)), [0] * 1000)
    sut.turn()
    assert len(sut.queries) == 3000
    assert sut.queries.ids[2999] == 2999
    assert np.isnan(sut.queries.end_s[:3000]).all()
