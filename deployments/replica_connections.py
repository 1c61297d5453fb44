"""The router's connections: greets replicas, notices which live, and hands on what they bring."""

import logging
from collections.abc import Callable, Iterator

from ..models.errors import UnavailableError
from .addresses import ReplicaAddress, ServiceKeys
from .replica_loads import ReplicaLoads
from .router_settings import RouterSettings
from .router_state import Pool, Replica, ReplicaState
from .transport import RouterSocket
from .wire import (
    WIRE_VERSION,
    Abort,
    Draining,
    Goodbye,
    Hello,
    Message,
    Output,
    Ping,
    Pong,
    Refused,
    Status,
    Submit,
    Welcome,
    WireError,
    decode,
    encode,
)

logger = logging.getLogger(__name__)


class ReplicaConnections:
    """The replicas of one router, by id.

    Args:
        on_lost: called when a replica that lived is lost; its requests are still booked on it.
    """

    def __init__(
        self,
        router_id: str,
        keys: ServiceKeys | None,
        settings: RouterSettings,
        loads: ReplicaLoads,
        clock: Callable[[], float],
        on_lost: Callable[[Replica], None],
    ) -> None:
        self._router_id = router_id
        self._loads = loads
        self._settings = settings
        self._clock = clock
        self._on_lost = on_lost
        self._replicas: dict[str, Replica] = {}
        self._by_number: dict[int, Replica] = {}
        self._by_connection: dict[str, Replica] = {}
        self._num_connections = 0
        self.socket = RouterSocket(router_id, keys, settings.host)

    def __iter__(self) -> Iterator[Replica]:
        """A copy, so that replicas may be dropped while iterating."""
        return iter(list(self._replicas.values()))

    def get(self, replica_id: str) -> Replica | None:
        return self._replicas.get(replica_id)

    def by_number(self, number: int) -> Replica:
        """By its place in the loads."""
        return self._by_number[number]

    def add(self, address: ReplicaAddress, pool: Pool) -> Replica:
        """Begin to connect. One that cannot be reached is kept as refused, so that its state tells why."""
        replica = Replica(address, pool, self._loads, self._settings.overcommit, self._clock())
        self._replicas[address.replica_id] = self._by_number[replica.number] = replica
        try:
            replica.endpoint = self.socket.endpoint_of(address)
        except UnavailableError as error:
            self._refuse(replica, str(error))
        else:
            self._greet(replica)
        return replica

    def drop(self, replica: Replica) -> None:
        """Part from it. What it still has of this router is aborted there."""
        if replica.alive:
            self._send(replica, Goodbye(WIRE_VERSION, "the router does not need this replica any more"))
        self._disconnect(replica)
        del self._replicas[replica.replica_id], self._by_number[replica.number]
        self._loads.remove(replica.number)

    def send(self, replica: Replica, message: Submit | Abort | Ping) -> bool:
        """False when the replica turned out to be lost."""
        sent = self._send(replica, message)
        if not sent:
            self.lose(replica, "its connection is lost")
        return sent

    def receive(self) -> tuple[Replica, Output | Refused] | None:
        """The next message for the router; None when there is none now. Others are dealt with here."""
        while (received := self.socket.receive()) is not None:
            replica = self._by_connection.get(received[0])
            if replica is None:
                continue
            replica.last_heard_s = self._clock()
            try:
                message = decode(received[1])
            except WireError as error:
                self.lose(replica, f"it sent what is no message of wire version {WIRE_VERSION}: {error}")
                continue
            if isinstance(message, Output | Refused):
                if replica.alive:
                    return replica, message
            else:
                self._note(replica, message)
        return None

    def heartbeat(self) -> None:
        """Ping who lives, bury who is silent, greet who is lost. Call after all messages there were received."""
        now_s = self._clock()
        for replica in self:
            silent_s = now_s - replica.last_heard_s
            if replica.alive:
                if silent_s > self._settings.dead_after_s:
                    self.lose(replica, f"it said nothing for {silent_s:.1f} s")
                elif now_s - replica.pinged_s >= self._settings.heartbeat_s:
                    replica.pinged_s = now_s
                    self.send(replica, Ping(now_s))
            elif replica.state is ReplicaState.CONNECTING and silent_s > self._settings.dead_after_s:
                replica.state = ReplicaState.LOST
                replica.reason = f"it has not answered for {silent_s:.1f} s"
            elif self._is_to_greet(replica, now_s):
                self._greet(replica)

    def bury_lost_connections(self, receive_all: Callable[[], object]) -> None:
        """Lose the replicas whose connections ended, after `receive_all` took in what they had sent before."""
        lost = self.socket.lost_connections()
        if not lost:
            return
        receive_all()
        by_endpoint = {replica.endpoint: replica for replica in self}
        for connection in lost:
            replica = by_endpoint.get(connection.endpoint)
            if replica is None:
                continue
            if connection.refused:
                self._refuse(replica, "its keys and this router's are not of one service")
            elif replica.alive:
                self.lose(replica, "its connection is lost")
            else:
                self._disconnect(replica)  # the greeting may be lost with it

    def lose(self, replica: Replica, reason: str) -> None:
        """It is gone, for now at least: it is greeted again as long as it is listed."""
        was_alive = replica.alive
        replica.state = ReplicaState.LOST
        replica.reason = reason
        self._disconnect(replica)
        if was_alive:
            logger.warning("replica %s is lost: %s", replica.replica_id, reason)
            self._on_lost(replica)

    def close(self) -> None:
        for replica in self:
            if replica.alive:
                self._send(replica, Goodbye(WIRE_VERSION, "the router closes"))
        self._replicas.clear()
        self._by_connection.clear()
        self.socket.close()

    def _is_to_greet(self, replica: Replica, now_s: float) -> bool:
        may_be_greeted = replica.state is not ReplicaState.REFUSED and not replica.connection
        return may_be_greeted and now_s - replica.greeted_s >= self._settings.heartbeat_s

    def _greet(self, replica: Replica) -> None:
        """Connect under a new name; the greeting waits there until the connection stands."""
        self._num_connections += 1
        replica.connection = f"{replica.replica_id}/{self._num_connections}"
        replica.greeted_s = self._clock()
        self._by_connection[replica.connection] = replica
        self.socket.connect(replica.endpoint, replica.connection)
        self._send(replica, Hello(WIRE_VERSION, self._router_id))

    def _disconnect(self, replica: Replica) -> None:
        if replica.connection:
            self.socket.disconnect(replica.endpoint)
            del self._by_connection[replica.connection]
            replica.connection = ""

    def _send(self, replica: Replica, message: Message) -> bool:
        return self.socket.send(replica.connection, encode(message))

    def _refuse(self, replica: Replica, reason: str) -> None:
        self.lose(replica, reason)
        replica.state = ReplicaState.REFUSED
        logger.error("replica %s cannot be used: %s", replica.replica_id, reason)

    def _note(self, replica: Replica, message: Message) -> None:
        match message:
            case Welcome(version=version, replica_id=replica_id):
                if version != WIRE_VERSION:
                    self._refuse(replica, _versions_differ(version))
                elif replica_id != replica.replica_id:
                    self.lose(replica, f"replica {replica_id} has taken its place at {replica.endpoint}")
                elif not replica.alive:
                    replica.state = ReplicaState.READY
                    replica.reason = ""
            case Goodbye(version=version, reason=reason):
                if version != WIRE_VERSION:
                    self._refuse(replica, f"{_versions_differ(version)} ({reason})")
                else:
                    self.lose(replica, reason)
            case Draining() if replica.alive:
                replica.state = ReplicaState.DRAINING
            case Pong(sent_s=sent_s, away_s=away_s):
                replica.note_round_trip(self._clock() - sent_s, away_s)
            case Status(status=status):
                replica.note_status(status, self._clock())
            case _:
                pass  # Draining of a replica that was given up


def _versions_differ(version: int) -> str:
    return f"it speaks wire version {version} and this router {WIRE_VERSION}: run one version of nfold on all nodes"
