"""Requests in bulk: the same mechanics as for ordinary requests, without a sink call per request."""

import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from bulk_answers import BulkAnswers, ask_bulk
from fake_engine import FakeEngine, fake_tokens
from nfold.deployments import dispatch
from nfold.deployments.request_checks import checked_bulk
from nfold.deployments.router import Router, RouterSettings
from nfold.models.engine.protocol import FinishReason, SamplingParams
from nfold.models.errors import OverloadedError, RequestError, UnavailableError, UnknownModelError
from service_rig import Answer, Rig, Running, poll_until, states, wait_until

NUM_TOKENS = 60


class CountedSteps(threading.Event):
    """A gate that lets an engine do so many steps; all of them once it is set."""

    def __init__(self) -> None:
        super().__init__()
        self._left = threading.Semaphore(0)

    def let(self, num_steps: int) -> None:
        self._left.release(num_steps)

    def wait(self, timeout: float | None = None) -> bool:
        return self.is_set() or self._left.acquire(timeout=timeout)

    def set(self) -> None:
        super().set()
        self.let(1)  # for whom waits now


@pytest.fixture
def rig() -> Iterator[Rig]:
    with Rig() as rig:
        yield rig


def slow(**others: int) -> FakeEngine:
    return FakeEngine(step_s=0.001, **others)


def model_of(router: Router):
    return router.snapshot().models[0]


def test_all_end_once_with_all_their_tokens(rig: Rig) -> None:
    replicas = [rig.replica(f"r{i}", FakeEngine(max_num_seqs=16)) for i in range(3)]
    router = rig.router(*replicas)
    answers, others = BulkAnswers(), BulkAnswers()
    lengths = [1 + i % 9 for i in range(200)]
    ask_bulk(router, lengths, answers)
    ask_bulk(router, lengths[:50], others, first_tag=1 << 40)
    ordinary = Answer()
    router.submit("m", [7, 7], SamplingParams(12, ignore_eos=True), ordinary)

    poll_until(
        router, lambda: len(answers.finish) == 200 and len(others.finish) == 50 and ordinary.ended, "all answers"
    )

    assert [answers.num_tokens[tag] for tag in range(200)] == lengths
    assert set(answers.finish.values()) == {FinishReason.LENGTH}
    assert sorted(answers.first_s) == list(range(200))
    assert sorted(others.finish) == [(1 << 40) + i for i in range(50)]
    assert ordinary.tokens == fake_tokens([7, 7], 12)
    model = model_of(router)
    assert (model.num_submitted, model.num_finished, model.num_queued, model.num_in_flight) == (251, 251, 0, 0)
    assert model.num_output_tokens == sum(lengths) + sum(lengths[:50]) + 12
    assert model.num_prompt_tokens == 2 * 251
    snapshot = router.snapshot()
    assert all(replica.outstanding_tokens == 0 for replica in snapshot.replicas)
    assert sum(snapshot.pools[0].ttft.counts) == sum(snapshot.pools[0].e2e.counts) == 251


def test_one_call_per_message_with_news(rig: Rig) -> None:
    replica = rig.replica("r")
    router = rig.router(replica)
    answers = BulkAnswers()
    replica.engine.gate = steps = CountedSteps()
    ask_bulk(router, [9] * 50, answers)

    steps.let(1)
    num_messages = poll_until(router, lambda: len(answers.first_s) == 50, "the first tokens")
    steps.let(8)
    num_messages += poll_until(router, lambda: len(answers.finish) == 50, "all answers")

    assert replica.engine.num_submit_calls == 1
    assert (num_messages, answers.num_calls) == (9, 2)


def test_seeds_and_temperature_reach_the_engine(rig: Rig) -> None:
    """The end of a sampled answer depends on its seed."""
    router = rig.router(rig.replica("r"))
    answers = BulkAnswers()
    seeds = np.arange(100, 140, dtype=np.uint64)
    ones = np.ones(40, np.int32)
    limit = np.full(40, 3000, np.int32)
    router.submit_bulk("m", ones, ones, limit, seeds, np.arange(40), answers, temperature=1.0)

    poll_until(router, lambda: len(answers.finish) == 40, "all answers")

    def num_tokens(seed: int) -> int:
        tokens = fake_tokens([1], 3000, SamplingParams(3000, temperature=1.0, seed=seed))
        return tokens.index(2) + 1 if 2 in tokens else 3000

    assert [answers.num_tokens[tag] for tag in range(40)] == [num_tokens(seed) for seed in seeds.tolist()]


def test_prompts_may_be_overlapping_slices_of_one_row(rig: Rig) -> None:
    """Engines are asked for the slices, and nothing of the row is copied while they wait."""
    router = rig.router(rig.replica("r"))
    answers = BulkAnswers()
    row, starts, lens = np.arange(1, 40, dtype=np.int32), np.array([0, 2, 1]), np.array([5, 5, 30], np.int32)
    seeds, limit = np.arange(3, dtype=np.uint64), np.full(3, 3000, np.int32)
    arguments = (row, lens, limit, seeds, np.arange(3), answers)

    router.submit_bulk("m", *arguments, temperature=1.0, prompt_starts=starts)
    held = [prompt for prompt in router._table._prompts if prompt is not None]  # pyright: ignore[reportPrivateUsage]
    assert len(held) == 3
    assert all(np.shares_memory(prompt, row) for prompt in held)

    poll_until(router, lambda: len(answers.finish) == 3, "all answers")

    def num_tokens(number: int) -> int:
        prompt = row[starts[number] : starts[number] + lens[number]].tolist()
        tokens = fake_tokens(prompt, 3000, SamplingParams(3000, temperature=1.0, seed=number))
        return tokens.index(2) + 1 if 2 in tokens else 3000

    assert [answers.num_tokens[tag] for tag in range(3)] == [num_tokens(number) for number in range(3)]


def stops(running: Running) -> None:
    running.service.stop()


def hangs(running: Running) -> None:
    running.engine.gate.clear()


def fails(running: Running) -> None:
    engine = running.engine
    engine._die_at_step = engine.stats().total_steps + 2  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize("dies", [fails, stops, hangs])
def test_answers_go_on_elsewhere(rig: Rig, dies: Callable[[Running], None]) -> None:
    doomed, healthy = rig.replica("doomed", slow()), rig.replica("healthy", slow())
    router = rig.router(doomed, healthy, settings=RouterSettings(tick_s=0.02, dead_after_s=0.5))
    answers = BulkAnswers()
    ask_bulk(router, [NUM_TOKENS] * 20, answers)
    poll_until(router, lambda: len(answers.first_s) == 20, "first tokens")

    dies(doomed)
    poll_until(router, lambda: len(answers.finish) == 20, "all answers")

    assert set(answers.num_tokens.values()) == {NUM_TOKENS}
    assert set(answers.finish.values()) == {FinishReason.LENGTH}
    model = model_of(router)
    assert (model.num_continued, model.num_finished, model.num_failed) == (10, 20, 0)
    assert model.num_output_tokens == 20 * NUM_TOKENS, "no token is computed for the answer twice"


def test_continued_prompts_are_prompt_and_emitted_tokens(rig: Rig) -> None:
    """What the successor computes first shows what it was given: the fake engine's tokens depend on all before."""
    doomed = rig.replica("first", slow())
    router = rig.router(doomed)
    answers, batches = BulkAnswers(), []
    ask_bulk(router, [NUM_TOKENS] * 4, answers)
    poll_until(router, lambda: len(answers.first_s) == 4, "first tokens")
    doomed.service.stop()
    poll_until(router, lambda: states(router) == {"lost"}, "the loss")
    engine = slow()
    submit = engine.submit
    engine.submit = lambda batch: (batches.append(batch), submit(batch))[1]  # pyright: ignore

    router.update_replicas([doomed.address, rig.replica("second", engine).address])
    poll_until(router, lambda: len(answers.finish) == 4, "all answers")

    prompts = [
        prompt.tolist()
        for batch in batches
        for prompt in np.split(batch.prompt_ids, batch.prompt_lens.cumsum()[:-1])
    ]
    for prompt in prompts:
        i = prompt[0]
        assert prompt == [i, i, *fake_tokens([i, i], NUM_TOKENS)][: len(prompt)]
        assert len(prompt) > 2
    assert sorted(prompt[0] for prompt in prompts) == [0, 1, 2, 3]


def test_request_that_kills_every_replica_fails(rig: Rig) -> None:
    replicas = [rig.replica(f"r{i}", FakeEngine(die_at_step=5)) for i in range(4)]
    router = rig.router(*replicas, settings=RouterSettings(tick_s=0.02, max_attempts=3))
    answers = BulkAnswers()
    ask_bulk(router, [NUM_TOKENS], answers)

    poll_until(router, lambda: answers.finish, "the error")

    assert answers.finish == {0: FinishReason.ERROR}
    assert answers.num_tokens == {0: 12}, "four tokens from each"
    assert model_of(router).num_failed == 1


def test_what_can_never_fit_ends_with_an_error(rig: Rig) -> None:
    router = rig.router(rig.replica("r", FakeEngine(max_model_len=10)))
    answers = BulkAnswers()
    ask_bulk(router, [50, 5], answers)

    poll_until(router, lambda: len(answers.finish) == 2, "both ends")

    assert answers.finish == {0: FinishReason.ERROR, 1: FinishReason.LENGTH}
    assert answers.num_tokens == {0: 0, 1: 5}
    assert sorted(answers.first_s) == [1]


def test_draining_cuts_nothing(rig: Rig) -> None:
    old, new = rig.replica("old", slow()), rig.replica("new", slow())
    router = rig.router(old, new)
    first, second = BulkAnswers(), BulkAnswers()
    ask_bulk(router, [200] * 10, first)
    poll_until(router, lambda: len(first.first_s) == 10, "first tokens")

    old.service.begin_drain()
    num_asked = 0
    while not old.service.drain(0):
        ask_bulk(router, [20], second, first_tag=num_asked)  # some meet the replica that refuses
        num_asked += 1
        router.poll(0.001)
    poll_until(router, lambda: len(first.finish) == 10 and len(second.finish) == num_asked, "all answers")

    assert set(first.num_tokens.values()) == {200}
    assert set(second.num_tokens.values()) == {20}
    assert old.engine.aborted_ids == []
    assert (model_of(router).num_continued, model_of(router).num_failed) == (0, 0)


def test_abort_frees_queue_and_replica(rig: Rig) -> None:
    replica = rig.replica("r", slow(max_num_seqs=2))
    router = rig.router(replica)
    answers, kept = BulkAnswers(), BulkAnswers()
    ids = ask_bulk(router, [4000] * 6, answers)
    ask_bulk(router, [5] * 3, kept)
    poll_until(router, lambda: answers.first_s, "the first tokens")
    router.abort_many(ids)
    router.abort_many(ids)
    router.abort(int(ids[0]))

    poll_until(router, lambda: len(kept.finish) == 3, "the others' answers")
    wait_until(lambda: not replica.engine.has_work(), "an idle engine")

    assert answers.finish == {}
    assert (model_of(router).num_aborted, model_of(router).num_finished) == (6, 3)
    assert (model_of(router).num_queued, model_of(router).num_in_flight) == (0, 0)
    assert router.snapshot().replicas[0].outstanding_tokens == 0


def test_a_sink_that_raises_loses_its_own_requests_only(rig: Rig) -> None:
    replica = rig.replica("r", slow())
    router = rig.router(replica)
    broken, answers = BulkAnswers(fails=True), BulkAnswers()
    ask_bulk(router, [2000] * 3, broken)
    ask_bulk(router, [10] * 3, answers)

    poll_until(router, lambda: len(answers.finish) == 3, "the others' answers")

    wait_until(lambda: not replica.engine.has_work(), "an idle engine")
    assert broken.num_calls == 1
    assert model_of(router).num_aborted == 3


def test_waiting_for_a_replica_has_an_end(rig: Rig) -> None:
    doomed, now_s = rig.replica("r", slow()), [1000.0]
    router = rig.closing(Router("router", None, RouterSettings(continuation_timeout_s=30.0), lambda: now_s[0]))
    router.update_replicas([doomed.address])
    answers = BulkAnswers()
    ask_bulk(router, [NUM_TOKENS] * 3, answers)
    poll_until(router, lambda: len(answers.first_s) == 3, "first tokens")
    doomed.service.stop()
    poll_until(router, lambda: states(router) == {"lost"}, "the loss")
    router.tick()
    now_s[0] += 29.0
    router.tick()
    assert answers.finish == {}

    now_s[0] += 2.0
    router.tick()

    assert answers.finish == dict.fromkeys(range(3), FinishReason.ERROR)
    with pytest.raises(UnavailableError, match="r is lost: the replica stopped"):
        ask_bulk(router, [1], answers)


def test_full_queue_refuses_all_or_none(rig: Rig) -> None:
    replica = rig.replica("r", FakeEngine(max_num_seqs=4))
    router = rig.router(replica, settings=RouterSettings(models={"m": 3}, overcommit=0.25, tick_s=0.02))
    replica.engine.gate.clear()
    answers = BulkAnswers()

    with pytest.raises(OverloadedError):
        ask_bulk(router, [4] * 9, answers)
    ask_bulk(router, [4] * 8, answers)
    with pytest.raises(OverloadedError):
        ask_bulk(router, [4], answers)
    replica.engine.gate.set()
    poll_until(router, lambda: len(answers.finish) == 8, "all answers")

    assert (model_of(router).num_refused, model_of(router).num_submitted) == (10, 8)


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"prompt_ids": [1, 2, 3]}, RequestError, "prompt"),
        ({"prompt_ids": [1, 2, 3, -4]}, RequestError, "prompt"),
        ({"prompt_lens": [4, 0]}, RequestError, "prompt"),
        ({"max_tokens": [1, 0]}, RequestError, "max_tokens"),
        ({"temperature": -1.0}, RequestError, "temperature"),
        ({"tags": [1]}, ValueError, "tags"),
        ({"prompt_starts": [0]}, ValueError, "prompt_starts"),
        ({"prompt_starts": [0, 3]}, RequestError, "prompt"),
        ({"prompt_starts": [-1, 0]}, RequestError, "prompt"),
        ({"seeds": [1]}, ValueError, "seeds"),
        ({"model": "other"}, UnknownModelError, "other"),
    ],
)
def test_bad_requests_are_named(changes: dict[str, object], error: type[Exception], match: str) -> None:
    router = Router("router", None, RouterSettings(models={"m": 4}))
    good = {
        "prompt_ids": [1, 2, 3, 4],
        "prompt_lens": [2, 2],
        "max_tokens": [1, 1],
        "seeds": [0, 0],
        "tags": [0, 1],
    }
    arguments = {name: np.array(values) for name, values in good.items()} | {"model": "m", "sink": BulkAnswers()}
    try:
        with pytest.raises(error, match=match):
            router.submit_bulk(
                **(arguments | {k: np.array(v) if isinstance(v, list) else v for k, v in changes.items()})  # pyright: ignore
            )
    finally:
        router.close()


def test_read_only_prompts_are_taken_as_they_are_and_others_copied() -> None:
    ids, ones = np.array([1, 2], np.int32), np.ones(2, np.int32)

    def taken() -> np.ndarray:
        return checked_bulk(ids, ones, ones, np.zeros(2, np.uint64), False, 0.0).prompt_ids

    assert not np.shares_memory(taken(), ids)
    ids.setflags(write=False)
    assert np.shares_memory(taken(), ids)


def test_a_flush_that_takes_long_goes_on_later(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two messages the router hears replicas and tells them that it lives."""
    monkeypatch.setattr(dispatch, "MAX_FLUSH_S", 0.0)
    replicas = [rig.replica(f"r{i}", FakeEngine(max_num_seqs=4)) for i in range(3)]
    router = rig.router(*replicas, settings=RouterSettings(tick_s=0.02, max_clump_s=0.0))
    answers = BulkAnswers()
    ask_bulk(router, [5] * 9, answers)

    num_flushes = 0
    while router.next_flush_s() <= 0.0 or num_flushes == 0:
        router.flush()
        num_flushes += 1
    assert num_flushes == 3
    poll_until(router, lambda: len(answers.finish) == 9, "all answers")


@pytest.mark.parametrize("finite_batch", [False, True])
def test_a_finite_batch_begins_with_what_takes_long(rig: Rig, finite_batch: bool) -> None:
    """One request at a time: the order of the ends shows the order of the beginnings."""
    replica = rig.replica("r", FakeEngine(max_num_seqs=1))
    settings = RouterSettings(tick_s=0.02, finite_batch=finite_batch)
    router = rig.router(replica, settings=settings)
    answers = BulkAnswers()
    ask_bulk(router, [5, 60, 20, 40, 60, 10], answers)

    poll_until(router, lambda: len(answers.finish) == 6, "all answers")

    lengths = [answers.num_tokens[tag] for tag in answers.finish]
    assert lengths == ([60, 60, 40, 20, 10, 5] if finite_batch else [5, 60, 20, 40, 60, 10])


def test_a_finite_batch_ends_however_replicas_come_and_go(rig: Rig) -> None:
    replicas = [rig.replica(f"r{i}", FakeEngine(max_num_seqs=4, step_s=0.0005)) for i in range(3)]
    router = rig.router(*replicas, settings=RouterSettings(tick_s=0.02, finite_batch=True))
    answers = BulkAnswers()
    ids = ask_bulk(router, [1 + i % 40 for i in range(300)], answers)
    poll_until(router, lambda: len(answers.finish) > 20, "some answers")
    router.abort_many(ids[250:])
    replicas[0].service.stop()
    num_aborted = sum(tag not in answers.finish for tag in range(250, 300))

    poll_until(router, lambda: len(answers.finish) == 300 - num_aborted, "all others")

    assert all(answers.num_tokens[tag] == 1 + tag % 40 for tag in answers.finish)
