"""The service against a router's bare socket, so that each message can be seen."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import msgspec
import numpy as np
import pytest
from fake_engine import FakeEngine, fake_tokens
from nfold.deployments import wire
from nfold.deployments.engine_service import ServiceSettings
from nfold.deployments.transport import RouterSocket
from nfold.models.engine.protocol import FinishReason, SamplingParams, StepOutputs, SubmitBatch
from nfold.models.errors import EngineError
from service_rig import TIMEOUT_S, Rig, Running, wait_until

M = TypeVar("M", bound=wire.Message)


class Peer:
    """A router's socket that speaks by hand to one replica."""

    def __init__(self, replica: Running, router_id: str = "peer") -> None:
        self.router_id = router_id
        self._socket = RouterSocket(router_id, None, replica.address.host)
        self._socket.connect(replica.address.ipc_endpoint, "replica")
        self.heard: list[wire.Message] = []

    def send(self, message: wire.Message | list[bytes]) -> None:
        frames = message if isinstance(message, list) else wire.encode(message)
        assert self._socket.send("replica", frames)

    def next(self, kind: type[M]) -> M:
        """The next message of this kind; those before it go to `heard`."""
        while self._socket.wait(TIMEOUT_S):
            received = self._socket.receive()
            assert received is not None
            message = wire.decode(received[1])
            if isinstance(message, kind):
                return message
            self.heard.append(message)
        raise AssertionError(f"no {kind.__name__} within {TIMEOUT_S} s")

    def rows(self, num_ended: int) -> list[StepOutputs]:
        """Outputs until so many requests have ended."""
        outputs: list[StepOutputs] = []
        while sum(int((o.finish != FinishReason.NONE).sum()) for o in outputs) < num_ended:
            outputs.append(self.next(wire.Output).outputs)
        return outputs

    def submit(self, ids: list[int], max_tokens: int = 4) -> None:
        sampling = [SamplingParams(max_tokens, ignore_eos=True)] * len(ids)
        self.send(wire.Submit(SubmitBatch.build(ids, [[1, request_id] for request_id in ids], sampling)))

    def close(self) -> None:
        self._socket.close()


@contextmanager
def greeted(replica: Running, router_id: str = "peer") -> Iterator[Peer]:
    peer = Peer(replica, router_id)
    try:
        peer.send(wire.Hello(wire.WIRE_VERSION, router_id))
        assert peer.next(wire.Welcome) == wire.Welcome(wire.WIRE_VERSION, replica.address.replica_id)
        yield peer
    finally:
        peer.close()


@pytest.fixture
def rig() -> Iterator[Rig]:
    with Rig() as rig:
        yield rig


def test_one_output_message_per_step(rig: Rig) -> None:
    replica = rig.replica("r")
    with greeted(replica) as peer:
        peer.submit(list(range(10)), max_tokens=7)

        outputs = peer.rows(num_ended=10)

    assert [len(output) for output in outputs] == [10] * 7
    assert replica.engine.stats().total_steps == 7
    assert replica.engine.num_submit_calls == 1
    tokens = [int(output.token_ids[output.request_ids == 3][0]) for output in outputs]
    assert tokens == fake_tokens([1, 3], 7)


def test_two_routers_may_use_the_same_ids(rig: Rig) -> None:
    replica = rig.replica("r")
    replica.engine.gate.clear()
    with greeted(replica, "one") as one, greeted(replica, "two") as two:
        one.submit([1, 2], max_tokens=3)
        two.submit([2], max_tokens=3)
        replica.engine.gate.set()

        outputs = [*one.rows(num_ended=2), *two.rows(num_ended=1)]

    assert [output.request_ids.tolist() for output in outputs[:3]] == [[1, 2]] * 3
    assert [output.request_ids.tolist() for output in outputs[3:]] == [[2]] * 3
    assert len(set(replica.engine.submitted_ids)) == 3


def test_status_comes_without_work_and_times_add_up(rig: Rig) -> None:
    replica = rig.replica("r", FakeEngine(step_s=0.002))
    with greeted(replica) as peer:
        peer.submit([1], max_tokens=20)
        peer.rows(num_ended=1)
        statuses = [peer.next(wire.Status).status for _ in range(3)]

    first, last = statuses[0], statuses[-1]
    assert last.stats.total_steps == 20
    assert last.busy_s >= 20 * 0.002
    assert last.busy_s == first.busy_s
    assert last.idle_s > first.idle_s
    assert last.overhead_s > 0
    assert (last.num_gateways, last.num_messages_in, last.num_rejected_messages) == (1, 2, 0)


def test_abort_frees(rig: Rig) -> None:
    replica = rig.replica("r", FakeEngine(step_s=0.001))
    with greeted(replica) as peer:
        peer.submit([1, 2], max_tokens=4000)
        peer.next(wire.Output)
        peer.send(wire.Abort(np.array([1], np.uint64)))
        wait_until(lambda: replica.engine.stats().num_kv_blocks_used == 1, "the freed block")
        peer.send(wire.Abort(np.array([2, 77], np.uint64)))
        wait_until(lambda: not replica.engine.has_work(), "an idle engine")


@pytest.mark.parametrize("manner", ["goodbye", "closed", "begins anew", "silent"])
def test_router_that_leaves_frees(rig: Rig, manner: str) -> None:
    settings = ServiceSettings(status_s=0.05, gateway_dead_after_s=0.2 if manner == "silent" else 60.0)
    replica = rig.replica("r", FakeEngine(step_s=0.001), settings=settings)
    with greeted(replica) as peer:
        peer.submit([1, 2, 3], max_tokens=4000)
        peer.next(wire.Output)
        match manner:
            case "goodbye":
                peer.send(wire.Goodbye(wire.WIRE_VERSION, "done"))
            case "closed":
                peer.close()
            case "begins anew":
                peer.send(wire.Hello(wire.WIRE_VERSION, "peer"))
            case _:
                pass
        wait_until(lambda: not replica.engine.has_work(), "an idle engine")

        assert len(replica.engine.aborted_ids) == 3
        wait_until(lambda: replica.service.status.num_gateways == (manner == "begins anew"), "the count of routers")


def test_rows_of_an_earlier_session_do_not_reach_the_new_one(rig: Rig) -> None:
    replica = rig.replica("r")
    with greeted(replica) as peer:
        replica.engine.gate.clear()
        peer.submit([1], max_tokens=4000)
        peer.send(wire.Hello(wire.WIRE_VERSION, "peer"))
        peer.submit([2], max_tokens=3)
        replica.engine.gate.set()
        outputs = peer.rows(num_ended=1)

    after_welcome = [output.request_ids.tolist() for output in outputs[-3:]]
    assert after_welcome == [[2]] * 3


def test_drain_finishes_what_runs_and_refuses_what_is_new(rig: Rig) -> None:
    replica = rig.replica("r", FakeEngine(step_s=0.002))
    with greeted(replica) as peer:
        peer.submit([1, 2], max_tokens=50)
        peer.next(wire.Output)
        replica.service.begin_drain()
        peer.next(wire.Draining)
        peer.submit([3])
        assert peer.next(wire.Refused).request_ids.tolist() == [3]
        ended = peer.rows(num_ended=2)[-1]
        assert ended.finish.tolist() == [FinishReason.LENGTH] * 2
        goodbye = peer.next(wire.Goodbye)

    assert goodbye.version == wire.WIRE_VERSION
    assert replica.service.drain(TIMEOUT_S)
    assert replica.service.failure is None
    assert replica.engine.stats().total_output_tokens == 100


def test_drain_without_work_ends_at_once(rig: Rig) -> None:
    replica = rig.replica("r", settings=ServiceSettings(status_s=60))

    assert replica.service.drain(TIMEOUT_S)


def test_drain_reports_that_time_ran_out(rig: Rig) -> None:
    replica = rig.replica("r")
    with greeted(replica) as peer:
        replica.engine.gate.clear()
        peer.submit([1])
        wait_until(lambda: replica.engine.num_submit_calls, "the request")

        assert not replica.service.drain(0.05)


def test_engine_failure_is_told_and_kept(rig: Rig) -> None:
    replica = rig.replica("r", FakeEngine(die_at_step=2))
    with greeted(replica) as peer:
        peer.submit([1], max_tokens=9)
        goodbye = peer.next(wire.Goodbye)

    assert "told to die at step 2" in goodbye.reason
    replica.thread.join(TIMEOUT_S)
    assert isinstance(replica.service.failure, EngineError)


def test_failure_that_is_no_engine_error_is_kept_too(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[BaseException | None] = []
    monkeypatch.setattr(threading, "excepthook", lambda hook: raised.append(hook.exc_value))
    engine = FakeEngine()
    engine.step = lambda: [][0]  # pyright: ignore
    replica = rig.replica("r", engine)
    with greeted(replica) as peer:
        peer.submit([1])
        assert "IndexError" in peer.next(wire.Goodbye).reason

    replica.thread.join(TIMEOUT_S)
    assert isinstance(replica.service.failure, IndexError)
    assert raised == [replica.service.failure]


def test_other_version_is_told_why(rig: Rig) -> None:
    replica = rig.replica("r")
    peer = rig.closing(Peer(replica))
    peer.send([msgspec.msgpack.encode([1, 99, "peer", "and what version 99 adds"])])

    goodbye = peer.next(wire.Goodbye)

    assert goodbye.version == wire.WIRE_VERSION
    assert f"wire version {wire.WIRE_VERSION}" in goodbye.reason
    assert "version 99" in goodbye.reason


def test_message_before_hello_is_told_why(rig: Rig) -> None:
    replica = rig.replica("r")
    peer = rig.closing(Peer(replica))
    peer.submit([1])

    assert "say hello first" in peer.next(wire.Goodbye).reason


GARBAGE = {
    "no frame": [b""],
    "not msgpack": [b"\xc1\xff\x00garbage"],
    "a pickle": [b"\x80\x04N."],
    "an unknown kind": [msgspec.msgpack.encode([99])],
    "a map": [msgspec.msgpack.encode({"a": 1})],
    "submit without arrays": [msgspec.msgpack.encode([10, 1, 1, 0])],
    "submit with short arrays": [msgspec.msgpack.encode([10, 1000, 1000, 0]), b"\x00" * 64],
    "a negative count": [msgspec.msgpack.encode([10, -1, 5, 0]), b"\x00" * 64],
    "a huge count": [msgspec.msgpack.encode([10, 1 << 62, 1, 0]), b"\x00" * 64],
    "zeros as a submit": [msgspec.msgpack.encode([10, 1, 1, 0]), b"\x00" * 46],
    "three frames": [msgspec.msgpack.encode([11, 1]), b"\x00" * 8, b"x"],
    "what only replicas say": wire.encode(wire.Draining()),
    "an id in flight": wire.encode(wire.Submit(SubmitBatch.build([5], [[1]], [SamplingParams(1)]))),
}


@pytest.mark.parametrize("frames", GARBAGE.values(), ids=GARBAGE.keys())
def test_garbage_ends_its_sender_and_nobody_else(rig: Rig, frames: list[bytes]) -> None:
    replica = rig.replica("r", FakeEngine(step_s=0.001))
    with greeted(replica, "good") as good, greeted(replica, "bad") as bad:
        good.submit([1], max_tokens=200)
        bad.submit([5], max_tokens=4000)
        bad.next(wire.Output)
        bad.send(frames)

        bad.next(wire.Goodbye)
        good.rows(num_ended=1)
        wait_until(lambda: not replica.engine.has_work(), "an idle engine")
        wait_until(lambda: replica.service.status.num_rejected_messages == 1, "the count")

    assert replica.thread.is_alive()
    assert replica.service.failure is None


def test_request_that_can_never_fit_gives_an_error_row(rig: Rig) -> None:
    replica = rig.replica("r", FakeEngine(max_model_len=10))
    with greeted(replica) as peer:
        peer.submit([1], max_tokens=9)
        (output,) = peer.rows(num_ended=1)

    assert output.finish.tolist() == [FinishReason.ERROR]
    assert output.token_ids.tolist() == [-1]
