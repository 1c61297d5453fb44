"""The way back through a router: from the rows of a step to the sinks of their requests.

Everything that a message brings is booked before the first sink is called, as a sink may submit and abort.
"""

import logging
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ..models.engine.protocol import I32, U8, FinishReason, StepOutputs
from .dispatch import Dispatcher
from .index_pool import Indices
from .model_state import Model
from .replica_connections import ReplicaConnections
from .request_table import NOWHERE, RequestTable
from .router_state import Replica
from .sinks import NO_BULK_SINK, BulkSink, Request, TokenChunk

logger = logging.getLogger(__name__)

_NONE: Indices = np.zeros(0, np.int64)
_NO_FINISH: U8 = np.zeros(0, np.uint8)

BulkNews = tuple[Indices, Indices, I32, U8, float]


class Delivery:
    """Books tokens, calls sinks, and ends requests."""

    def __init__(
        self,
        table: RequestTable,
        models: Sequence[Model],
        connections: ReplicaConnections,
        dispatcher: Dispatcher,
        clock: Callable[[], float],
    ) -> None:
        self._table = table
        self._models = models
        self._connections = connections
        self._dispatcher = dispatcher
        self._clock = clock
        # What sinks are yet to be called with: chunks by request id, and news of bulk sinks.
        self._chunks: dict[int, tuple[Request, TokenChunk]] = {}
        self._news: list[tuple[BulkSink, BulkNews]] = []

    def take_in(self, replica: Replica, model: Model, outputs: StepOutputs) -> None:
        """The rows of one step."""
        table = self._table
        rows, slots, num_tokens, all_differ = table.book(outputs.request_ids, outputs.token_ids, outputs.finish)
        replica.book_step(outputs.step, num_tokens)
        model.num_output_tokens += num_tokens
        if len(rows) == 0:
            return
        now_s = self._clock()
        row_finish = outputs.finish[rows]
        has_token = outputs.token_ids[rows] >= 0
        first = self._note_first_rows(replica, model, slots, has_token, all_differ, now_s)
        done, finish = self._note_last_rows(replica, model, slots, row_finish, all_differ, now_s)
        if table.ordinary:
            self._keep_chunks(replica, outputs, rows, slots, first)
        self._keep_news(first, done, finish, now_s)
        if len(done):
            replica.release(table, done)
            table.remove(done)
        self._call_sinks()

    def fail(self, model: Model, slots: Indices, error: str) -> None:
        """End requests of one model, which differ, with an error."""
        if len(slots) == 0:
            return
        model.num_failed += len(slots)
        for slot in slots.tolist():
            if (request := self._table.ordinary.get(slot)) is not None:
                rest = self._table.emitted(slot, request.num_delivered).tolist()
                self._chunks[request.request_id] = request, request.chunk(rest, FinishReason.ERROR, error)
        self._keep_news(_NONE, slots, np.full(len(slots), FinishReason.ERROR, np.uint8), self._clock())
        self._forget(slots)
        self._call_sinks()

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

    def _note_first_rows(
        self,
        replica: Replica,
        model: Model,
        slots: Indices,
        has_token: NDArray[np.bool_],
        all_differ: bool,
        now_s: float,
    ) -> Indices:
        """Returns the requests whose first token came, in order."""
        table = self._table
        computed = slots[table.prompt_charge[slots] > 0]
        if len(computed):
            replica.compute_prompts(table, computed if all_differ else _distinct(computed))
        first = slots[has_token & np.isnan(table.first_token_s[slots])]
        if len(first):
            first = first if all_differ else _distinct(first)
            table.first_token_s[first] = now_s
            replica.pool.ttft.observe(now_s - table.submitted_s[first])
            num_prompt_tokens = int(table.prompt_lens[first].sum())
            replica.num_prompt_tokens += num_prompt_tokens
            model.num_prompt_tokens += num_prompt_tokens
        return first

    def _note_last_rows(
        self, replica: Replica, model: Model, slots: Indices, finish: U8, all_differ: bool, now_s: float
    ) -> tuple[Indices, U8]:
        """Returns the requests that ended, and why."""
        table = self._table
        last = finish.nonzero()[0]
        if len(last) == 0:
            return _NONE, _NO_FINISH
        done, finish = slots[last], finish[last]
        if not all_differ:
            done, at = np.unique(done, return_index=True)
            finish = finish[at]
        answered = done
        if finish.max() >= FinishReason.ABORT:
            failed, aborted = finish == FinishReason.ERROR, finish == FinishReason.ABORT
            model.num_failed += int(failed.sum())
            model.num_aborted += int(aborted.sum())
            answered = done[~(failed | aborted)]
        if len(answered):
            model.num_finished += len(answered)
            num_tokens = table.num_emitted[answered]
            model.note_answers(answered)
            replica.pool.e2e.observe(now_s - table.submitted_s[answered])
            several = (num_tokens > 1).nonzero()[0]
            after_first_s = now_s - table.first_token_s[answered[several]]
            replica.pool.tpot.observe(after_first_s / (num_tokens[several] - 1))
        return done, finish

    def _keep_chunks(
        self, replica: Replica, outputs: StepOutputs, rows: Indices, slots: Indices, first: Indices
    ) -> None:
        """For the sinks of ordinary requests: one chunk each, whatever its rows here."""
        table = self._table
        mine = np.flatnonzero(table.sink[slots] == NO_BULK_SINK)
        if len(mine) == 0:
            return
        rows, slots = rows[mine], slots[mine]
        finishes: dict[int, int] = {}
        tokens, row_finish = outputs.token_ids[rows].tolist(), outputs.finish[rows].tolist()
        for row, slot, token, finish in zip(rows.tolist(), slots.tolist(), tokens, row_finish, strict=True):
            request = table.ordinary[slot]
            if request.num_top is not None and token >= 0:
                request.keep_logprobs(outputs, row)
            finishes[slot] = finishes.get(slot, 0) or finish
        starts = set(first.tolist())
        for slot, finish in finishes.items():
            request = table.ordinary[slot]
            if not (finish or request.stream or slot in starts):
                continue
            error = ""
            if finish == FinishReason.ERROR:
                error = f"the engine of replica {replica.replica_id} could not answer this request"
            token_ids = table.emitted(slot, request.num_delivered).tolist()
            chunk = request.chunk(token_ids, FinishReason(finish), error)
            self._chunks[request.request_id] = request, chunk

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
        numbers = table.replica[slots]
        for number in set(numbers.tolist()):
            here = slots[numbers == number]
            if number != NOWHERE:
                self._connections.by_number(number).release(table, here)
                continue
            models = table.model[here]
            for model in set(models.tolist()):
                self._models[model].queue.left(int((models == model).sum()))
        table.remove(slots)

    def _call_sinks(self) -> None:
        """With all that was kept. A sink that aborts others takes their chunks away."""
        while self._news:
            sink, news = self._news.pop(0)
            try:
                sink.progress(*news)
            except Exception:
                logger.exception("a bulk sink failed; its requests are aborted")
                self.abort(self._table.request_ids_of(sink))
        while self._chunks:
            request_id = next(iter(self._chunks))
            request, chunk = self._chunks.pop(request_id)
            try:
                request.sink(chunk)
            except Exception:
                # One client's fault must not end the streams of all others.
                logger.exception("the sink of request %d failed; the request is aborted", request_id)
                self.abort([request_id])


def _distinct(slots: Indices) -> Indices:
    """Each once, in the order of their first."""
    if len(slots) < 2:
        return slots
    values, at = np.unique(slots, return_index=True)
    return slots if len(values) == len(slots) else slots[np.sort(at)]
