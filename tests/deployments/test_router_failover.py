"""Replicas that die, hang, drain or never come, under requests in flight."""

import itertools
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from fake_engine import FakeEngine, fake_tokens
from nfold.deployments import wire
from nfold.deployments.addresses import ReplicaAddress
from nfold.deployments.router import Router, RouterSettings
from nfold.deployments.transport import ReplicaSocket
from nfold.models.engine.protocol import FinishReason, SamplingParams
from nfold.models.errors import UnavailableError
from service_rig import Answer, Rig, Running, poll_until, states, wait_until

NUM_TOKENS = 60


@pytest.fixture
def rig() -> Iterator[Rig]:
    with Rig() as rig:
        yield rig


def ask(
    router: Router, prompt: list[int], num_tokens: int = NUM_TOKENS, stream: bool = True, seed: int = 0
) -> Answer:
    answer = Answer()
    temperature = 1.0 if seed else 0.0
    sampling = SamplingParams(num_tokens, ignore_eos=True, temperature=temperature, seed=seed)
    router.submit("m", prompt, sampling, answer, stream)
    return answer


def all_ended(answers: list[Answer]) -> bool:
    return all(answer.ended for answer in answers)


def slow(**others: int) -> FakeEngine:
    return FakeEngine(step_s=0.001, **others)


def fails(running: Running) -> None:
    """Its engine raises in the step after next."""
    engine = running.engine
    engine._die_at_step = engine.stats().total_steps + 2  # pyright: ignore[reportPrivateUsage]


def stops(running: Running) -> None:
    running.service.stop()


def hangs(running: Running) -> None:
    running.engine.gate.clear()


@pytest.mark.parametrize("dies", [fails, stops, hangs])
def test_answers_go_on_elsewhere_with_the_same_tokens(rig: Rig, dies: Callable[[Running], None]) -> None:
    doomed, healthy = rig.replica("doomed", slow()), rig.replica("healthy", slow())
    router = rig.router(doomed, healthy, settings=RouterSettings(tick_s=0.02, dead_after_s=0.5))
    answers = [ask(router, [i, 5], stream=i % 3 > 0, seed=i % 2) for i in range(20)]
    poll_until(router, lambda: all(answer.tokens for answer in answers), "first tokens")

    dies(doomed)
    poll_until(router, lambda: all_ended(answers), "all answers")

    for i, answer in enumerate(answers):
        sampling = SamplingParams(NUM_TOKENS, temperature=float(i % 2), seed=i % 2)
        assert answer.tokens == fake_tokens([i, 5], NUM_TOKENS, sampling)
        assert answer.finish == FinishReason.LENGTH
        assert {chunk.num_prompt_tokens for chunk in answer.chunks} == {2}
    snapshot = router.snapshot()
    model = snapshot.models[0]
    assert (model.num_continued, model.num_finished, model.num_failed) == (10, 20, 0)
    assert model.num_output_tokens == 20 * NUM_TOKENS
    assert {replica.address.replica_id: replica.state for replica in snapshot.replicas} == {
        "doomed": "lost",
        "healthy": "ready",
    }
    recomputed = healthy.engine.stats().total_prompt_tokens
    assert recomputed > 20 * 2, "continued requests bring the tokens that they had as part of their prompt"


def test_hung_replica_comes_back(rig: Rig) -> None:
    replica = rig.replica("r", slow())
    router = rig.router(replica, settings=RouterSettings(tick_s=0.02, dead_after_s=0.3, heartbeat_s=0.1))
    answer = ask(router, [1])
    poll_until(router, lambda: answer.tokens, "the first token")
    replica.engine.gate.clear()
    poll_until(router, lambda: states(router) == {"lost"}, "its silence to be noticed")
    assert "said nothing for" in router.snapshot().replicas[0].reason
    replica.engine.gate.set()

    poll_until(router, lambda: answer.ended, "the answer")

    assert answer.tokens == fake_tokens([1], NUM_TOKENS)
    assert states(router) == {"ready"}
    assert len(replica.engine.aborted_ids) == 1, "the attempt that was given up is freed"


SERVE = """
import sys
from fake_engine import FakeEngine
from nfold.deployments.addresses import ReplicaIdentity
from nfold.deployments.engine_service import EngineService, ServiceSettings
service = EngineService(FakeEngine(step_s=0.002), ReplicaIdentity(replica_id="doomed", model="m", pool="p"), None)
print(service.address.to_json(), flush=True)
service.run()
"""


def test_killed_process_is_noticed_at_once(rig: Rig) -> None:
    """No farewell: the kernel closes the connection. Silence would be noticed an hour later only."""
    support = Path(__file__).parent.parent / "support"
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(support)},
    )
    assert process.stdout is not None
    address = ReplicaAddress.from_json(process.stdout.readline())
    healthy = rig.replica("healthy", slow())
    router = rig.closing(Router("router", None, RouterSettings(tick_s=0.02, dead_after_s=3600)))
    router.update_replicas([address, healthy.address])
    poll_until(router, lambda: states(router) == {"ready"}, "two replicas")
    answers = [ask(router, [i], 300) for i in range(8)]
    poll_until(router, lambda: all(answer.tokens for answer in answers), "first tokens")

    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    poll_until(router, lambda: all_ended(answers), "all answers")

    assert [answer.tokens for answer in answers] == [fake_tokens([i], 300) for i in range(8)]
    assert router.snapshot().models[0].num_continued == 4
    assert "connection is lost" in router.snapshot().replicas[0].reason


def test_successor_takes_over_when_the_last_replica_died(rig: Rig) -> None:
    doomed = rig.replica("first", slow())
    router = rig.router(doomed)
    answers = [ask(router, [i]) for i in range(5)]
    poll_until(router, lambda: all(answer.tokens for answer in answers), "first tokens")
    doomed.service.stop()
    poll_until(router, lambda: states(router) == {"lost"}, "the loss")
    answers.append(ask(router, [9]))  # it waits with the others

    router.update_replicas([doomed.address, rig.replica("second", slow()).address])
    poll_until(router, lambda: all_ended(answers), "all answers")

    assert [answer.tokens for answer in answers] == [fake_tokens([i], NUM_TOKENS) for i in (*range(5), 9)]


def test_replica_restarted_under_its_name_takes_over(rig: Rig) -> None:
    doomed = rig.replica("r", slow())
    router = rig.router(doomed)
    answer = ask(router, [3])
    poll_until(router, lambda: answer.tokens, "the first token")

    router.update_replicas([rig.replica("r", slow()).address])
    poll_until(router, lambda: answer.ended, "the answer")

    assert answer.tokens == fake_tokens([3], NUM_TOKENS)
    wait_until(lambda: not doomed.engine.has_work(), "the first one to be freed")


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_waiting_for_a_replica_has_an_end(rig: Rig) -> None:
    doomed, clock = rig.replica("r", slow()), Clock()
    router = rig.closing(Router("router", None, RouterSettings(continuation_timeout_s=30.0), clock))
    router.update_replicas([doomed.address])
    answers = [ask(router, [i]) for i in range(3)]
    poll_until(router, lambda: all(answer.tokens for answer in answers), "first tokens")
    doomed.service.stop()
    poll_until(router, lambda: states(router) == {"lost"}, "the loss")
    router.tick()
    clock.now_s += 29.0
    router.tick()
    assert not any(answer.ended for answer in answers)

    clock.now_s += 2.0
    router.tick()

    for i, answer in enumerate(answers):
        assert answer.finish == FinishReason.ERROR
        assert "no replica for 31.0 s" in answer.chunks[-1].error
        assert answer.tokens == fake_tokens([i], NUM_TOKENS)[: len(answer.tokens)]
    assert router.snapshot().models[0].num_failed == 3


def test_request_that_kills_every_replica_fails(rig: Rig) -> None:
    """It may take `max_attempts` replicas down, not all of them."""
    replicas = [rig.replica(f"r{i}", FakeEngine(die_at_step=5)) for i in range(4)]
    router = rig.router(*replicas, settings=RouterSettings(tick_s=0.02, max_attempts=3))
    answer = ask(router, [1])

    poll_until(router, lambda: answer.ended, "the error")

    assert answer.finish == FinishReason.ERROR
    assert "3 replicas were lost under this request" in answer.chunks[-1].error
    assert "told to die" in answer.chunks[-1].error
    assert answer.tokens == fake_tokens([1], 12), "four tokens from each"
    assert sorted(replica.state for replica in router.snapshot().replicas) == ["lost"] * 3 + ["ready"]


def test_draining_cuts_nothing_and_gets_nothing_new(rig: Rig) -> None:
    old, new = rig.replica("old", slow()), rig.replica("new", slow())
    router = rig.router(old, new)
    first = [ask(router, [i], 200) for i in range(10)]
    poll_until(router, lambda: all(answer.tokens for answer in first), "first tokens")
    num_before = len(old.engine.submitted_ids)

    old.service.begin_drain()
    second = []
    for i in itertools.count(100):
        second.append(ask(router, [i], 20))  # some are on their way while the word of draining is too
        router.poll(0.001)
        if old.service.drain(0):
            break
    poll_until(router, lambda: all_ended(first + second), "all answers")

    assert [answer.tokens for answer in first] == [fake_tokens([i], 200) for i in range(10)]
    assert [answer.tokens for answer in second] == [fake_tokens([100 + i], 20) for i in range(len(second))]
    assert len(old.engine.submitted_ids) - num_before < len(second)
    assert old.engine.aborted_ids == []
    model = router.snapshot().models[0]
    assert (model.num_continued, model.num_failed) == (0, 0)


def test_replica_that_never_answers_is_given_up(rig: Rig) -> None:
    """Something listens there, but it is no replica."""
    deaf = rig.closing(ReplicaSocket("deaf", None, None, None))
    template = rig.replica("r").address
    clock = Clock()
    router = rig.closing(Router("router", None, RouterSettings(dead_after_s=5.0), clock))
    router.update_replicas([replace(template, replica_id="deaf", ipc_endpoint=deaf.ipc_endpoint)])
    router.poll(0.01)
    assert states(router) == {"connecting"}

    clock.now_s += 6.0
    router.tick()

    assert states(router) == {"lost"}
    with pytest.raises(UnavailableError, match="it has not answered"):
        ask(router, [1])


@pytest.mark.parametrize("answer", ["welcome", "goodbye"])
def test_replica_of_another_version_is_refused(rig: Rig, answer: str, caplog: pytest.LogCaptureFixture) -> None:
    stranger = rig.closing(ReplicaSocket("r", None, None, None))
    router = rig.closing(Router("router", None, RouterSettings(tick_s=0.02)))
    router.update_replicas([replace(rig.replica("x").address, replica_id="r", ipc_endpoint=stranger.ipc_endpoint)])

    def greeted() -> bool:
        stranger.wait(0.01)
        received = stranger.receive()
        if received is None:
            return False
        assert wire.decode(received[1]) == wire.Hello(wire.WIRE_VERSION, "router")
        return stranger.send(
            received[0], [msgspec.msgpack.encode([2 if answer == "welcome" else 3, 99, "r", "new"])]
        )

    poll_until(router, greeted, "the greeting")
    with caplog.at_level(logging.ERROR):
        poll_until(router, lambda: states(router) == {"refused"}, "the refusal")

    assert (
        f"wire version 99 and this router {wire.WIRE_VERSION}: run one version of nfold on all nodes" in caplog.text
    )
    with pytest.raises(UnavailableError, match="wire version 99"):
        ask(router, [1])


def test_another_replica_at_the_same_endpoint_is_not_taken_for_it(rig: Rig) -> None:
    squatter = rig.replica("squatter")
    router = rig.closing(Router("router", None, RouterSettings(tick_s=0.02)))
    router.update_replicas([replace(squatter.address, replica_id="expected")])

    poll_until(router, lambda: states(router) == {"lost"}, "the discovery")

    assert "replica squatter has taken its place" in router.snapshot().replicas[0].reason
