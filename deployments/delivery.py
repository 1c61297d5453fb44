"""The way back through a router: from the rows of a step to the sinks of their requests.

Everything that the messages of a turn bring is booked before the first sink is called, as a sink may submit and
abort.
"""

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..models.engine.protocol import I32, U8, FinishReason, StepOutputs
from .dispatch import Dispatcher
from .index_pool import Indices
from .model_state import Model
from .replica_connections import ReplicaConnections
from .replica_loads import ReplicaLoads
from .request_loops import settle
from .request_table import NOWHERE, RequestTable
from .router_state import Replica, release
from .sinks import NO_BULK_SINK, BulkSink, Request, TokenChunk

logger = logging.getLogger(__name__)

_NONE: Indices = np.zeros(0, np.int64)

Kind = TypeVar("Kind", bound=np.generic)
BulkNews = tuple[Indices, Indices, I32, U8, float]


class _Rows(NamedTuple):
    """The rows of one step that need a look: which of its outputs, and whose."""

    replica: Replica
    model: Model
    outputs: StepOutputs
    rows: Indices
    slots: Indices


class Delivery:
    """Books tokens, calls sinks, and ends requests.

    `take_in` for each message of a turn, then `settle` once, then `call_sinks`: array operations cost by their
    number, hardly by their length.
    """

    def __init__(
        self,
        table: RequestTable,
        loads: ReplicaLoads,
        models: Sequence[Model],
        connections: ReplicaConnections,
        dispatcher: Dispatcher,
        clock: Callable[[], float],
    ) -> None:
        self._table = table
        self._loads = loads
        self._models = models
        self._connections = connections
        self._dispatcher = dispatcher
        self._clock = clock
        self._taken_in: dict[tuple[str, str], list[_Rows]] = {}  # by model and pool, not settled yet
        # What sinks are yet to be called with: chunks by request id, and news of bulk sinks.
        self._chunks: dict[int, list[tuple[Request, TokenChunk]]] = {}
        self._news: list[tuple[BulkSink, BulkNews]] = []

    def take_in(self, replica: Replica, model: Model, outputs: StepOutputs) -> None:
        """Book the tokens of one step. What begins or ends with them is left to `settle`."""
        rows, slots, num_tokens = self._table.book(outputs.request_ids, outputs.token_ids, outputs.finish)
        replica.book_tokens(num_tokens)
        model.num_output_tokens += num_tokens
        if len(rows):
            pool, part = replica.pool, _Rows(replica, model, outputs, rows, slots)
            self._taken_in.setdefault((pool.model, pool.name), []).append(part)

    def settle(self) -> None:
        """Note the first and last tokens of all that was taken in, and free the slots of what ended."""
        taken_in, self._taken_in = self._taken_in, {}
        for parts in taken_in.values():
            self._settle(parts)

    def _settle(self, parts: list[_Rows]) -> None:
        """Of one pool."""
        table, now_s = self._table, self._clock()
        pool, model = parts[0].replica.pool, parts[0].model
        slots = _join([part.slots for part in parts])
        finish = _join([part.outputs.finish[part.rows] for part in parts])
        has_token = _join([part.outputs.token_ids[part.rows] >= 0 for part in parts])
        first, done, finish, open_ended, ttft_s, e2e_s, tpot_s, num_prompt_tokens, num_aborted, num_failed = settle(
            *(slots, has_token, finish, now_s),
            *(table.submitted_s, table.first_token_s, table.prompt_lens, table.ignore_eos),
            self._loads.num_prompt_tokens,
            table.charges(),
            self._loads.outstanding(),
        )
        pool.ttft.observe(ttft_s)
        model.num_prompt_tokens += num_prompt_tokens
        if len(done):
            model.num_finished += len(e2e_s)
            model.num_aborted += num_aborted
            model.num_failed += num_failed
            if len(open_ended):
                model.answers.observe(table.prompt_lens[open_ended], table.num_emitted[open_ended])
            pool.e2e.observe(e2e_s)
            pool.tpot.observe(tpot_s)
            self._loads.has_news = True
        if table.ordinary:
            self._keep_chunks(parts, first)
        self._keep_news(first, done, finish, now_s)
        if len(done):
            table.remove(done)

    def fail(self, model: Model, slots: Indices, error: str) -> None:
        """End requests of one model, which differ, with an error."""
        if len(slots) == 0:
            return
        model.num_failed += len(slots)
        for slot in slots.tolist():
            if (request := self._table.ordinary.get(slot)) is not None:
                rest = self._table.emitted(slot, request.num_delivered).tolist()
                self._keep_chunk(request, request.chunk(rest, FinishReason.ERROR, error))
        self._keep_news(_NONE, slots, np.full(len(slots), FinishReason.ERROR, np.uint8), self._clock())
        self._forget(slots)
        self.call_sinks()

    def abort(self, request_ids: Sequence[int]) -> None:
        """End requests without a word to their sinks; their replicas hear of it with the next flush. Ids of
        requests that have ended are ignored."""
        for request_id in request_ids:
            self._chunks.pop(request_id, None)
        slots = self._table.find(np.array([each for each in request_ids if each >= 0], np.uint64))
        if len(slots) == 0:
            return
        for slot in slots.tolist():
            self._models[int(self._table.model[slot])].num_aborted += 1
            if (number := int(self._table.replica[slot])) != NOWHERE:
                self._dispatcher.abort(self._connections.by_number(number), int(self._table.wire_ids[slot]))
        self._forget(slots)

    def _keep_chunks(self, parts: list[_Rows], first: Indices) -> None:
        """For the sinks of ordinary requests: one chunk each, whatever its rows here."""
        table = self._table
        finishes: dict[int, tuple[int, str]] = {}
        for part in parts:
            outputs = part.outputs
            for row, slot in zip(part.rows.tolist(), part.slots.tolist(), strict=True):
                request = table.ordinary.get(slot)
                if request is None:
                    continue
                finish = int(outputs.finish[row])
                if request.num_top is not None and outputs.token_ids[row] >= 0:
                    request.keep_logprobs(outputs, row)
                if slot not in finishes or finish:
                    finishes[slot] = finish, part.replica.replica_id
        starts = set(first.tolist())
        for slot, (finish, replica_id) in finishes.items():
            request = table.ordinary[slot]
            if not (finish or request.stream or slot in starts):
                continue
            error = ""
            if finish == FinishReason.ERROR:
                error = f"the engine of replica {replica_id} could not answer this request"
            token_ids = table.emitted(slot, request.num_delivered).tolist()
            self._keep_chunk(request, request.chunk(token_ids, FinishReason(finish), error))

    def _keep_chunk(self, request: Request, chunk: TokenChunk) -> None:
        self._chunks.setdefault(request.request_id, []).append((request, chunk))

    def _keep_news(self, first: Indices, done: Indices, finish: U8, now_s: float) -> None:
        """For the bulk sinks of these requests."""
        table = self._table
        first_sinks, done_sinks = table.sink[first], table.sink[done]
        for number in set(first_sinks.tolist()) | set(done_sinks.tolist()):
            if number == NO_BULK_SINK:
                continue
            begun, ended = first[first_sinks == number], done_sinks == number
            done_here = done[ended]
            num_tokens = table.num_emitted[done_here].astype(np.int32)
            sink = table.bulk_sinks[number]
            news = table.tags[begun], table.tags[done_here], num_tokens, finish[ended], now_s
            self._news.append((sink, news))

    def _forget(self, slots: Indices) -> None:
        """Take them out of their replicas or queues, and out of the table."""
        table = self._table
        queued = table.replica[slots] == NOWHERE
        release(self._loads, table, slots[~queued])
        models = table.model[slots[queued]]
        for model in set(models.tolist()):
            self._models[model].queue.left(int((models == model).sum()))
        table.remove(slots)

    def call_sinks(self) -> None:
        """With all that was kept. A sink that aborts others takes their chunks away."""
        while self._news:
            sink, news = self._news.pop(0)
            try:
                sink.progress(*news)
            except Exception:
                logger.exception("a bulk sink failed; its requests are aborted")
                self.abort(self._table.request_ids_of(sink))
        while self._chunks:
            request_id, chunks = next(iter(self._chunks.items()))
            request, chunk = chunks.pop(0)
            if not chunks:
                del self._chunks[request_id]
            try:
                request.sink(chunk)
            except Exception:
                # One client's fault must not end the streams of all others.
                logger.exception("the sink of request %d failed; the request is aborted", request_id)
                self.abort([request_id])


def _join(parts: list[NDArray[Kind]]) -> NDArray[Kind]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
