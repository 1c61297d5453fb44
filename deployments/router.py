"""The router: picks the replica for a request and follows the request to its end.

    submit ─> queue of the model ─> a replica with room ─> outbox ─> one Submit message per replica and tick
                   ^                        │
                   └── prompt + emitted ────┘ when the replica dies

The same class runs inside the gateway and inside a benchmark process. One thread, no locks, no Ray.
"""

import time
from collections.abc import Callable, Sequence

from ..models.engine.protocol import I32, SamplingParams
from ..models.errors import UnknownModelError
from .addresses import ReplicaAddress, ServiceKeys
from .delivery import Delivery
from .dispatch import Dispatcher
from .replica_connections import ReplicaConnections
from .request_checks import checked_prompt, checked_sampling
from .request_table import Request, RequestTable, Sink, TokenChunk
from .router_settings import RouterSettings
from .router_state import Model, Pool, Replica
from .router_stats import RouterSnapshot
from .wire import Output, Refused

__all__ = ["Router", "RouterSettings", "Sink", "TokenChunk"]

# A drain takes no more at once, so that an event loop gets its turn.
MAX_MESSAGES_PER_DRAIN = 1000


class Router:
    """Sends requests to replicas and their tokens to sinks. Not thread-safe: one thread owns it.

    In asyncio use `router_asyncio.attach`; elsewhere call `poll` in a loop.

    Args:
        router_id: unique in the service, 1 to 200 bytes of UTF-8.
        keys: the service's; None reaches replicas on this host only.

    `on_pending` is called when something waits for `flush` that did not before; whoever drives the router sets it.
    """

    def __init__(
        self,
        router_id: str,
        keys: ServiceKeys | None,
        settings: RouterSettings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.router_id = router_id
        self.settings = settings
        self.on_pending: Callable[[], None] | None = None
        self._clock = clock
        self._table = RequestTable()
        self._models = {name: Model(name, max_queued) for name, max_queued in settings.models.items()}
        self._pools: dict[tuple[str, str], Pool] = {}
        self._connections = ReplicaConnections(router_id, keys, settings, clock, self._continue_elsewhere)
        self._dispatcher = Dispatcher(self._table, self._models, self._connections, settings.overcommit)
        self._delivery = Delivery(self._table, self._models, self._connections, clock)
        self._has_pending = False
        self._tick_due_s = clock()

    def update_replicas(self, addresses: Sequence[ReplicaAddress]) -> None:
        """The replicas that there are now.

        One that is not listed any more gets nothing new, and is dropped when its last request here has ended.
        """
        listed = {address.replica_id: address for address in addresses}
        for replica in self._connections:
            address = listed.get(replica.replica_id)
            replica.listed = address is not None
            if address is not None and address != replica.address:
                self._connections.lose(replica, "another process took its name")
                self._drop(replica)
        self._drop_ended()
        for address in listed.values():
            if self._connections.get(address.replica_id) is None:
                self._add(address)
        self._set_pending()

    def submit(
        self, model: str, prompt_ids: Sequence[int] | I32, sampling: SamplingParams, sink: Sink, stream: bool = True
    ) -> int:
        """Queue one request; it is sent with all others of this tick by `flush`. Returns the request's id.

        `sink` is called in this router's thread, never before `submit` returned: per new token when `stream`, else
        once with the first token and once with all others. It must not block, and may submit and abort.

        Raises:
            RequestError: a value that no engine takes; names the parameter.
            UnknownModelError: the model is not served.
            UnavailableError: it has no living replica.
            OverloadedError: its queue is full.
        """
        return self.submit_many(model, [prompt_ids], [sampling], [sink], stream)[0]

    def submit_many(
        self,
        model: str,
        prompts: Sequence[Sequence[int] | I32],
        sampling: Sequence[SamplingParams],
        sinks: Sequence[Sink],
        stream: bool = False,
    ) -> list[int]:
        """As `submit` for many: all are queued, or an error is raised and none is."""
        state = self._models.get(model)
        if state is None:
            served = ", ".join(sorted(self._models)) or "none"
            raise UnknownModelError(f"model {model!r} is not served here; these are: {served}", "model")
        arrays = [checked_prompt(prompt) for prompt in prompts]
        for params in sampling:
            checked_sampling(params)
        self._dispatcher.admit(state, len(arrays))
        now_s = self._clock()
        requests = [
            Request(model, prompt, params, sink, stream, now_s)
            for prompt, params, sink in zip(arrays, sampling, sinks, strict=True)
        ]
        for request in requests:
            self._table.add(request)
            state.enqueue(request, num_emitted=0)
        state.num_submitted += len(requests)
        self._set_pending()
        return [request.request_id for request in requests]

    def abort(self, request_id: int) -> None:
        """Forget a request: its sink is not called again, its replica frees its blocks. Ignores unknown ids."""
        if (request := self._table.find(request_id)) is not None:
            self._delivery.abort(request)
            self._set_pending()

    def fileno(self) -> int:
        """ZMQ's descriptor, edge-triggered: when it is readable call `drain_messages`; see `router_asyncio`."""
        return self._connections.socket.fileno()

    def has_messages(self) -> bool:
        """Whether messages are there now. Ask after each call that sends: the descriptor may not tell again."""
        return self._connections.socket.is_readable()

    def drain_messages(self) -> int:
        """Handle the messages that are there (at most 1000), then `flush`. Returns how many there were."""
        num_messages = self._receive_all()
        self.flush()
        return num_messages

    def flush(self) -> None:
        """Hand queued requests to replicas with room: one Submit message per replica."""
        self._has_pending = False
        self._dispatcher.flush()

    def poll(self, timeout_s: float) -> int:
        """For users without an event loop: flush, wait at most `timeout_s`, handle messages, `tick` if due.

        Returns how many messages were handled.
        """
        self.flush()
        if not self.has_messages():
            self._connections.socket.wait(min(timeout_s, self._tick_due_s - self._clock()))
        num_messages = self.drain_messages()
        if self._clock() >= self._tick_due_s:
            self.tick()
        return num_messages

    def tick(self) -> None:
        """Time-driven work: heartbeats, dead replicas, timeouts. Call about every `settings.tick_s`."""
        self._connections.bury_lost_connections(self._receive_all)
        self._connections.heartbeat()
        self._drop_ended()
        now_s = self._clock()
        for model in self._models.values():
            self._check_served(model, now_s)
        self.flush()
        self._tick_due_s = now_s + self.settings.tick_s

    def snapshot(self) -> RouterSnapshot:
        now_s = self._clock()
        return RouterSnapshot(
            router_id=self.router_id,
            taken_at=time.time(),
            replicas=tuple(replica.snapshot(now_s) for replica in self._connections),
            models=tuple(model.snapshot() for model in self._models.values()),
            pools=tuple(pool.snapshot() for pool in self._pools.values()),
        )

    def close(self) -> None:
        """Tell the replicas, which abort what is in flight, and close the socket. No sink is called."""
        self._connections.close()

    def _set_pending(self) -> None:
        if not self._has_pending:
            self._has_pending = True
            if self.on_pending is not None:
                self.on_pending()

    def _add(self, address: ReplicaAddress) -> None:
        model = self._models.setdefault(address.model, Model(address.model, self.settings.max_queued))
        pool = self._pools.setdefault((address.model, address.pool), Pool(address.model, address.pool))
        model.replicas.append(self._connections.add(address, pool))

    def _drop(self, replica: Replica) -> None:
        self._models[replica.address.model].replicas.remove(replica)
        self._connections.drop(replica)

    def _drop_ended(self) -> None:
        for replica in self._connections:
            if not replica.listed and not replica.in_flight:
                self._drop(replica)

    def _receive_all(self) -> int:
        num_messages = 0
        while num_messages < MAX_MESSAGES_PER_DRAIN and (received := self._connections.receive()) is not None:
            num_messages += 1
            replica, message = received
            if isinstance(message, Output):
                self._delivery.take_in(replica, message.outputs)
                replica.note_in_flight(message.num_in_flight)
            else:
                self._take_back(replica, message)
        return num_messages

    def _take_back(self, replica: Replica, message: Refused) -> None:
        """A draining replica did not take these."""
        model = self._models[replica.address.model]
        for wire_id in reversed(message.request_ids.tolist()):
            request = self._table.attempt(wire_id)
            if request is not None and request.replica_id == replica.replica_id:
                replica.release(request, self._table.num_emitted(request))
                self._requeue(model, request)

    def _continue_elsewhere(self, replica: Replica) -> None:
        """Queue again what a lost replica had. Sinks are called when all is in place, as they may abort."""
        model = self._models[replica.address.model]
        unsent = {request.slot for request in replica.outbox}
        requests = replica.release_all()
        for request in reversed(requests):
            request.num_attempts += request.slot not in unsent
            self._requeue(model, request)
        for request in requests:
            if request.num_attempts >= self.settings.max_attempts:
                lost = f"{request.num_attempts} replicas were lost under this request"
                self._delivery.fail(request, f"{lost}; the last: {replica.reason}")
            else:
                model.num_continued += request.slot not in unsent
        self._set_pending()

    def _requeue(self, model: Model, request: Request) -> None:
        """Before all others, as a new attempt that goes on after the tokens it has."""
        self._table.begin_attempt(request)
        model.enqueue(request, self._table.num_emitted(request), first=True)

    def _check_served(self, model: Model, now_s: float) -> None:
        """Requests do not wait for ever for a replica that does not come."""
        if any(replica.may_accept_soon for replica in model.replicas):
            model.unserved_since_s = None
        elif model.unserved_since_s is None:
            model.unserved_since_s = now_s
        elif now_s - model.unserved_since_s > self.settings.continuation_timeout_s:
            for request in list(model.queue.values()):
                waited_s = now_s - model.unserved_since_s
                self._delivery.fail(request, f"model {model.name} has had no replica for {waited_s:.1f} s")
