"""The router: picks the replica for a request and follows the request to its end. (In work.)

The same class runs inside the gateway and inside a benchmark process. One thread, no locks, no Ray.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ..models.engine.protocol import I32, FinishReason, SamplingParams
from .addresses import ReplicaAddress, ServiceKeys, this_host
from .router_stats import RouterSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterSettings:
    """How the router behaves.

    Attributes:
        models: served models and how many requests of each may wait here for a free slot. A model that is not
            listed becomes known with its first replica and takes `max_queued`.
        overcommit: requests in flight at a replica beyond its max_num_seqs, as a share of it (at least 1), so that
            a slot that frees has its successor at hand.
        dead_after_s: a replica that says nothing for so long is lost.
        continuation_timeout_s: how long requests wait when their model has no replica left.
        max_attempts: replicas that may die under one request before it fails.
        heartbeat_s: seconds between two pings to each replica.
        tick_s: how often `tick` wants to be called.
        host: this machine, as in `ReplicaAddress.host`.
    """

    models: Mapping[str, int] = field(default_factory=dict)
    max_queued: int = 1024
    overcommit: float = 0.125
    dead_after_s: float = 5.0
    continuation_timeout_s: float = 30.0
    max_attempts: int = 3
    heartbeat_s: float = 1.0
    tick_s: float = 0.1
    host: str = field(default_factory=this_host)


@dataclass(slots=True)
class TokenChunk:
    """News of one request.

    Attributes:
        token_ids: new tokens, in order; each token comes once.
        finish: not NONE in the last chunk only.
        num_prompt_tokens: of the request as submitted.
        logprobs: one per token when asked for.
        top_ids, top_logprobs: per token, the alternatives asked for.
        error: what went wrong, when `finish` is ERROR.
    """

    token_ids: list[int]
    finish: FinishReason
    num_prompt_tokens: int
    logprobs: list[float] | None = None
    top_ids: list[list[int]] | None = None
    top_logprobs: list[list[float]] | None = None
    error: str = ""


Sink = Callable[[TokenChunk], None]


class Router:
    """Sends requests to replicas and their tokens to sinks. Not thread-safe: one thread owns it.

    In asyncio use `router_asyncio.attach`; elsewhere call `poll` in a loop.

    Args:
        router_id: unique in the service, 1 to 200 bytes of UTF-8.
        keys: the service's; None reaches replicas on this host only.
    """

    def __init__(
        self,
        router_id: str,
        keys: ServiceKeys | None,
        settings: RouterSettings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        raise NotImplementedError

    def update_replicas(self, addresses: Sequence[ReplicaAddress]) -> None:
        """The replicas that there are now.

        One that is not listed any more gets nothing new, and is dropped when its last request here has ended.
        """
        raise NotImplementedError

    def submit(
        self, model: str, prompt_ids: Sequence[int] | I32, sampling: SamplingParams, sink: Sink, stream: bool = True
    ) -> int:
        """Queue one request; it is sent with all others of this tick by `flush`. Returns the request's id.

        `sink` is called in this router's thread, never before `submit` returned: per new token when `stream`, else
        once with the first token and once with all others. It must not block, and may submit and abort.

        Raises:
            UnknownModelError: the model is not served.
            UnavailableError: it has no living replica.
            OverloadedError: its queue is full.
        """
        raise NotImplementedError

    def submit_many(
        self,
        model: str,
        prompts: Sequence[Sequence[int] | I32],
        sampling: Sequence[SamplingParams],
        sinks: Sequence[Sink],
        stream: bool = False,
    ) -> list[int]:
        """As `submit` for many: all are queued, or an error is raised and none is."""
        raise NotImplementedError

    def abort(self, request_id: int) -> None:
        """Forget a request: its sink is not called again, its replica frees its blocks. Ignores unknown ids."""
        raise NotImplementedError

    def fileno(self) -> int:
        """ZMQ's descriptor, edge-triggered: when it is readable call `drain_messages`; see `router_asyncio`."""
        raise NotImplementedError

    def drain_messages(self) -> int:
        """Handle all messages that are there, then `flush`. Returns how many there were."""
        raise NotImplementedError

    def flush(self) -> None:
        """Hand queued requests to replicas with room: one Submit message per replica."""
        raise NotImplementedError

    def poll(self, timeout_s: float) -> int:
        """For users without an event loop: flush, wait at most `timeout_s`, handle messages, `tick` if due.

        Returns how many messages were handled.
        """
        raise NotImplementedError

    def tick(self) -> None:
        """Time-driven work: heartbeats, dead replicas, timeouts. Call about every `settings.tick_s`."""
        raise NotImplementedError

    def snapshot(self) -> RouterSnapshot:
        raise NotImplementedError

    def close(self) -> None:
        """Tell the replicas, which abort what is in flight, and close the socket. No sink is called."""
        raise NotImplementedError
