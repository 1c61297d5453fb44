import stat
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import zmq
from nfold.deployments.addresses import ReplicaAddress, ServiceKeys
from nfold.deployments.engine_service import ServiceSettings
from nfold.deployments.router import Router, RouterSettings
from nfold.deployments.transport import ReplicaSocket, RouterSocket, end_context
from nfold.models.engine.protocol import SamplingParams
from nfold.models.errors import ConfigError, UnavailableError
from service_rig import Answer, Rig, poll_until, states, wait_until

ELSEWHERE = RouterSettings(host="elsewhere", tick_s=0.02)
OVER_TCP = ServiceSettings(status_s=0.05, tcp_host="127.0.0.1")


def test_ipc_directory_is_private_and_removed() -> None:
    socket = ReplicaSocket("replica", None, None, None)
    directory = Path(socket.ipc_endpoint.removeprefix("ipc://")).parent

    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert socket.tcp_endpoint == ""
    socket.close()
    assert not directory.exists()


@pytest.mark.parametrize("host", ["0.0.0.0", "*", "::", "", "192.0.2.7"])
def test_tcp_binds_on_an_address_of_this_node_only(host: str) -> None:
    with pytest.raises(ConfigError, match="tcp_host"):
        ReplicaSocket("replica", ServiceKeys.generate(), host, None)


def test_too_long_a_path_is_named(tmp_path: Path) -> None:
    parent = tmp_path / ("x" * 100)
    parent.mkdir()

    with pytest.raises(ConfigError, match="ipc_parent"):
        ReplicaSocket("replica", None, None, parent)


def test_no_keys_no_tcp() -> None:
    socket = ReplicaSocket("replica", None, "127.0.0.1", None)

    assert socket.tcp_endpoint == ""
    socket.close()


def test_wake_ends_a_wait() -> None:
    socket = ReplicaSocket("replica", None, None, None)
    socket.wake()

    socket.wait(60)

    socket.close()
    socket.wake()


def test_keys_hide_their_secrets() -> None:
    keys = ServiceKeys.generate()

    assert keys.server_secret not in repr(keys)
    assert keys.client_secret not in repr(keys)


def test_addresses_come_back() -> None:
    address = ReplicaAddress(
        replica_id="r",
        model="m",
        pool="p",
        accelerator="AMD-Instinct-MI355X-OAM",
        node_id="n",
        host="h",
        ipc_endpoint="ipc:///x",
        tcp_endpoint="tcp://10.0.0.1:5",
        max_num_seqs=3,
        max_model_len=4,
        tp=8,
    )

    assert ReplicaAddress.from_json(address.to_json()) == address


def test_one_router_reaches_ipc_and_tcp_replicas() -> None:
    keys = ServiceKeys.generate()
    with Rig() as rig:
        near = rig.replica("near", keys=keys, settings=OVER_TCP)
        far = rig.replica("far", keys=keys, settings=OVER_TCP)
        # Its path does not exist here, as that of a replica on another host.
        far.service.address = replace(far.address, ipc_endpoint="ipc:///nowhere/replica")
        router = rig.router(near, far, keys=keys)
        answers = [Answer(), Answer()]
        for answer in answers:
            router.submit("m", [1, 2], SamplingParams(3, ignore_eos=True), answer)

        poll_until(router, lambda: all(answer.ended for answer in answers), "both answers")

        assert near.engine.num_submit_calls == far.engine.num_submit_calls == 1
        assert answers[0].tokens == answers[1].tokens


def test_wrong_client_key_gets_nothing() -> None:
    keys = ServiceKeys.generate()
    stranger = replace(ServiceKeys.generate(), server_public=keys.server_public)
    with Rig() as rig:
        replica = rig.replica("far", keys=keys, settings=OVER_TCP)
        router = rig.closing(Router("stranger", stranger, ELSEWHERE))
        router.update_replicas([replica.address])
        poll_until(router, lambda: states(router) == {"refused"}, "the refusal")

        with pytest.raises(UnavailableError, match="keys"):
            router.submit("m", [1], SamplingParams(1), Answer())
        wait_until(lambda: replica.service.status.idle_s > 0, "a status")
        assert replica.service.status.num_messages_in == 0


def test_plain_client_on_the_tcp_port_gets_nothing() -> None:
    keys = ServiceKeys.generate()
    with Rig() as rig:
        replica = rig.replica("far", keys=keys, settings=OVER_TCP)
        context = zmq.Context()
        plain = context.socket(zmq.DEALER)
        plain.setsockopt(zmq.LINGER, 0)
        plain.connect(replica.address.tcp_endpoint)
        plain.send(b"\x94\x01\x01\xa1x")
        monitored = rig.closing(Router("member", keys, ELSEWHERE))
        monitored.update_replicas([replica.address])
        poll_until(monitored, lambda: states(monitored) == {"ready"}, "the member's session")

        assert replica.service.status.num_rejected_messages == 0
        assert not plain.poll(0)
        context.destroy(linger=0)


def test_wrong_server_is_not_talked_to() -> None:
    """A replica of another service that holds the port cannot read what members send."""
    keys, other = ServiceKeys.generate(), ServiceKeys.generate()
    with Rig() as rig:
        replica = rig.replica("far", keys=other, settings=OVER_TCP)
        router = rig.closing(
            Router("member", keys, RouterSettings(host="elsewhere", tick_s=0.02, dead_after_s=0.3))
        )
        router.update_replicas([replica.address])

        poll_until(router, lambda: states(router) <= {"lost", "refused"}, "giving up")

        assert replica.service.status.num_messages_in == 0


def test_without_keys_another_host_is_out_of_reach() -> None:
    with Rig() as rig:
        replica = rig.replica("far")
        socket = RouterSocket("router", None, "elsewhere")

        with pytest.raises(UnavailableError, match="needs the service's keys"):
            socket.endpoint_of(replica.address)
        socket.close()


def test_nobody_waits_for_a_context_that_does_not_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("nfold.deployments.transport.ENDS_WITHIN_S", 0.01)
    held = threading.Event()

    class Endless(zmq.Context[zmq.Socket[bytes]]):
        def destroy(self, linger: int | None = None) -> None:
            held.wait()
            super().destroy(linger)

    context = Endless()
    end_context(context, 0.01)
    assert "did not end within 0.02 s" in caplog.text
    held.set()
    wait_until(lambda: context.closed, "the context's end")
