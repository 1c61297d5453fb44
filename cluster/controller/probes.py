"""Small real generations that prove a replica completes requests; off the controller's own thread."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence

from ...deployments.addresses import ReplicaAddress, ServiceKeys
from ...deployments.sinks import TokenChunk
from ...models.engine.protocol import FinishReason, SamplingParams
from ...models.errors import NfoldError
from ..measure import measuring_router
from .sight import Probe

PROMPT_IDS = (1, 2, 3, 4)
NUM_TOKENS = 4
POLL_S = 0.02


class Prober:
    """Probes what it is told to, in turn.

    Args:
        keys: of the service; asked for when the first probe is due.
        clock: seconds, only forward.
    """

    def __init__(
        self, keys: Callable[[], ServiceKeys], timeout_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._keys = keys
        self._timeout_s = timeout_s
        self._clock = clock
        self._results: dict[str, Probe] = {}
        self._thread: threading.Thread | None = None

    @property
    def results(self) -> Mapping[str, Probe]:
        """The latest of each replica, by id."""
        return dict(self._results)

    def probe(self, replicas: Sequence[ReplicaAddress]) -> None:
        """Start probing these, unless the last ones are still being probed. Returns at once."""
        if not replicas or (self._thread is not None and self._thread.is_alive()):
            return
        self._thread = threading.Thread(target=self._probe_all, args=(list(replicas),), daemon=True)
        self._thread.start()

    def forget(self, known: Sequence[str]) -> None:
        """All but these replicas are gone."""
        for name in set(self._results) - set(known):
            del self._results[name]

    def _probe_all(self, replicas: Sequence[ReplicaAddress]) -> None:
        for address in replicas:
            reason = probe(address, self._keys(), self._timeout_s)
            self._results[address.replica_id] = Probe(not reason, self._clock(), reason)


def probe(address: ReplicaAddress, keys: ServiceKeys | None, timeout_s: float) -> str:
    """One small generation on one replica. Returns why it did not complete, empty if it did."""
    give_up_s = time.monotonic() + timeout_s
    chunks: list[TokenChunk] = []
    try:
        with measuring_router([address], keys, timeout_s=timeout_s) as router:
            sampling = SamplingParams(NUM_TOKENS, ignore_eos=True)
            router.submit(address.model, PROMPT_IDS, sampling, chunks.append, stream=False)
            while not any(chunk.finish for chunk in chunks):
                if time.monotonic() > give_up_s:
                    return f"no answer within {timeout_s:g} s"
                router.poll(POLL_S)
    except NfoldError as error:
        return str(error)
    ended = chunks[-1]
    return "" if ended.finish in (FinishReason.LENGTH, FinishReason.STOP) else ended.error or "it failed"
