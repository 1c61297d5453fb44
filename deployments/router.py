"""The router: picks the replica for a request and follows the request to its end.

    submit ─> queue of the model ─> a replica with room ─> outbox ─> one Submit message per replica and tick
                   ^                        │
                   └── prompt + emitted ────┘ when the replica dies

The same class runs inside the gateway and inside a benchmark process. One thread, no locks, no Ray.
"""

import time
from collections.abc import Callable, Collection, Sequence

import numpy as np

from ..models.engine.protocol import I32, U64, SamplingParams
from .addresses import ReplicaAddress, ServiceKeys
from .clumping import Rate
from .delivery import Delivery
from .dispatch import Dispatcher
from .index_pool import Indices
from .model_state import Model
from .replica_connections import ReplicaConnections
from .replica_loads import ReplicaLoads
from .request_checks import checked_bulk, checked_prompt, checked_sampling
from .request_table import RequestTable
from .roster import Roster
from .router_settings import RouterSettings
from .router_state import Replica, release
from .router_stats import RouterSnapshot
from .sinks import BulkSink, Sink, TokenChunk
from .speed_prior import SpeedPrior
from .wire import Output, Refused

__all__ = ["BulkSink", "Router", "RouterSettings", "Sink", "TokenChunk"]

# A drain takes no more at once, so that an event loop gets its turn.
MAX_MESSAGES_PER_DRAIN = 100
# From here on messages are let gather.
MANY_MESSAGES_PER_S = 200.0
# What a replica may have sent before its connection ended.
MAX_LAST_MESSAGES = 10_000


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
        self._loads = ReplicaLoads()
        self._connections = ReplicaConnections(
            router_id, keys, settings, self._loads, clock, self._continue_elsewhere
        )
        self._roster = Roster(self._table, self._loads, self._connections, settings)
        self._dispatcher = Dispatcher(
            self._table, self._roster.models, self._loads, self._connections, settings, clock
        )
        self._delivery = Delivery(
            self._table, self._loads, self._roster.models, self._connections, self._dispatcher, clock
        )
        self._message_rate = Rate()
        self._received_s = clock()
        self._has_pending = False
        self._tick_due_s = clock()

    def update_replicas(self, addresses: Sequence[ReplicaAddress], quarantined: Collection[str] = ()) -> None:
        """The replicas that there are now, and the ids of those that get nothing new until they are let back in.

        One that is not listed any more gets nothing new, and is dropped when its last request here has ended.
        """
        self._roster.update(addresses, quarantined)
        self._set_pending()

    def update_speed_priors(self, priors: Sequence[SpeedPrior]) -> None:
        """How fast replicas are taken to be before any of their steps was seen."""
        self._roster.take_priors(priors)

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
        state = self._roster.model(model)
        arrays = [checked_prompt(prompt) for prompt in prompts]
        for params in sampling:
            checked_sampling(params)
        if not len(arrays) == len(sampling) == len(sinks):
            raise ValueError("as many prompts as sampling parameters and sinks")
        if not arrays:
            return []
        self._dispatcher.admit(state, len(arrays))
        table, now_s = self._table, self._clock()
        slots = [
            table.add_ordinary(prompt, params, sink, stream, state.number, now_s)
            for prompt, params, sink in zip(arrays, sampling, sinks, strict=True)
        ]
        self._queue(state, np.array(slots, np.int64))
        return [table.ordinary[slot].request_id for slot in slots]

    def submit_bulk(
        self,
        model: str,
        prompt_ids: I32,
        prompt_lens: I32,
        max_tokens: I32,
        seeds: U64,
        tags: Indices,
        sink: BulkSink,
        *,
        ignore_eos: bool = False,
        temperature: float = 0.0,
        prompt_starts: Indices | None = None,
    ) -> U64:
        """As `submit_many` for requests whose tokens nobody reads one by one: no Python work per request.

        Args:
            prompt_ids: [P] of all prompts, one behind the other; copied unless read-only.
            prompt_lens, max_tokens, seeds: [N].
            tags: [N] what `sink` knows them by.
            prompt_starts: [N] then each prompt is a slice of `prompt_ids` from there on, and slices may overlap.
                Nothing is copied then, so that many long ones may be open: the ids must be right and stay so.

        Returns:
            [N] ids, for `abort_many`.
        """
        state = self._roster.model(model)
        batch = checked_bulk(prompt_ids, prompt_lens, max_tokens, seeds, ignore_eos, temperature, prompt_starts)
        tags = np.asarray(tags, np.int64)
        if tags.shape != batch.max_tokens.shape:
            raise ValueError("as many tags as prompts")
        self._dispatcher.admit(state, len(batch))
        slots = self._table.add(batch, state.number, self._clock(), prompt_starts)
        self._table.set_bulk(slots, tags, sink)
        self._queue(state, slots)
        return self._table.request_ids[slots]

    def abort(self, request_id: int) -> None:
        """Forget a request: its sink is not called again, its replica frees its blocks. Ignores unknown ids."""
        self.abort_many([request_id])

    def abort_many(self, request_ids: Sequence[int] | U64) -> None:
        """As `abort` for many. A bulk sink may still hear of what came in the message that it is being told of."""
        self._delivery.abort([int(each) for each in request_ids])
        self._set_pending()

    def fileno(self) -> int:
        """ZMQ's descriptor, edge-triggered: when it is readable call `drain_messages`; see `router_asyncio`."""
        return self._connections.socket.fileno()

    def has_messages(self) -> bool:
        """Whether messages are there now. Ask after each call that sends: the descriptor may not tell again."""
        return self._connections.socket.is_readable()

    def drain_messages(self) -> int:
        """Handle the messages that are there (at most 100), then `flush`. Returns how many there were."""
        num_messages = self._receive_all()
        self.flush()
        return num_messages

    def flush(self) -> None:
        """Hand queued requests to replicas with room: one Submit message per replica. When messages are held back
        (`RouterSettings.max_clump_s`), call again after `next_flush_s`."""
        self._has_pending = False
        self._dispatcher.flush()

    def give_way(self) -> None:
        """After waking another process: see `Dispatcher.give_way`."""
        self._dispatcher.give_way()

    def next_flush_s(self) -> float:
        """Seconds until messages that are held back are due; infinite when there are none."""
        return self._dispatcher.next_send_s() - self._clock()

    def gather_s(self) -> float:
        """Seconds for which messages should yet gather, see `RouterSettings.take_in_every_s`; 0 when they should be
        handled as they come. Who waits for them otherwise than by `poll` is to ask before `drain_messages`."""
        if self._message_rate.per_s <= MANY_MESSAGES_PER_S:
            return 0.0
        return max(0.0, self._received_s + self.settings.take_in_every_s - self._clock())

    def poll(self, timeout_s: float) -> int:
        """For users without an event loop: flush, wait at most `timeout_s`, handle messages, `tick` if due.

        Returns how many messages were handled.
        """
        self.flush()
        due_s = min(self._tick_due_s, self._dispatcher.next_send_s())
        if (gather_s := min(self.gather_s(), timeout_s, due_s - self._clock())) > 0.0:
            time.sleep(gather_s)
            timeout_s -= gather_s
        if not self.has_messages():
            self._connections.socket.wait(min(timeout_s, due_s - self._clock()))
        num_messages = self.drain_messages()
        if self._clock() >= self._tick_due_s:
            self.tick()
        return num_messages

    def tick(self) -> None:
        """Time-driven work: heartbeats, dead replicas, timeouts. Call about every `settings.tick_s`."""
        self._connections.bury_lost_connections(lambda: self._receive_all(MAX_LAST_MESSAGES))
        self._connections.heartbeat()
        self._roster.drop_ended()
        now_s = self._clock()
        for model in self._roster.models:
            self._check_served(model, now_s)
        self._loads.has_news = True  # what was left waiting is looked at again
        self.flush()
        self._tick_due_s = now_s + self.settings.tick_s

    def snapshot(self) -> RouterSnapshot:
        now_s = self._clock()
        return RouterSnapshot(
            router_id=self.router_id,
            taken_at=time.time(),
            replicas=tuple(replica.snapshot(now_s) for replica in self._connections),
            models=tuple(model.snapshot() for model in self._roster.models),
            pools=tuple(pool.snapshot() for pool in self._roster.pools),
        )

    def close(self) -> None:
        """Tell the replicas, which abort what is in flight, and close the socket. No sink is called."""
        self._connections.close()

    def _set_pending(self) -> None:
        if not self._has_pending:
            self._has_pending = True
            if self.on_pending is not None:
                self.on_pending()

    def _queue(self, model: Model, slots: Indices) -> None:
        model.enqueue(slots)
        model.num_submitted += len(slots)
        self._set_pending()

    def _receive_all(self, limit: int = MAX_MESSAGES_PER_DRAIN) -> int:
        num_messages = 0
        ends: list[tuple[Replica, Output, float]] = []
        self._received_s = self._clock()
        while num_messages < limit and (received := self._connections.receive()) is not None:
            num_messages += 1
            replica, message = received
            model = self._roster.model_of(replica)
            if isinstance(message, Output):
                now_s = self._clock()
                replica.book_in_flight(now_s)
                self._delivery.take_in(replica, model, message.outputs)
                ends.append((replica, message, now_s))
            else:
                self._take_back(replica, model, message)
        self._delivery.settle()
        self._delivery.call_sinks()  # first of all: clients wait for these
        for replica, message, now_s in ends:
            replica.note_step_end(message, now_s)
        self._message_rate.count(num_messages, self._received_s)
        return num_messages

    def _take_back(self, replica: Replica, model: Model, message: Refused) -> None:
        """A draining replica did not take these."""
        self._delivery.settle()  # no row may be left of what leaves its replica here
        slots, valid = self._table.match(message.request_ids)
        slots = slots[valid]
        slots = slots[self._table.replica[slots] == replica.number]
        if len(slots):
            release(self._loads, self._table, slots)
            self._requeue(model, slots)

    def _continue_elsewhere(self, replica: Replica) -> None:
        """Queue again what a lost replica had. Sinks are called when all is in place, as they may abort."""
        self._delivery.settle()  # what it had ended before is not to begin again
        model = self._roster.model_of(replica)
        model.prefixes.forget(replica.number)
        slots, sent = replica.release_all(self._table)
        self._table.num_attempts[slots[sent]] += 1
        self._requeue(model, slots)
        is_lost = self._table.num_attempts[slots] >= self.settings.max_attempts
        again = slots[sent & ~is_lost]
        model.num_continued += len(again)
        model.num_continued_tokens += int((self._table.prompt_lens[again] + self._table.num_emitted[again]).sum())
        model.num_continued_left += float(model.expected_tokens(again)[1].sum())
        lost = f"{self.settings.max_attempts} replicas were lost under this request"
        self._delivery.fail(model, slots[is_lost], f"{lost}; the last: {replica.reason}")
        self._set_pending()

    def _requeue(self, model: Model, slots: Indices) -> None:
        """Before all others, as new attempts that go on after the tokens they have."""
        self._table.begin_attempt(slots)
        model.enqueue(slots, first=True)

    def _check_served(self, model: Model, now_s: float) -> None:
        """Requests do not wait for ever for a replica that does not come."""
        if any(replica.may_accept_soon for replica in model.replicas):
            model.unserved_since_s = None
        elif model.unserved_since_s is None:
            model.unserved_since_s = now_s
        elif now_s - model.unserved_since_s > self.settings.continuation_timeout_s:
            waited_s = now_s - model.unserved_since_s
            error = f"model {model.name} has had no replica for {waited_s:.1f} s"
            self._delivery.fail(model, model.queue.all(), error)
