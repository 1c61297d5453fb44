"""Looks at a router now and then while a run goes on: counters for the ledger, tokens by node."""

import time
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ...deployments.router import Router
from ..ledger import ModelCounters
from ..service_view import merge, model_counters
from .node_speed import node_speeds

F64 = NDArray[np.float64]

EVERY_S = 0.5


class Observation:
    """
    Args:
        nodes: node of each replica.

    Attributes:
        nodes: their names, in the order of `timeline`.
    """

    def __init__(self, router: Router, model: str, nodes: Mapping[str, str]) -> None:
        self.nodes = tuple(sorted(set(nodes.values())))
        self._router = router
        self._model = model
        self._node_of = dict(nodes)
        self._node_index = {replica: self.nodes.index(node) for replica, node in nodes.items()}
        self._counters: list[ModelCounters] = []
        self._times_s: list[float] = []
        self._tokens: list[F64] = []
        self._before: F64 | None = None
        self._due_s = 0.0

    def look_if_due(self, now_s: float) -> None:
        if now_s >= self._due_s:
            self.look(now_s)

    def look(self, now_s: float) -> None:
        """At `now_s` on the run's clock."""
        self._due_s = now_s + EVERY_S
        self._router.flush()  # or what was just submitted would count as waiting
        snapshot = self._router.snapshot()
        self._counters.append(model_counters(merge([snapshot], {}), self._model, time.monotonic()))
        tokens = np.zeros(len(self.nodes))
        for replica in snapshot.replicas:
            tokens[self._node_index[replica.address.replica_id]] += replica.num_output_tokens
        if self._before is None:
            self._before = tokens
        self._times_s.append(now_s)
        self._tokens.append(tokens - self._before)

    def counters(self) -> tuple[ModelCounters, ...]:
        return tuple(self._counters)

    def node_speeds(self) -> dict[str, float]:
        """See `node_speed.node_speeds`."""
        return node_speeds(self._counters, self._node_of)

    def timeline(self) -> tuple[F64, F64]:
        """[K] seconds; [K, nodes] output tokens that had come by then."""
        return np.array(self._times_s), np.array(self._tokens).reshape(len(self._times_s), len(self.nodes))
