"""Load before a measurement, kept apart from it: nothing of it reaches LoadGen or the record's figures."""

import math
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ...deployments.router import Router
from ...models.engine.protocol import I32, U8, U64
from .samples import SampleSet

I64 = NDArray[np.int64]

# Of all slots: a few more wait, so that none is ever free.
OPEN_SHARE = 1.125
# Requests per replica in loads of few, as shares of its slots, and how long each lasts: engines tell once a second
# what they did, and of each load some must be told.
FEW_SHARES = (0.0, 1 / 16)
FEW_S = 4.0
_TICK_S = 0.05
_DRAIN_S = 30.0


class _Loop:
    """A closed loop over the samples, from the last one backwards."""

    def __init__(self, router: Router, model: str, samples: SampleSet) -> None:
        self.ended_s: list[tuple[float, int]] = []
        self.num_ended = 0
        self._router = router
        self._model = model
        self._samples = samples
        self._ids: dict[int, int] = {}
        self._next = 0

    def progress(self, first: I64, done: I64, num_tokens: I32, finish: U8, now_s: float) -> None:
        for tag in done.tolist():
            self._ids.pop(tag, None)
        self.num_ended += len(done)
        if len(done):
            self.ended_s.append((now_s, len(done)))

    @property
    def num_open(self) -> int:
        return len(self._ids)

    def keep_open(self, count: int) -> None:
        num = count - self.num_open
        if num <= 0:
            return
        tags = np.arange(self._next, self._next + num)
        indices = len(self._samples) - 1 - tags % len(self._samples)
        self._next += num
        ids: U64 = self._router.submit_bulk(
            self._model,
            self._samples.tokens,
            self._samples.prompt_lens[indices],
            self._samples.max_tokens[indices],
            self._samples.seeds[indices],
            tags,
            self,
            ignore_eos=self._samples.ignore_eos,
            temperature=self._samples.temperature,
            prompt_starts=self._samples.starts[indices],
        )
        self._ids |= dict(zip(tags.tolist(), ids.tolist(), strict=True))

    def abort(self) -> None:
        self._router.abort_many(list(self._ids.values()))
        self._ids.clear()


def warm_up(
    router: Router,
    model: str,
    samples: SampleSet,
    seconds: float,
    *,
    one_by_one: bool = False,
    progress: Callable[[str], None] = lambda line: None,
) -> float:
    """Keep all slots busy (or one request going) for so long, then abort what is open and wait until it is gone.

    Returns:
        Requests/s that ended in the second half; 0 when none did.
    """
    slots = sum(replica.address.max_num_seqs for replica in router.snapshot().replicas)
    count = 1 if one_by_one else math.ceil(OPEN_SHARE * slots)
    loop = _Loop(router, model, samples)
    began_s = time.monotonic()
    progress(f"warming up for {seconds:g} s with {count:,} requests open")
    while time.monotonic() - began_s < seconds:
        loop.keep_open(count)
        router.poll(_TICK_S)
    _drain(router, loop)
    middle_s = began_s + seconds / 2
    return sum(num for at_s, num in loop.ended_s if at_s >= middle_s) / (seconds / 2)


def load_little(
    router: Router, model: str, samples: SampleSet, look: Callable[[float], None], seconds: float = FEW_S
) -> None:
    """One request per replica, then a few, for so long each: what steps take when they hold little.

    Args:
        look: called again and again with the seconds since the start.
    """
    replicas = router.snapshot().replicas
    loop = _Loop(router, model, samples)
    began_s = time.monotonic()
    for number, share in enumerate(FEW_SHARES, 1):
        count = sum(max(1, round(share * replica.address.max_num_seqs)) for replica in replicas)
        while (passed_s := time.monotonic() - began_s) < number * seconds:
            loop.keep_open(count)
            router.poll(_TICK_S)
            look(passed_s)
    _drain(router, loop)


def _drain(router: Router, loop: _Loop) -> None:
    loop.abort()
    drained_by_s = time.monotonic() + _DRAIN_S
    while time.monotonic() < drained_by_s and _holds_work(router):
        router.poll(_TICK_S)


def _holds_work(router: Router) -> bool:
    """Engines tell once a second what they have."""
    return any(
        replica.num_in_flight or (replica.status is not None and replica.status.stats.num_running)
        for replica in router.snapshot().replicas
    )
