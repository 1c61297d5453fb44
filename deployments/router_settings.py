"""How a router behaves."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from .addresses import this_host


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterSettings:
    """How the router behaves.

    Attributes:
        models: served models and how many requests of each may wait here for a free slot. A model that is not
            listed becomes known with its first replica and takes `max_queued`.
        overcommit: requests in flight at a replica beyond its max_num_seqs, as a share of it (at least 1), so that
            a slot that frees has its successor at hand.
        max_submits_per_s: Submit messages per second, to all replicas together, above which requests wait for
            company.
        assign_every_s: above that rate, also the least time between two looks at the queue.
        take_in_every_s: when replicas send hundreds of messages per second, the least time between two looks at
            them: those that came together are cheaper than one by one.
        max_clump_s: the longest that they wait, and never past the next time that their replica takes in requests;
            0 sends always at once.
        finite_batch: what is queued is a batch that is there as a whole, and its end counts, not the first tokens:
            long answers begin first, and the last ones are spread so that all replicas end together.
        prefix_affinity_s: a request goes where the beginning of its prompt went last, as its blocks may still be
            there, unless it would end by so much later than elsewhere; 0 switches this off. Not for a finite batch.
        dead_after_s: a replica that says nothing for so long is lost. It says nothing during a step, so this must
            outlast the longest one; a process that dies is noticed at once by its connection, a host that
            vanishes within 15 s.
        continuation_timeout_s: how long requests wait when their model has no replica left, also new ones.
        max_attempts: replicas that may die under one request before it fails.
        heartbeat_s: seconds between two pings to each replica.
        tick_s: how often `tick` wants to be called.
        host: this machine, as in `ReplicaAddress.host`.
    """

    models: Mapping[str, int] = field(default_factory=dict)
    max_queued: int = 1024
    overcommit: float = 0.125
    max_submits_per_s: float = 20.0
    max_clump_s: float = 0.25
    assign_every_s: float = 0.01
    take_in_every_s: float = 0.004
    finite_batch: bool = False
    prefix_affinity_s: float = 0.0
    dead_after_s: float = 30.0
    continuation_timeout_s: float = 30.0
    max_attempts: int = 3
    heartbeat_s: float = 1.0
    tick_s: float = 0.1
    host: str = field(default_factory=this_host)
