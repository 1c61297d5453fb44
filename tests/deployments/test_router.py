"""The router against replicas with fake engines over real sockets."""

from collections.abc import Iterator
from dataclasses import replace

import msgspec
import pytest
from fake_engine import FakeEngine, fake_tokens
from nfold.deployments.addresses import ReplicaAddress, ServiceKeys
from nfold.deployments.engine_service import ServiceSettings
from nfold.deployments.router import Router, RouterSettings, TokenChunk
from nfold.deployments.router_stats import RouterSnapshot
from nfold.models.engine.protocol import FinishReason, SamplingParams, SubmitBatch
from nfold.models.errors import OverloadedError, RequestError, UnavailableError, UnknownModelError
from service_rig import Answer, Rig, poll_until, states, wait_until


@pytest.fixture
def rig() -> Iterator[Rig]:
    with Rig() as rig:
        yield rig


def exactly(num_tokens: int, **others: object) -> SamplingParams:
    return SamplingParams(num_tokens, ignore_eos=True, **others)  # pyright: ignore


def ask(router: Router, prompt: list[int], num_tokens: int, stream: bool = True, model: str = "m") -> Answer:
    answer = Answer()
    router.submit(model, prompt, exactly(num_tokens), answer, stream)
    return answer


def all_ended(answers: list[Answer]) -> bool:
    return all(answer.ended for answer in answers)


@pytest.mark.parametrize("num_replicas", [1, 2, 4])
@pytest.mark.parametrize("way", ["ipc", "tcp"])
def test_every_token_arrives_once_and_in_order(rig: Rig, num_replicas: int, way: str) -> None:
    keys = ServiceKeys.generate() if way == "tcp" else None
    settings = ServiceSettings(status_s=0.05, tcp_host="127.0.0.1" if keys else None)
    replicas = [rig.replica(f"r{i}", keys=keys, settings=settings) for i in range(num_replicas)]
    host = "elsewhere" if keys else replicas[0].address.host
    router = rig.router(*replicas, keys=keys, settings=RouterSettings(tick_s=0.02, host=host))
    lengths = {i: 1 + i % 7 for i in range(40)}
    answers = {i: ask(router, [i, 1000], lengths[i], stream=i % 2 == 0) for i in lengths}

    poll_until(router, lambda: all_ended(list(answers.values())), "all answers")

    for i, answer in answers.items():
        assert answer.tokens == fake_tokens([i, 1000], lengths[i])
        assert answer.finish == FinishReason.LENGTH
        assert (
            1 <= len(answer.chunks) <= (lengths[i] if i % 2 == 0 else min(lengths[i], 2))
        )  # steps may be told as one
        assert {chunk.num_prompt_tokens for chunk in answer.chunks} == {2}
    shares = [len(replica.engine.submitted_ids) for replica in replicas]
    assert sum(shares) == 40
    assert max(shares) - min(shares) <= 40 / num_replicas / 2


def test_one_message_per_replica_and_tick_and_one_per_step(rig: Rig) -> None:
    replicas = [rig.replica("r0"), rig.replica("r1")]
    router = rig.router(*replicas)
    for replica in replicas:
        replica.engine.gate.clear()
    answers = [ask(router, [i], 9) for i in range(50)]
    router.flush()
    for replica in replicas:
        replica.engine.gate.set()

    num_messages = poll_until(router, lambda: all_ended(answers), "all answers")

    assert [replica.engine.num_submit_calls for replica in replicas] == [1, 1]
    assert [len(replica.engine.submitted_ids) for replica in replicas] == [25, 25]
    assert num_messages == sum(replica.engine.stats().total_steps for replica in replicas) == 18


def test_submit_many(rig: Rig) -> None:
    replica = rig.replica("r")
    router = rig.router(replica)
    answers = [Answer() for _ in range(30)]
    ids = router.submit_many("m", [[i, i] for i in range(30)], [exactly(5)] * 30, answers)

    poll_until(router, lambda: all_ended(answers), "all answers")

    assert len(set(ids)) == 30
    assert replica.engine.num_submit_calls == 1
    assert [answer.tokens for answer in answers] == [fake_tokens([i, i], 5) for i in range(30)]


def test_sampled_and_seeded_tokens_and_stop_ids(rig: Rig) -> None:
    router = rig.router(rig.replica("r"))
    sampling = SamplingParams(20, temperature=0.7, seed=11, ignore_eos=True)
    expected = fake_tokens([4], 20, sampling)
    sampled, stopped = Answer(), Answer()
    router.submit("m", [4], sampling, sampled)
    router.submit("m", [4], replace(sampling, stop_token_ids=(expected[6],)), stopped)

    poll_until(router, lambda: all_ended([sampled, stopped]), "both answers")

    assert sampled.tokens == expected != fake_tokens([4], 20)
    assert stopped.tokens == expected[: expected.index(expected[6]) + 1]
    assert stopped.finish == FinishReason.STOP


@pytest.mark.parametrize("stream", [True, False])
def test_logprobs_come_with_their_tokens(rig: Rig, stream: bool) -> None:
    router = rig.router(rig.replica("r"))
    answer, plain = Answer(), Answer()
    router.submit("m", [4], exactly(6, num_logprobs=2), answer, stream)
    router.submit("m", [4], exactly(6, num_logprobs=3), Answer(), stream)
    router.submit("m", [4], exactly(6), plain, stream)

    poll_until(router, lambda: all_ended([answer, plain]), "both answers")

    logprobs = [value for chunk in answer.chunks for value in chunk.logprobs or []]
    top_ids = [ids for chunk in answer.chunks for ids in chunk.top_ids or []]
    top_logprobs = [values for chunk in answer.chunks for values in chunk.top_logprobs or []]
    assert logprobs == pytest.approx([-token / 1000 for token in answer.tokens])
    assert top_ids == [[token, token + 1] for token in answer.tokens]
    assert [len(values) for values in top_logprobs] == [2] * 6
    assert all(len(chunk.logprobs or []) == len(chunk.token_ids) for chunk in answer.chunks)
    assert all(chunk.logprobs is None and chunk.top_ids is None for chunk in plain.chunks)


def test_request_that_can_never_fit_gets_an_error_chunk(rig: Rig) -> None:
    router = rig.router(rig.replica("r", FakeEngine(max_model_len=10)))
    answer = ask(router, [1] * 8, 5)

    poll_until(router, lambda: answer.ended, "the error")

    assert answer.finish == FinishReason.ERROR
    assert "r could not answer" in answer.chunks[-1].error
    assert router.snapshot().models[0].num_failed == 1


@pytest.mark.parametrize(
    ("prompt", "sampling", "param"),
    [
        ([], SamplingParams(1), "prompt"),
        ([-1], SamplingParams(1), "prompt"),
        ([1 << 40], SamplingParams(1), "prompt"),
        (["a"], SamplingParams(1), "prompt"),
        ([[1]], SamplingParams(1), "prompt"),
        ([1], SamplingParams(0), "max_tokens"),
        ([1], SamplingParams(1 << 31), "max_tokens"),
        ([1], SamplingParams(1, temperature=float("nan")), "temperature"),
        ([1], SamplingParams(1, temperature=-1.0), "temperature"),
        ([1], SamplingParams(1, top_k=-1), "top_k"),
        ([1], SamplingParams(1, top_p=1.5), "top_p"),
        ([1], SamplingParams(1, seed=-1), "seed"),
        ([1], SamplingParams(1, seed=1 << 64), "seed"),
        ([1], SamplingParams(1, num_logprobs=21), "num_logprobs"),
        ([1], SamplingParams(1, stop_token_ids=(1 << 33,)), "stop_token_ids"),
    ],
)
def test_bad_requests_are_named(rig: Rig, prompt: list[int], sampling: SamplingParams, param: str) -> None:
    router = rig.closing(Router("router", None, RouterSettings(models={"m": 4})))

    with pytest.raises(RequestError, match=param) as error:
        router.submit("m", prompt, sampling, Answer())
    assert error.value.param == param


def test_unknown_model_and_model_without_replica(rig: Rig) -> None:
    router = rig.router(rig.replica("r"), settings=RouterSettings(models={"idle": 4}, tick_s=0.02))

    with pytest.raises(UnknownModelError, match="'x' is not served here; these are: idle, m"):
        ask(router, [1], 1, model="x")
    with pytest.raises(UnavailableError, match="idle"):
        ask(router, [1], 1, model="idle")


def test_requests_may_come_before_the_connection_stands(rig: Rig) -> None:
    replica = rig.replica("r")
    router = rig.closing(Router("early", None, RouterSettings(tick_s=0.02)))
    router.update_replicas([replica.address])
    assert states(router) == {"connecting"}
    answer = ask(router, [1], 3)

    poll_until(router, lambda: answer.ended, "the answer")


def test_models_keep_to_their_replicas(rig: Rig) -> None:
    one, two = rig.replica("one", model="a"), rig.replica("two", model="b")
    router = rig.router(one, two)
    answers = [ask(router, [i], 2, model="b") for i in range(6)]

    poll_until(router, lambda: all_ended(answers), "all answers")

    assert (len(one.engine.submitted_ids), len(two.engine.submitted_ids)) == (0, 6)


def test_full_queue_refuses_with_a_time(rig: Rig) -> None:
    replica = rig.replica("r", FakeEngine(max_num_seqs=4))
    router = rig.router(replica, settings=RouterSettings(models={"m": 3}, overcommit=0.25, tick_s=0.02))
    replica.engine.gate.clear()
    answers = [ask(router, [i], 4) for i in range(5 + 3)]

    with pytest.raises(OverloadedError, match="at most 3 may") as error:
        ask(router, [9], 4)
    router.flush()
    with pytest.raises(OverloadedError):
        router.submit_many("m", [[1], [2]], [exactly(1)] * 2, [Answer(), Answer()])
    model = router.snapshot().models[0]
    replica.engine.gate.set()
    poll_until(router, lambda: all_ended(answers), "all answers")

    assert error.value.retry_after_s > 0
    assert (model.num_queued, model.num_in_flight, model.num_refused) == (3, 5, 3)
    assert max(len(answer.tokens) for answer in answers) == 4
    ask(router, [9], 4)


def test_late_binding_gives_the_queue_to_whoever_is_free(rig: Rig) -> None:
    stuck, free = rig.replica("stuck", FakeEngine(max_num_seqs=4)), rig.replica("free", FakeEngine(max_num_seqs=4))
    router = rig.router(stuck, free)
    stuck.engine.gate.clear()
    answers = [ask(router, [i], 3) for i in range(40)]

    poll_until(router, lambda: sum(answer.ended for answer in answers) == 35, "what the free one can do")
    stuck.engine.gate.set()
    poll_until(router, lambda: all_ended(answers), "the rest")

    assert len(stuck.engine.submitted_ids) == 5


def test_abort_frees_queue_and_replica(rig: Rig) -> None:
    replica = rig.replica("r", FakeEngine(max_num_seqs=2, step_s=0.001))
    router = rig.router(replica)
    answers = [Answer() for _ in range(6)]
    ids = router.submit_many("m", [[1]] * 6, [exactly(4000)] * 6, answers, stream=True)
    poll_until(router, lambda: answers[0].tokens, "the first tokens")
    num_chunks = [len(answer.chunks) for answer in answers]
    for request_id in [*ids, 12345]:
        router.abort(request_id)
    router.abort(ids[0])
    router.flush()

    wait_until(lambda: not replica.engine.has_work(), "an idle engine")
    router.poll(0.05)

    model = router.snapshot().models[0]
    assert (model.num_queued, model.num_in_flight, model.num_aborted) == (0, 0, 6)
    assert [len(answer.chunks) for answer in answers] == num_chunks
    assert router.snapshot().replicas[0].outstanding_tokens == 0


def test_sinks_may_abort_and_submit(rig: Rig) -> None:
    replica = rig.replica("r")
    router = rig.router(replica)
    second, third = Answer(), Answer()
    ids: list[int] = []

    def first(chunk: TokenChunk) -> None:
        router.abort(ids[1])
        if chunk.finish:
            router.submit("m", [7], exactly(2), third)

    ids += router.submit_many("m", [[1], [2]], [exactly(2), exactly(50)], [first, second], stream=True)

    poll_until(router, lambda: third.ended, "the third answer")

    assert second.chunks == []
    assert third.tokens == fake_tokens([7], 2)


def test_a_sink_that_raises_ends_its_own_request_only(rig: Rig) -> None:
    replica = rig.replica("r", FakeEngine(step_s=0.001))
    router = rig.router(replica)

    def broken(chunk: TokenChunk) -> None:
        raise RuntimeError("client gone")

    router.submit("m", [1], exactly(4000), broken)
    answer = ask(router, [2], 10)

    poll_until(router, lambda: answer.ended, "the other answer")

    assert answer.tokens == fake_tokens([2], 10)
    wait_until(lambda: not replica.engine.has_work(), "an idle engine")
    assert router.snapshot().models[0].num_aborted == 1


def test_close_frees_the_replica(rig: Rig) -> None:
    replica = rig.replica("r", FakeEngine(step_s=0.001))
    router = rig.router(replica)
    answer = ask(router, [1], 4000)
    poll_until(router, lambda: answer.tokens, "the first token")

    router.close()

    wait_until(lambda: not replica.engine.has_work(), "an idle engine")


def test_two_routers_share_a_replica(rig: Rig) -> None:
    replica = rig.replica("r", FakeEngine(max_num_seqs=8, step_s=0.001))
    one, two = rig.router(replica, router_id="one"), rig.router(replica, router_id="two")
    first, second = [ask(one, [i], 800) for i in range(6)], [ask(two, [i], 5) for i in range(2)]

    def both() -> bool:
        one.poll(0)
        return all_ended(second)

    poll_until(two, both, "the second router's answers")
    poll_until(two, lambda: two.snapshot().replicas[0].num_in_flight_others == 6, "the others' load")
    poll_until(one, lambda: all_ended(first), "the first router's answers")

    assert [answer.tokens for answer in second] == [fake_tokens([i], 5) for i in range(2)]
    assert [answer.tokens for answer in first] == [fake_tokens([i], 800) for i in range(6)]


def test_snapshot_counts_and_travels(rig: Rig) -> None:
    router = rig.router(rig.replica("r0"), rig.replica("r1"))
    answers = [Answer() for _ in range(10)]
    for i, answer in enumerate(answers):
        router.submit("m", [i, i, i], SamplingParams(5), answer, stream=i % 2 == 0)
    poll_until(router, lambda: all_ended(answers), "all answers")
    poll_until(
        router, lambda: all(r.status and r.status.stats.total_steps for r in router.snapshot().replicas), "statuses"
    )

    snapshot = router.snapshot()

    (model,) = snapshot.models
    assert (model.num_submitted, model.num_finished, model.num_queued, model.num_in_flight) == (10, 10, 0, 0)
    assert (model.num_prompt_tokens, model.num_output_tokens) == (30, 50)
    assert 5 < model.expected_output_tokens < 10, "nearly what was seen, no more what was believed before"
    (pool,) = snapshot.pools
    assert sum(pool.ttft.counts) == sum(pool.tpot.counts) == sum(pool.e2e.counts) == 10
    assert 0 < pool.ttft.total_s <= pool.e2e.total_s
    assert sum(replica.num_output_tokens for replica in snapshot.replicas) == 50
    assert all(replica.alive and replica.outstanding_tokens == 0 for replica in snapshot.replicas)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(snapshot), type=RouterSnapshot) == snapshot
    assert msgspec.json.decode(msgspec.json.encode(snapshot), type=RouterSnapshot) == snapshot


def test_replica_taken_from_the_list_ends_what_it_has(rig: Rig) -> None:
    old, new = rig.replica("old", FakeEngine(step_s=0.001)), rig.replica("new")
    router = rig.router(old)
    answer = ask(router, [1], 100)
    poll_until(router, lambda: answer.tokens, "the first token")

    router.update_replicas([new.address])
    poll_until(router, lambda: len(router.snapshot().replicas) == 1, "parting from the old one")
    assert answer.ended
    later = ask(router, [2], 3)
    poll_until(router, lambda: later.ended, "the later answer")

    assert answer.tokens == fake_tokens([1], 100)
    assert [replica.address.replica_id for replica in router.snapshot().replicas] == ["new"]
    assert (len(old.engine.submitted_ids), len(new.engine.submitted_ids)) == (1, 1)
    wait_until(lambda: old.service.status.num_gateways == 0, "the farewell")


def test_same_list_again_changes_nothing(rig: Rig) -> None:
    replica = rig.replica("r", FakeEngine(step_s=0.001))
    router = rig.router(replica)
    answer = ask(router, [1], 50)
    poll_until(router, lambda: answer.tokens, "the first token")

    router.update_replicas([ReplicaAddress.from_json(replica.address.to_json())])
    poll_until(router, lambda: answer.ended, "the answer")

    assert len(replica.engine.submitted_ids) == 1
    assert answer.tokens == fake_tokens([1], 50)


def test_pings_tell_how_far_replicas_are(rig: Rig) -> None:
    replica = rig.replica("r")
    router = rig.router(replica, settings=RouterSettings(tick_s=0.01, heartbeat_s=0.01))

    def delay_s() -> float:
        return router.snapshot().replicas[0].delay_s

    poll_until(router, lambda: delay_s() > 0.0, "an answer")

    assert delay_s() < 5.0


@pytest.mark.parametrize(("finite_batch", "chosen"), [(False, "r1"), (True, "r0")])
def test_a_request_goes_where_it_is_taken_in_soonest(rig: Rig, finite_batch: bool, chosen: str) -> None:
    """A batch that is there as a whole has no use for that."""
    replicas = [rig.replica("r0"), rig.replica("r1")]
    router = rig.router(*replicas, settings=RouterSettings(finite_batch=finite_batch))
    loads = router._loads
    for state in router._connections:
        loads.intake_s[state.number] = router._clock() + (1000.0 if state.replica_id == "r0" else 500.0)
        loads.intake_every_s[state.number] = 1000.0
    loads.delay_s[:] = 0.0

    answer = ask(router, [1], 2)
    poll_until(router, lambda: all_ended([answer]), "the answer")

    assert [replica.address.replica_id for replica in replicas if replica.engine.submitted_ids] == [chosen]


def sees_two(router: Router) -> bool:
    return all(replica.status and replica.status.num_gateways == 2 for replica in router.snapshot().replicas)


class CountingEngine(FakeEngine):
    """Remembers the most requests that it ever held."""

    most_held = 0

    def submit(self, batch: SubmitBatch) -> None:
        super().submit(batch)
        stats = self.stats()
        self.most_held = max(self.most_held, stats.num_running + stats.num_waiting)


def test_two_routers_overfill_by_one_routers_share_at_most(rig: Rig) -> None:
    """Neither knows what the other sends at the same moment, so a replica may hold `limit` requests of each, of
    which those beyond its batch wait there. It is no more than that whatever comes and goes."""
    engines = [CountingEngine(max_num_seqs=4) for _ in range(2)]
    replicas = [rig.replica(f"r{i}", engine) for i, engine in enumerate(engines)]
    settings = RouterSettings(tick_s=0.01, overcommit=0.25)
    routers = [rig.router(*replicas, settings=settings, router_id=name) for name in ("one", "two")]
    for router in routers:
        poll_until(router, lambda router=router: sees_two(router), "word of both routers")
    limit = 5
    answers = [ask(router, [i], 6, stream=False) for i in range(30) for router in routers]
    for router in routers:
        router.flush()

    while not all_ended(answers):
        for router in routers:
            router.poll(0.001)
            assert all(replica.num_in_flight <= limit for replica in router.snapshot().replicas)

    assert limit <= max(engine.most_held for engine in engines) <= 2 * limit
    assert sum(len(engine.submitted_ids) for engine in engines) == 60
