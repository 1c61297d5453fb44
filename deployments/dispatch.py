"""The way out of a router: from a model's queue to replicas with room, one Submit message per replica."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import islice

import numpy as np

from ..models.engine.protocol import I32, SamplingParams, SubmitBatch
from ..models.errors import OverloadedError, UnavailableError
from .replica_connections import ReplicaConnections
from .request_table import Request, RequestTable
from .router_state import Model, Replica
from .routing_policy import Candidates, assign, known_speeds, retry_after_s
from .wire import Abort, Submit


class Dispatcher:
    """Admits, assigns and sends. It binds a request to a replica as late as it can: when there is room for it."""

    def __init__(
        self, table: RequestTable, models: Mapping[str, Model], connections: ReplicaConnections, overcommit: float
    ) -> None:
        self._table = table
        self._models = models
        self._connections = connections
        self._overcommit = overcommit

    def admit(self, model: Model, num_requests: int) -> None:
        """Raises UnavailableError or OverloadedError when the model cannot take so many more."""
        if not any(replica.may_accept_soon for replica in model.replicas):
            model.num_refused += num_requests
            reasons = [f"{r.replica_id} is {r.state}: {r.reason}" for r in model.replicas if r.listed]
            raise UnavailableError(
                f"no replica of model {model.name} takes requests now ({'; '.join(reasons) or 'none known'})"
            )
        if len(model.queue) + num_requests <= model.max_queued:
            return
        self._assign(model)
        room = sum(max(0, replica.room(self._overcommit)) for replica in model.replicas)
        if len(model.queue) + num_requests > model.max_queued + room:
            model.num_refused += num_requests
            speeds = [replica.tokens_per_s() for replica in model.replicas if replica.accepts]
            raise OverloadedError(
                f"{len(model.queue)} requests of model {model.name} wait here; at most {model.max_queued} may",
                retry_after_s(model.queued_tokens, speeds),
            )

    def flush(self) -> None:
        """Assign what has room and send it. What a replica found lost had goes to those that are left."""
        while not self._flush_once():
            pass

    def _flush_once(self) -> bool:
        """False when a replica was found lost."""
        for model in self._models.values():
            self._assign(model)
        return all(self._send_outbox(replica) for replica in self._connections)

    def _assign(self, model: Model) -> None:
        """From the queue into outboxes, as far as there is room."""
        if not model.queue:
            return
        replicas = [replica for replica in model.replicas if replica.accepts]
        speeds = known_speeds([replica.tokens_per_s() for replica in replicas])
        mean_cost = model.queued_tokens / len(model.queue)
        candidates = Candidates(
            room=np.array([replica.room(self._overcommit) for replica in replicas], np.int64),
            outstanding_tokens=np.array([replica.tokens_to_compute(mean_cost) for replica in replicas], np.float64),
            tokens_per_s=np.array(speeds, np.float64),
            delay_s=np.zeros(len(replicas)),
        )
        requests = list(islice(model.queue.values(), int(np.maximum(candidates.room, 0).sum())))
        chosen = assign(np.array([request.cost for request in requests], np.float64), candidates)
        for request, index in zip(requests, chosen.tolist(), strict=True):
            model.dequeue(request)
            replicas[index].take(request, self._table.num_emitted(request))

    def _send_outbox(self, replica: Replica) -> bool:
        requests = [request for request in replica.outbox if request.replica_id == replica.replica_id]
        if requests and not self._connections.send(replica, Submit(self._batch(requests))):
            return False
        replica.outbox.clear()
        aborts, replica.aborts = replica.aborts, []
        return not aborts or self._connections.send(replica, Abort(np.array(aborts, np.uint64)))

    def _batch(self, requests: list[Request]) -> SubmitBatch:
        """One that had begun elsewhere goes on from prompt + emitted tokens."""
        prompts: list[I32] = []
        sampling: list[SamplingParams] = []
        for request in requests:
            emitted = self._table.emitted(request)
            if len(emitted):
                prompts.append(np.concatenate([request.prompt_ids, emitted]))
                sampling.append(replace(request.sampling, max_tokens=request.sampling.max_tokens - len(emitted)))
            else:
                prompts.append(request.prompt_ids)
                sampling.append(request.sampling)
        return SubmitBatch.build([request.wire_id for request in requests], prompts, sampling)
