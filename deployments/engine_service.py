"""The replica's side of the data path: one thread, one engine, one message per step and router."""

import logging
import math
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from zmq import Socket

from ..models.engine.protocol import Engine, StepOutputs
from ..models.errors import EngineError
from .addresses import ReplicaAddress, ReplicaIdentity, ServiceKeys, this_host
from .gateway_sessions import GatewaySession, GatewaySessions
from .paced_engine import PacedEngine
from .step_account import StepAccount
from .transport import ReplicaSocket, SocketHost
from .wire import (
    WIRE_VERSION,
    Abort,
    Draining,
    Frames,
    Goodbye,
    Hello,
    Intake,
    Output,
    Ping,
    Pong,
    Refused,
    ReplicaStatus,
    Status,
    Submit,
    Welcome,
    WireError,
    decode,
    encode,
)

logger = logging.getLogger(__name__)

# Time for the last tokens and the farewell to leave when the loop ends.
CLOSING_LINGER_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSettings:
    """How the service behaves.

    Attributes:
        ipc_parent: where the 0700 directory of the ipc socket is made; None takes the system's temporary one.
        tcp_host: the node's address to bind to; None binds no tcp. Needs keys.
        status_s: seconds between two Status messages.
        gateway_dead_after_s: a router that says nothing for so long is gone. (One that closes or dies is noticed
            with the next message for it.)
        accounts_steps: its status tells what the ledger needs of its steps.
    """

    ipc_parent: Path | None = None
    tcp_host: str | None = None
    status_s: float = 1.0
    gateway_dead_after_s: float = 15.0
    accounts_steps: bool = True


class EngineService:
    """Serves one engine to routers.

    The constructor binds the sockets, so `address` is known at once. `run` is the blocking loop of one thread; all
    other methods and properties may be used from any thread. The engine stays the caller's to close, after `run`.

    Args:
        keys: the service's; None means ipc only.
        host: shared with other services of the same thread, see `EngineHost`; None makes one of its own.

    Raises:
        ConfigError: a socket cannot be bound.
    """

    def __init__(
        self,
        engine: Engine,
        identity: ReplicaIdentity,
        keys: ServiceKeys | None,
        settings: ServiceSettings = ServiceSettings(),
        clock: Callable[[], float] = time.monotonic,
        host: SocketHost | None = None,
    ) -> None:
        self._engine = engine
        self._paced = engine if isinstance(engine, PacedEngine) else None
        self._settings = settings
        self._clock = clock
        self._socket = ReplicaSocket(identity.replica_id, keys, settings.tcp_host, settings.ipc_parent, host)
        self.address = _address_of(engine, identity, self._socket)
        self._sessions = GatewaySessions()
        self._stopping = False
        self._drain_wanted = False
        self._draining = False
        self._ended = threading.Event()
        self._failure: Exception | None = None
        self._mark_s = self._status_due_s = self._step_since_s = clock()
        self._has_step = False
        self._account = StepAccount()
        self._away_s = 0.0  # since it looked for messages last
        self._status = ReplicaStatus(
            stats=engine.stats(),
            idle_s=0.0,
            busy_s=0.0,
            overhead_s=0.0,
            draining=False,
            num_gateways=0,
            num_messages_in=0,
            num_messages_out=0,
            num_rejected_messages=0,
        )
        self._idle_s = self._busy_s = self._overhead_s = 0.0
        self._num_in = self._num_out = self._num_rejected = 0

    @property
    def status(self) -> ReplicaStatus:
        """As last sent (refreshed every `status_s`, also when no router is connected)."""
        return self._status

    @property
    def failure(self) -> Exception | None:
        """What ended the loop, once the engine failed: the health check must fail then."""
        return self._failure

    def run(self) -> None:
        """Serve until `stop`, until drained, or until the engine fails (see `failure`). Closes the sockets."""
        with self._until_the_end():
            self._mark_s = self._clock()
            while self._attend():
                if self._engine.has_work():
                    self._send_outputs(self._step())
                else:
                    self._socket.wait(self._status_due_s - self._mark_s)
                    self._idle_s += self._lap()

    def turn(self) -> float:
        """Instead of `run`, for a paced engine in a shared thread: do what can be done now, without waiting.

        Returns:
            When the next turn is due, if no message comes before; infinity once the service has ended.
        """
        due_s = math.inf
        with self._until_the_end(unless=lambda: due_s < math.inf):
            due_s = self._turn()
        return due_s

    def has_messages(self, ready: "set[Socket[bytes]]") -> bool:
        """Whether the host's `wait` found messages for this service."""
        return self._socket.is_in(ready)

    def begin_drain(self) -> None:
        """Take nothing new from now on; `run` returns when all requests are finished."""
        self._drain_wanted = True
        self._socket.wake()

    def drain(self, timeout_s: float) -> bool:
        """`begin_drain`, then wait for `run` to return. False when time ran out."""
        self.begin_drain()
        return self.wait_ended(timeout_s)

    def wait_ended(self, timeout_s: float) -> bool:
        """Wait for the end of `run`, or of the last `turn`. False when time ran out."""
        return self._ended.wait(max(0.0, timeout_s))

    def stop(self) -> None:
        """Make `run` return after the step in progress; routers continue what was in flight elsewhere."""
        self._stopping = True
        self._socket.wake()

    @contextmanager
    def _until_the_end(self, unless: Callable[[], bool] = lambda: False) -> Generator[None]:
        """Says farewell and closes the sockets after what is inside, `unless` it is to go on."""
        reason = "the replica stopped"
        try:
            yield
        except EngineError as error:
            self._failure = error
            reason = f"the engine failed: {error}"
            logger.error("replica %s: %s", self.address.replica_id, reason)
        except Exception as error:
            self._failure = error
            reason = f"the replica failed: {error!r}"
            raise
        finally:
            if not unless():
                for session in self._sessions:
                    self._send(session.peer, encode(Goodbye(WIRE_VERSION, reason)))
                self._socket.close(CLOSING_LINGER_S)
                self._ended.set()

    def _turn(self) -> float:
        """Between turns the paced engine was busy, if it had a step to run, or idle.

        While a step runs nothing is received, as by an engine that computes: what comes joins the next one.
        """
        passed_s = self._lap()
        if self._has_step:
            self._busy_s += passed_s
            self._away_s = passed_s
        else:
            self._idle_s += passed_s
        if not self._attend():
            return math.inf
        assert self._paced is not None, "turns are for paced engines"
        step_at_s = self._paced.next_step_at()
        if step_at_s is not None and step_at_s <= self._mark_s:
            outputs = self._step()
            step_at_s = self._paced.next_step_at()
            self._send_outputs(outputs, self._paced.next_intake())
        had_step, self._has_step = self._has_step, self._engine.has_work()
        if self._has_step and not had_step:
            self._step_since_s = self._mark_s
        self._socket.listen(not self._has_step)
        self._overhead_s += self._lap()
        if step_at_s is None:
            return self._mark_s if self._draining else self._status_due_s
        return min(step_at_s, self._status_due_s)

    def _attend(self) -> bool:
        """Handle all messages and tell the status when it is due. False when the service is to end.

        receive ─ step ─ send ─ receive ─ step ─ send ─ receive ─ wait ...
        overhead  busy   overhead         busy   overhead         idle
        """
        if self._stopping:
            return False
        self._receive_all()
        if self._drain_wanted and not self._draining:
            self._announce_drain()
        if self._draining and not self._engine.has_work():
            return False
        now_s = self._clock()
        if now_s >= self._status_due_s:  # right after receiving: a step may have lasted longer than silence may
            self._tell_status(now_s)
        self._overhead_s += self._lap()
        return True

    def _step(self) -> StepOutputs:
        began_s = self._mark_s
        outputs = self._engine.step()
        self._busy_s += self._lap()
        self._step_since_s = self._mark_s
        if self._settings.accounts_steps:
            self._account.add(outputs.step, self._sessions.num_in_flight())
        self._away_s = self._mark_s - began_s
        return outputs

    def _lap(self) -> float:
        """Seconds since the last call."""
        now_s = self._clock()
        passed_s, self._mark_s = now_s - self._mark_s, now_s
        return passed_s

    def _receive_all(self) -> None:
        while (received := self._socket.receive()) is not None:
            peer, frames = received
            self._num_in += 1
            try:
                self._handle(peer, frames)
            except WireError as error:
                self._reject(peer, str(error))
        self._away_s = 0.0

    def _handle(self, peer: bytes, frames: Frames) -> None:
        message = decode(frames)
        if isinstance(message, Hello):
            self._open_session(peer, message)
            return
        session = self._sessions.get(peer)
        if session is None:
            if not isinstance(message, Goodbye):
                raise WireError("this replica knows no session of yours; say hello first")
            return
        session.last_heard_s = self._clock()
        match message:
            case Submit():
                self._submit(session, message)
            case Abort():
                ids = session.engine_ids(message.request_ids)
                session.in_flight.end(ids)
                self._engine.abort(ids)
            case Goodbye():
                self._close_session(session, "it said goodbye")
            case Ping(sent_s=sent_s):
                self._send(peer, encode(Pong(sent_s, self._away_s)))
            case _:
                raise WireError(f"a router does not send {type(message).__name__}")

    def _open_session(self, peer: bytes, hello: Hello) -> None:
        if (old := self._sessions.get(peer)) is not None:
            self._close_session(old, "it began anew")
        if hello.version != WIRE_VERSION:
            raise WireError(
                f"replica {self.address.replica_id} speaks wire version {WIRE_VERSION}, router {hello.router_id} "
                f"version {hello.version}: run one version of nfold on all nodes"
            )
        session = self._sessions.open(peer, self._clock())
        self._send(peer, encode(Welcome(WIRE_VERSION, self.address.replica_id)))
        self._send(peer, encode(Status(self._status)))
        if self._draining:
            self._send(peer, encode(Draining()))
        logger.info("router %s connected (session %d)", hello.router_id, session.slot)

    def _close_session(self, session: GatewaySession, reason: str) -> None:
        """Abort what the router had here, so that its KV blocks are free at once."""
        self._sessions.close(session)
        if len(session.in_flight):
            self._engine.abort(session.in_flight.ids())
        logger.info("router %r left: %s; %d requests aborted", session.peer, reason, len(session.in_flight))

    def _submit(self, session: GatewaySession, message: Submit) -> None:
        batch = message.batch
        if self._draining:
            self._send(session.peer, encode(Refused(batch.request_ids)))
            return
        engine_ids = session.engine_ids(batch.request_ids)
        if not session.in_flight.add(engine_ids):
            raise WireError("a request id is still in flight")
        self._engine.submit(batch.with_ids(engine_ids))

    def _reject(self, peer: bytes, reason: str) -> None:
        """Answer what is malformed or unwelcome with a farewell, so that the sender knows why it gets nothing."""
        self._num_rejected += 1
        logger.warning("rejected a message of %r: %s", peer, reason)
        if (session := self._sessions.get(peer)) is not None:
            self._close_session(session, reason)
        self._send(peer, encode(Goodbye(WIRE_VERSION, reason)))

    def _send_outputs(self, outputs: StepOutputs, next_intake: tuple[float, float] | None = None) -> None:
        """With when requests are taken in next, and how often, if that is known."""
        parts = self._sessions.split(outputs)
        num_in_flight = self._sessions.num_in_flight()
        intake = None
        if next_intake is not None:
            intake = Intake(next_intake[0] - self._mark_s, next_intake[1])
        for session, rows in parts:
            if not self._send(session.peer, encode(Output(rows, num_in_flight, self._mark_s, intake))):
                self._close_session(session, "its connection is lost")

    def _announce_drain(self) -> None:
        self._draining = True
        for session in self._sessions:
            self._send(session.peer, encode(Draining()))

    def _tell_status(self, now_s: float) -> None:
        for session in self._sessions:
            if now_s - session.last_heard_s > self._settings.gateway_dead_after_s:
                self._close_session(session, f"silent for {now_s - session.last_heard_s:.1f} s")
        self._status = ReplicaStatus(
            stats=self._engine.stats(),
            idle_s=self._idle_s,
            busy_s=self._busy_s,
            overhead_s=self._overhead_s,
            draining=self._draining,
            num_gateways=len(self._sessions),
            num_messages_in=self._num_in,
            num_messages_out=self._num_out,
            num_rejected_messages=self._num_rejected,
            steps=self._account.totals(self._mark_s - self._step_since_s if self._has_step else 0.0),
        )
        frames = encode(Status(self._status))
        for session in self._sessions:
            if not self._send(session.peer, frames):
                self._close_session(session, "its connection is lost")
        self._status_due_s = now_s + self._settings.status_s

    def _send(self, peer: bytes, frames: Frames) -> bool:
        sent = self._socket.send(peer, frames)
        self._num_out += sent
        return sent


def _address_of(engine: Engine, identity: ReplicaIdentity, socket: ReplicaSocket) -> ReplicaAddress:
    return ReplicaAddress(
        replica_id=identity.replica_id,
        model=identity.model,
        pool=identity.pool,
        accelerator=identity.accelerator,
        node_id=identity.node_id,
        host=this_host(),
        ipc_endpoint=socket.ipc_endpoint,
        tcp_endpoint=socket.tcp_endpoint,
        max_num_seqs=engine.info.max_num_seqs,
        max_model_len=engine.info.max_model_len,
        tp=identity.tp,
        engine=engine.info.engine,
        settings=engine.info.settings,
    )
