"""Several simulated engines in one thread: each has its own socket, messages, status and end."""

import math
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from nfold.deployments import wire
from nfold.deployments.addresses import ReplicaIdentity
from nfold.deployments.config import ServedModelConfig
from nfold.deployments.engine_host import EngineHost
from nfold.deployments.engine_service import EngineService, ServiceSettings
from nfold.deployments.replica_spec import ReplicaSpec
from nfold.deployments.simulated_host import make_services
from nfold.deployments.transport import RouterSocket, SocketHost
from nfold.models.engine.protocol import FinishReason
from nfold.models.engine.simulated.engine import SimulatedEngine
from nfold.models.engine.simulated.faults import Die
from service_rig import TIMEOUT_S
from simulated import FakeClock, make_batch, make_engine, make_profile


def identity(name: str) -> ReplicaIdentity:
    return ReplicaIdentity(replica_id=name, model="m", pool="p", accelerator="simulated-TEST")


class Peer:
    """A router's socket that speaks by hand to all engines of a host."""

    def __init__(self, services: list[EngineService]) -> None:
        self._socket = RouterSocket("peer", None, services[0].address.host)
        for service in services:
            name = service.address.replica_id
            self._socket.connect(service.address.ipc_endpoint, name)
            self.send(name, wire.Hello(wire.WIRE_VERSION, "peer"))

    def send(self, name: str, message: wire.Message) -> None:
        assert self._socket.send(name, wire.encode(message))

    def messages(self) -> Iterator[tuple[str, wire.Message]]:
        while self._socket.wait(TIMEOUT_S):
            received = self._socket.receive()
            assert received is not None
            yield received[0], wire.decode(received[1])
        raise AssertionError(f"nothing within {TIMEOUT_S} s")

    def close(self) -> None:
        self._socket.close()


@contextmanager
def running(
    engines: list[SimulatedEngine], failed: list[str], gather_s: float = 0.0
) -> Iterator[tuple[EngineHost, Peer]]:
    sockets = SocketHost()
    services = [
        EngineService(engine, identity(str(index)), None, ServiceSettings(), host=sockets)
        for index, engine in enumerate(engines)
    ]
    host = EngineHost(
        services, sockets, lambda service: failed.append(service.address.replica_id), gather_s=gather_s
    )
    thread = threading.Thread(target=host.run, daemon=True)
    peer = Peer(services)
    thread.start()
    try:
        yield host, peer
    finally:
        peer.close()
        host.stop()
        thread.join(TIMEOUT_S)
        assert not thread.is_alive()


@pytest.mark.parametrize("gather_s", [0.0, 0.005])
def test_each_engine_answers_through_its_own_socket(gather_s: float) -> None:
    engines = [SimulatedEngine(make_profile()) for _ in range(3)]
    with running(engines, [], gather_s) as (_, peer):
        for name in "012":
            peer.send(name, wire.Submit(make_batch([int(name) * 10, int(name) * 10 + 1], max_tokens=3)))
        ended: dict[str, list[int]] = {"0": [], "1": [], "2": []}
        tokens = dict.fromkeys(ended, 0)
        for name, message in peer.messages():
            if isinstance(message, wire.Output):
                tokens[name] += len(message.outputs)
                done = message.outputs.finish == FinishReason.LENGTH.value
                ended[name] += message.outputs.request_ids[done].tolist()
            if sum(map(len, ended.values())) == 6:
                break
    assert {name: sorted(ids) for name, ids in ended.items()} == {"0": [0, 1], "1": [10, 11], "2": [20, 21]}
    assert tokens == {"0": 6, "1": 6, "2": 6}


def test_an_engine_that_dies_says_farewell_alone() -> None:
    failed: list[str] = []
    clock = FakeClock(0.0)
    engines = [make_engine(clock, faults=[Die(1.0)]), SimulatedEngine(make_profile())]
    with running(engines, failed) as (host, peer):
        for name, message in peer.messages():
            if isinstance(message, wire.Welcome) and name == "0":
                clock.now_s = 2.0
            if isinstance(message, wire.Goodbye):
                assert name == "0"
                assert "died" in message.reason
                break
        peer.send("1", wire.Submit(make_batch([1], max_tokens=2)))
        for name, message in peer.messages():
            if isinstance(message, wire.Output) and message.outputs.finish.any():
                assert name == "1"
                break
        assert failed == ["0"]
        assert host.failure is None
    assert host.failure is None, "the other engine was stopped, it did not fail"


def test_draining_finishes_what_is_in_flight() -> None:
    engines = [SimulatedEngine(make_profile()) for _ in range(2)]
    with running(engines, []) as (host, peer):
        peer.send("1", wire.Submit(make_batch([1], max_tokens=20)))
        for name, message in peer.messages():
            if name == "1" and isinstance(message, wire.Output):
                break
        assert host.drain(TIMEOUT_S)
        assert engines[1].stats().total_output_tokens == 20


def test_turns_follow_the_engine_s_clock_and_every_moment_is_counted() -> None:
    clock, sockets = FakeClock(), SocketHost()
    engine = make_engine(clock)
    service = EngineService(engine, identity("r"), None, ServiceSettings(status_s=1000.0), clock, sockets)
    clock.now_s += 2.0  # the first turn tells the status, so nothing is due before the next
    assert service.turn() == pytest.approx(clock.now_s + 1000.0)
    engine.submit(make_batch([1], prompt_len=10, max_tokens=2))
    first_s = service.turn()
    assert first_s == pytest.approx(clock.now_s + 0.02, abs=1e-4)  # 10 ms and 10 prompt tokens of 1 ms each
    clock.now_s = first_s + 0.001  # late: the next step is due when it would have been
    assert service.turn() == pytest.approx(first_s + 0.0101, abs=1e-4)
    clock.now_s += 0.02
    assert service.turn() == pytest.approx(1102.0)  # the status
    clock.now_s = 1102.0
    service.turn()
    status = service.status
    assert status.idle_s + status.busy_s + status.overhead_s == pytest.approx(1002.0)
    assert status.busy_s == pytest.approx(0.041, abs=1e-3)
    assert status.stats.total_output_tokens == 2
    service.stop()
    assert service.turn() == math.inf
    sockets.close()


def test_an_idle_engine_dies_on_time() -> None:
    clock, sockets = FakeClock(), SocketHost()
    engine = make_engine(clock, faults=[Die(7.0)])
    service = EngineService(engine, identity("r"), None, ServiceSettings(status_s=1000.0), clock, sockets)
    service.turn()
    assert service.turn() == pytest.approx(clock.now_s + 7.0)
    clock.now_s += 7.0
    assert service.turn() == math.inf
    assert "died" in str(service.failure)
    assert service.wait_ended(0.0)
    sockets.close()


def test_what_comes_during_a_step_waits_for_its_end() -> None:
    """It could not be computed sooner, and each time that a host wakes costs as much as a step."""
    clock, sockets = FakeClock(), SocketHost()
    engine = make_engine(clock)
    service = EngineService(engine, identity("r"), None, ServiceSettings(status_s=1000.0), clock, sockets)
    peer = Peer([service])
    assert sockets.wait(TIMEOUT_S), "idle: the greeting wakes it"
    engine.submit(make_batch([1], prompt_len=10, max_tokens=1))
    due_s = service.turn()
    peer.send("r", wire.Submit(make_batch([2], prompt_len=10, max_tokens=1)))
    assert sockets.wait(0.1) == set()
    clock.now_s = due_s
    due_s = service.turn()
    assert engine.stats().num_running == 1, "it joined the next step"
    clock.now_s = due_s
    service.turn()
    peer.send("r", wire.Ping(0.0))
    assert sockets.wait(TIMEOUT_S), "idle again"
    peer.close()
    sockets.close()


def test_an_engine_that_knows_tells_when_it_takes_in_requests() -> None:
    clock, sockets = FakeClock(), SocketHost()
    engine = make_engine(clock)
    service = EngineService(engine, identity("r"), None, ServiceSettings(status_s=1000.0), clock, sockets)
    peer = Peer([service])
    peer.send("r", wire.Submit(make_batch([1], prompt_len=10, max_tokens=2)))
    due_s = 0.0
    while not engine.has_work():
        assert sockets.wait(TIMEOUT_S)
        due_s = service.turn()
    outputs = (message for _, message in peer.messages() if isinstance(message, wire.Output))
    clock.now_s = due_s
    due_s = service.turn()
    intake = next(outputs).intake
    assert intake is not None
    assert intake.in_s == pytest.approx(due_s - clock.now_s), "when its step ends"
    assert intake.every_s > 0.0
    clock.now_s = due_s
    service.turn()
    assert next(outputs).intake is None, "at any time"
    peer.close()
    sockets.close()


def test_a_pool_s_engines_have_its_profile_and_their_faults() -> None:
    model = ServedModelConfig.model_validate(
        {
            "name": "m",
            "path": "simulated",
            "engine": {
                "engine": "simulated",
                "max_model_len": 1000,
                "simulated": {
                    "scenario": "server",
                    "faults": [{"kind": "slow", "percent": 20, "hosts": [2], "engines": [1]}],
                },
            },
            "pools": [{"accelerator": "MI300X"}],
        }
    )
    spec = ReplicaSpec(service="s", model=model, pool=model.pools[0], pool_name="p", drain_timeout_s=1.0)
    sockets = SocketHost()
    services = make_services(spec, [identity("r.0"), identity("r.1")], 2, None, ServiceSettings(), sockets)
    addresses = [service.address for service in services]
    for service in services:
        service.stop()
        service.turn()
    sockets.close()
    assert [address.engine for address in addresses] == ["simulated"] * 2
    assert addresses[0].max_model_len == 1000
    assert addresses[0].settings["profile"] == "MI300X--llama-2-70b"
    assert addresses[0].settings["scenario"] == "server"
    assert [str(address.settings["faults"]) for address in addresses] == ["", "Slow(percent=20.0, at_s=0.0)"]
    assert addresses[0].ipc_endpoint != addresses[1].ipc_endpoint


def test_a_simulated_node_s_process_has_no_torch() -> None:
    code = (
        "import sys\n"
        "import nfold.deployments.replica, nfold.deployments.simulated_host\n"
        "from nfold.models.engine.simulated.engine import SimulatedEngine\n"
        "from nfold.models.engine.simulated.profile import load_profile\n"
        "SimulatedEngine(load_profile('MI355X--llama-2-70b'), 'offline')\n"
        "print(sorted({'torch', 'transformers', 'tokenizers', 'triton'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
