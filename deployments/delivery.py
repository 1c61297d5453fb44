"""The way back through a router: from the rows of a step to the sinks of their requests."""

import logging
from collections.abc import Callable, Mapping

from ..models.engine.protocol import FinishReason, StepOutputs
from .replica_connections import ReplicaConnections
from .request_table import Request, RequestTable, TokenChunk
from .router_state import Model, Replica

logger = logging.getLogger(__name__)


class Delivery:
    """Books tokens, calls sinks, and ends requests. A sink may submit and abort, so nothing is taken for granted
    after one was called."""

    def __init__(
        self,
        table: RequestTable,
        models: Mapping[str, Model],
        connections: ReplicaConnections,
        clock: Callable[[], float],
    ) -> None:
        self._table = table
        self._models = models
        self._connections = connections
        self._clock = clock

    def take_in(self, replica: Replica, outputs: StepOutputs) -> None:
        """The rows of one step."""
        rows, num_tokens = self._table.book(outputs.request_ids, outputs.token_ids, outputs.finish)
        replica.book_step(outputs.step, num_tokens)
        self._models[replica.address.model].num_output_tokens += num_tokens
        now_s = self._clock()
        wire_ids = outputs.request_ids[rows].tolist()
        tokens = outputs.token_ids[rows].tolist()
        finishes = outputs.finish[rows].tolist()
        for row, wire_id, token, finish in zip(rows.tolist(), wire_ids, tokens, finishes, strict=True):
            request = self._table.attempt(wire_id)
            if request is None:
                continue  # the sink of a row before this one aborted it
            if request.wants_logprobs and token >= 0:
                request.keep_logprobs(outputs, row)
            if request.num_prompt_charged:
                replica.prompt_is_computed(request)
            is_first = request.first_token_s is None and token >= 0
            if is_first:
                self._note_first_token(replica, request, now_s)
            if finish:
                self._end(replica, request, FinishReason(finish), now_s)
            elif request.stream or is_first:
                self._deliver(request, [token], FinishReason.NONE)

    def fail(self, request: Request, error: str) -> None:
        """End a request with an error chunk, unless it has ended."""
        if not self._table.holds(request):
            return
        self._models[request.model].num_failed += 1
        rest = self._table.emitted(request)[request.num_delivered :].tolist()
        self._forget(request)
        self._deliver(request, rest, FinishReason.ERROR, error)

    def abort(self, request: Request) -> None:
        """End a request without a chunk; its replica hears of it with the next flush. Ignored when it has ended."""
        if not self._table.holds(request):
            return
        if (replica := self._connections.get(request.replica_id)) is not None:
            replica.aborts.append(request.wire_id)
        self._models[request.model].num_aborted += 1
        self._forget(request)

    def _note_first_token(self, replica: Replica, request: Request, now_s: float) -> None:
        request.first_token_s = now_s
        replica.pool.ttft.observe(now_s - request.submitted_s)
        replica.num_prompt_tokens += len(request.prompt_ids)
        self._models[request.model].num_prompt_tokens += len(request.prompt_ids)

    def _end(self, replica: Replica, request: Request, finish: FinishReason, now_s: float) -> None:
        model = self._models[request.model]
        token_ids = self._table.emitted(request)
        error = ""
        if finish is FinishReason.ERROR:
            model.num_failed += 1
            error = f"the engine of replica {replica.replica_id} could not answer this request"
        elif finish is FinishReason.ABORT:
            model.num_aborted += 1
        else:
            model.num_finished += 1
            model.answers = model.answers.observe(len(token_ids))
            replica.pool.e2e.observe(now_s - request.submitted_s)
            if request.first_token_s is not None and len(token_ids) > 1:
                replica.pool.tpot.observe((now_s - request.first_token_s) / (len(token_ids) - 1))
        rest = token_ids[request.num_delivered :].tolist()
        self._forget(request)
        self._deliver(request, rest, finish, error)

    def _forget(self, request: Request) -> None:
        """Take it out of its replica or queue, and out of the table."""
        if (replica := self._connections.get(request.replica_id)) is not None:
            replica.release(request, self._table.num_emitted(request))
        else:
            self._models[request.model].dequeue(request)
        self._table.remove(request)

    def _deliver(self, request: Request, token_ids: list[int], finish: FinishReason, error: str = "") -> None:
        chunk = TokenChunk(token_ids, finish, len(request.prompt_ids), error=error)
        if request.wants_logprobs:
            chunk.logprobs, chunk.top_ids, chunk.top_logprobs = request.take_logprobs()
        request.num_delivered += len(token_ids)
        try:
            request.sink(chunk)
        except Exception:
            # One client's fault must not end the streams of all others.
            logger.exception("the sink of request %d failed; the request is aborted", request.request_id)
            self.abort(request)
