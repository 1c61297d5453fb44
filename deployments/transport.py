"""The sockets of the data path: one ROUTER in each replica, one ROUTER in each router.

    replica  binds ipc in a 0700 directory, and tcp with CURVE on its node's address
    router   connects to many replicas: ipc on its own host, tcp elsewhere

A router names each connection that it opens (CONNECT_ROUTING_ID) and never uses a name twice, so what comes late
from a connection that was given up is known by its name. A replica knows a router by the id that it declares.
(IMMEDIATE, which would name peers by their own ids on both sides, drops unread messages when a connection ends.)
"""

import contextlib
import logging
import math
import os
import select
import shutil
import socket
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

import zmq
from zmq.auth.thread import ThreadAuthenticator
from zmq.utils.monitor import recv_monitor_message

from ..models.errors import ConfigError, UnavailableError
from .addresses import ReplicaAddress, ServiceKeys
from .wire import Frames

logger = logging.getLogger(__name__)

ZAP_DOMAIN = "nfold"
ZMTP_HEARTBEAT_MS = 5000
# For hosts that vanish; a process that dies is noticed at once. A starved machine may stall for seconds.
ZMTP_TIMEOUT_MS = 15_000
# How long what is still to be said may take to leave when a connection ends.
FAREWELL_LINGER_MS = 500
# How long ZeroMQ may take, after that, to end its threads.
ENDS_WITHIN_S = 3.0
MAX_MESSAGE_BYTES = 1 << 30

# For each message: `send_multipart` would try each frame's type, and all combine flags and options that are enums.
_send_frame, _receive_frame, _option = zmq.backend.Socket.send, zmq.backend.Socket.recv, zmq.backend.Socket.get
_LAST, _NOT_LAST, _POLLIN = int(zmq.NOBLOCK), int(zmq.NOBLOCK | zmq.SNDMORE), int(zmq.POLLIN)
_NO_WAIT, _MORE = _LAST, int(zmq.RCVMORE)


def _new_socket(context: zmq.Context[zmq.Socket[bytes]], own_id: str) -> zmq.Socket[bytes]:
    router = context.socket(zmq.ROUTER)
    router.setsockopt(zmq.ROUTING_ID, own_id.encode())
    router.setsockopt(zmq.ROUTER_MANDATORY, 1)
    router.setsockopt(zmq.ROUTER_HANDOVER, 1)
    router.setsockopt(zmq.IPV6, 1)
    # Now, as connections keep what holds when they begin.
    router.setsockopt(zmq.LINGER, FAREWELL_LINGER_MS)
    router.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
    # What may wait is bounded by the requests in flight; a full queue would drop a peer that is merely slow.
    router.setsockopt(zmq.SNDHWM, 0)
    router.setsockopt(zmq.RCVHWM, 0)
    router.setsockopt(zmq.HEARTBEAT_IVL, ZMTP_HEARTBEAT_MS)
    router.setsockopt(zmq.HEARTBEAT_TIMEOUT, ZMTP_TIMEOUT_MS)
    return router


def end_context(context: zmq.Context[zmq.Socket[bytes]], linger_s: float) -> None:
    """Close its sockets, giving messages already sent `linger_s` to leave.

    ZeroMQ has been seen never to end the context of a replica whose routers had just left, so nobody waits for that
    much longer than for the messages.
    """
    ending = threading.Thread(target=context.destroy, args=(int(linger_s * 1000),), name="end of zmq", daemon=True)
    ending.start()
    ending.join(linger_s + ENDS_WITHIN_S)
    if ending.is_alive():
        logger.warning("ZeroMQ did not end within %g s; going on without", linger_s + ENDS_WITHIN_S)


def _send(router: zmq.Socket[bytes], peer: bytes, frames: Frames) -> bool:
    try:
        _send_frame(router, peer, _NOT_LAST)
        for frame in frames[:-1]:
            _send_frame(router, frame, _NOT_LAST)
        _send_frame(router, frames[-1], _LAST)
    except zmq.ZMQError as error:
        if error.errno in (zmq.EHOSTUNREACH, zmq.EAGAIN):
            return False
        raise
    return True


def _receive(router: zmq.Socket[bytes]) -> tuple[bytes, Frames] | None:
    if not _is_readable(router):  # many times cheaper than the exception that would tell
        return None
    try:
        peer = _receive_frame(router, _NO_WAIT)
        frames: Frames = []
        while _option(router, _MORE):
            frames.append(_receive_frame(router, _NO_WAIT))
    except zmq.Again:
        return None
    return peer, frames


def _is_readable(router: zmq.Socket[bytes]) -> bool:
    return bool(zmq.zmq_poll([(router, _POLLIN)], 0))


def _milliseconds(timeout_s: float) -> int:
    """Rounded up, so that a wait for the rest of a millisecond does not spin."""
    return max(0, math.ceil(timeout_s * 1000))


class _ClientsOfThisService:
    """Admits the service's client key and no other."""

    def __init__(self, client_public: str) -> None:
        self._client_public = client_public.encode()

    def callback(self, domain: str, key: bytes) -> bool:
        return domain == ZAP_DOMAIN and key == self._client_public


class SocketHost:
    """What the replica sockets of one thread share: ZeroMQ's own threads, who may connect, and the wait."""

    def __init__(self) -> None:
        self.context = zmq.Context()
        self._authenticator: ThreadAuthenticator | None = None
        self._waker, self._wakened = socket.socketpair()
        self._waker.setblocking(False)
        self._wakened.setblocking(False)
        self._poller = zmq.Poller()
        self._poller.register(self._wakened, zmq.POLLIN)
        self._num_listening = 0

    def register(self, router: zmq.Socket[bytes]) -> None:
        """Its messages end a wait. Not to be registered already."""
        self._poller.register(router, zmq.POLLIN)
        self._num_listening += 1

    def unregister(self, router: zmq.Socket[bytes]) -> None:
        self._poller.unregister(router)
        self._num_listening -= 1

    def admit(self, keys: ServiceKeys) -> None:
        """Let in the service's clients and nobody else, through all tcp endpoints of these sockets."""
        if self._authenticator is None:
            self._authenticator = ThreadAuthenticator(self.context)
            self._authenticator.start()
            self._authenticator.configure_curve_callback(ZAP_DOMAIN, _ClientsOfThisService(keys.client_public))

    def wait(self, timeout_s: float) -> "set[zmq.Socket[bytes]] | None":
        """Sleep until messages are there, until `wake`, or for `timeout_s`; while no socket is registered to the
        point, else up to a millisecond more.

        Returns:
            The sockets with messages; None when woken, which are then to be asked one by one.
        """
        if self._num_listening == 0:
            if select.select([self._wakened], [], [], max(0.0, timeout_s))[0]:
                self._wakened.recv(4096)
                return None
            return set()
        ready = dict(self._poller.poll(_milliseconds(timeout_s)))
        if self._wakened.fileno() in ready:
            self._wakened.recv(4096)
            return None
        return set(ready)  # pyright: ignore[reportReturnType]  # the only descriptor is the one above

    def wake(self) -> None:
        """End the `wait` in progress or the next one. For any thread. Ignored once closed."""
        with contextlib.suppress(OSError):  # closed, or so many wakes are pending that one more adds nothing
            self._waker.send(b"w")

    def close(self, linger_s: float = 0.0) -> None:
        """Close all its sockets, giving messages already sent `linger_s` to leave. Ignored the second time."""
        if self._authenticator is not None:
            self._authenticator.stop()
            self._authenticator = None
        end_context(self.context, linger_s)
        self._waker.close()
        self._wakened.close()


class ReplicaSocket:
    """A replica's end. `receive`, `send` and `wait` belong to one thread; `wake` is for any.

    Args:
        keys: None binds ipc only.
        tcp_host: the node's own address, never a wildcard; None binds ipc only.
        ipc_parent: where the 0700 directory of the ipc socket is made; None takes the system's temporary one.
        host: shared with other sockets of the same thread and closed by its owner; None makes one of its own.

    Raises:
        ConfigError: the address cannot be bound, or the path is too long for a socket.
    """

    def __init__(
        self,
        replica_id: str,
        keys: ServiceKeys | None,
        tcp_host: str | None,
        ipc_parent: Path | None,
        host: SocketHost | None = None,
    ) -> None:
        self._owns_host = host is None
        self._host = host or SocketHost()
        self._router = _new_socket(self._host.context, replica_id)
        self._listens = False
        self.listen(True)
        self._ipc_directory = Path(tempfile.mkdtemp(prefix="nfold-", dir=ipc_parent))
        self.tcp_endpoint = ""
        try:
            self.ipc_endpoint = self._bind_ipc()
            if keys is not None and tcp_host is not None:
                self.tcp_endpoint = self._bind_tcp(keys, tcp_host)
        except BaseException:
            self.close()
            raise

    def _bind_ipc(self) -> str:
        path = self._ipc_directory / "replica"
        if len(os.fsencode(path)) > zmq.IPC_PATH_MAX_LEN:
            raise ConfigError(
                "ipc_parent", str(path.parent.parent), f"the socket's path may have {zmq.IPC_PATH_MAX_LEN} bytes"
            )
        self._router.bind(f"ipc://{path}")
        return f"ipc://{path}"

    def _bind_tcp(self, keys: ServiceKeys, tcp_host: str) -> str:
        if tcp_host in ("*", "0.0.0.0", "::", ""):
            raise ConfigError("tcp_host", tcp_host, "give the node's own address, not a wildcard")
        self._host.admit(keys)
        # These count for binds from here on; the ipc end above stays as it is.
        self._router.setsockopt(zmq.CURVE_SERVER, 1)
        self._router.setsockopt(zmq.CURVE_SECRETKEY, keys.server_secret.encode())
        self._router.setsockopt(zmq.CURVE_PUBLICKEY, keys.server_public.encode())
        self._router.setsockopt(zmq.ZAP_DOMAIN, ZAP_DOMAIN.encode())
        host = f"[{tcp_host}]" if ":" in tcp_host else tcp_host
        try:
            port = self._router.bind_to_random_port(f"tcp://{host}")
        except (zmq.ZMQError, zmq.ZMQBindError) as error:
            raise ConfigError("tcp_host", tcp_host, f"an address of this node ({error})") from error
        return f"tcp://{host}:{port}"

    def receive(self) -> tuple[bytes, Frames] | None:
        """The next message and who sent it; None when there is none now."""
        return _receive(self._router)

    def send(self, peer: bytes, frames: Frames) -> bool:
        """False when the peer is not connected any more."""
        return _send(self._router, peer, frames)

    def wait(self, timeout_s: float) -> None:
        """Sleep until a message is there, until `wake`, or for `timeout_s`."""
        self._host.wait(timeout_s)

    def listen(self, wanted: bool) -> None:
        """Whether messages for this socket end the host's `wait`. They do unless told otherwise."""
        if wanted != self._listens:
            self._listens = wanted
            (self._host.register if wanted else self._host.unregister)(self._router)

    def is_in(self, ready: "set[zmq.Socket[bytes]]") -> bool:
        """Whether the host's `wait` found messages for this socket."""
        return self._router in ready

    def wake(self) -> None:
        """End the `wait` in progress or the next one. Ignored once closed."""
        self._host.wake()

    def close(self, linger_s: float = 0.0) -> None:
        """Close, giving messages already sent `linger_s` to leave. Ignored the second time."""
        if self._owns_host:
            self._host.close(linger_s)
        elif not self._router.closed:
            self.listen(False)
            self._router.close(linger=int(linger_s * 1000))
        shutil.rmtree(self._ipc_directory, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class LostConnection:
    """A connection that ended or was not admitted.

    Attributes:
        refused: the handshake failed: the keys do not fit.
    """

    endpoint: str
    refused: bool


class RouterSocket:
    """A router's end, for one thread.

    Args:
        keys: None can reach replicas on this host only.
        host: this machine, as in `ReplicaAddress.host`.
    """

    def __init__(self, router_id: str, keys: ServiceKeys | None, host: str) -> None:
        self._keys = keys
        self._host = host
        self._context = zmq.Context()
        self._router = _new_socket(self._context, router_id)
        self._router.setsockopt(zmq.RECONNECT_IVL, 100)
        self._router.setsockopt(zmq.RECONNECT_IVL_MAX, 2000)
        watched = zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
        self._monitor: zmq.Socket[bytes] = self._router.get_monitor_socket(watched)

    def endpoint_of(self, address: ReplicaAddress) -> str:
        """The nearest way to a replica. Raises UnavailableError when there is none."""
        path = address.ipc_endpoint.removeprefix("ipc://")
        if address.host == self._host and os.access(path, os.W_OK):
            return address.ipc_endpoint
        if self._keys is None or not address.tcp_endpoint:
            raise UnavailableError(
                f"replica {address.replica_id} is on host {address.host}, this router on {self._host}, and tcp "
                f"between hosts needs the service's keys on both sides"
            )
        return address.tcp_endpoint

    def connect(self, endpoint: str, name: str) -> None:
        """Begin to connect. Messages for `name`, which must be new, wait until the connection stands."""
        if endpoint.startswith("ipc:") or self._keys is None:
            self._router.setsockopt(zmq.CURVE_SERVER, 0)  # no CURVE for connections from here on
        else:
            self._router.setsockopt(zmq.CURVE_SERVERKEY, self._keys.server_public.encode())
            self._router.setsockopt(zmq.CURVE_PUBLICKEY, self._keys.client_public.encode())
            self._router.setsockopt(zmq.CURVE_SECRETKEY, self._keys.client_secret.encode())
        self._router.setsockopt(zmq.CONNECT_ROUTING_ID, name.encode())
        self._router.connect(endpoint)

    def disconnect(self, endpoint: str) -> None:
        """Give the connection up, with what it brought and nobody received."""
        self._router.disconnect(endpoint)

    def send(self, name: str, frames: Frames) -> bool:
        """False when there is no such connection."""
        return _send(self._router, name.encode(), frames)

    def receive(self) -> tuple[str, Frames] | None:
        """The next message and the name of its connection; None when there is none now."""
        received = _receive(self._router)
        return received and (received[0].decode(errors="replace"), received[1])

    def lost_connections(self) -> list[LostConnection]:
        """Those lost since the last call, in order. Messages that came before are still to be received."""
        lost: list[LostConnection] = []
        while self._monitor.poll(0):
            event = recv_monitor_message(self._monitor)
            lost.append(LostConnection(event["endpoint"].decode(), event["event"] != zmq.EVENT_DISCONNECTED))
        return lost

    def is_readable(self) -> bool:
        """Whether a message is there. Ask after each send, too: the descriptor is edge-triggered."""
        return _is_readable(self._router)

    def wait(self, timeout_s: float) -> bool:
        """Sleep until a message is there, at most `timeout_s`."""
        return bool(self._router.poll(_milliseconds(timeout_s)))

    def fileno(self) -> int:
        return self._router.fileno()

    def close(self) -> None:
        """Close, giving messages already sent half a second to leave. Ignored the second time."""
        if not self._router.closed:
            self._router.disable_monitor()
        end_context(self._context, FAREWELL_LINGER_MS / 1000)
