"""A recording through a fleet of simulated accelerators in virtual time, under one routing policy or another.

    recording ──> queue ──policy──> replica 0: scheduler of the simulated engine, steps by its profile
                          ^   └───> replica 1 ...
                          └── what a router knows: in flight, step times, tokens that came; never an answer's length

Left out: the time that messages and the router itself take (beside `delay_s` on the way out), and several routers
with a view each. A replica that dies is noticed at once. Arrivals within a tick of 20 ms are assigned together, as
a router does.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

from ..deployments.router_settings import RouterSettings
from ..deployments.routing_policy import limit_in_flight
from ..deployments.speed import StepLine
from ..models.engine.simulated.faults import Fault
from ..models.engine.simulated.profile import StepTimeProfile
from ..models.engine.simulated.sequences import begin_again, known_sequences
from ..models.engine.simulated.virtual import VirtualEngine
from .ledger import ModelCounters
from .recording import Recording
from .replay_books import ReplayBooks
from .replay_policies import Policy
from .replay_result import ReplayResult
from .replay_router import ReplayRouter
from .speed_priors import full_batch, profile_points

I64 = NDArray[np.int64]

TICK_S = 0.02
SAMPLE_S = 1.0
OVERCOMMIT = RouterSettings().overcommit


@dataclass(frozen=True, slots=True)
class FleetReplica:
    """One replica of a fleet.

    Attributes:
        scenario: whose engine settings.
        slowness: its steps take this times as long as its profile says, which the router is not told.
        delay_s: one way to it.
        max_in_flight: requests that it may hold; None takes a full batch and an eighth.
        faults: what goes wrong in its engine.
        from_s: when it begins to serve; before it starts.
        until_s: when it dies, for ever.
        node: name of its node.
        yardstick: what the ledger measures it by; None takes the profile's name.
    """

    profile: StepTimeProfile
    scenario: str
    slowness: float = 1.0
    delay_s: float = 0.0
    max_in_flight: int | None = None
    faults: tuple[Fault, ...] = ()
    from_s: float = 0.0
    until_s: float = inf
    node: str = "simulated"
    yardstick: str | None = None


def replay(
    recording: Recording, fleet: Sequence[FleetReplica], policy: Policy, *, stop_s: float = inf
) -> ReplayResult:
    """Run all of it to its end, or until `stop_s`. Replicas of one profile are one pool: they share a step line."""
    return _Replay(recording, fleet, policy).run(stop_s)


class _Replay:
    def __init__(self, recording: Recording, fleet: Sequence[FleetReplica], policy: Policy) -> None:
        count = len(recording)
        self._recording = recording
        self._engines = [VirtualEngine(one.profile, one.scenario, one.slowness, one.faults) for one in fleet]
        pools = list(dict.fromkeys(one.profile.name for one in fleet))
        by_pool = {
            one.profile.name: StepLine.from_baseline(profile_points(one.profile, one.scenario)) for one in fleet
        }
        longest = min(one.profile.max_model_len for one in fleet)
        self._first_sequences = known_sequences(recording.prompt_lens, recording.answer_lens, longest)
        self._sequences = self._first_sequences.copy()
        batches = [one.profile.scenario(one.scenario).limits.max_num_seqs for one in fleet]
        limits = [limit_in_flight(batch, OVERCOMMIT) for batch in batches]
        limit = np.array([one.max_in_flight or limit for one, limit in zip(fleet, limits, strict=True)], np.int64)
        self._delay_s = np.array([one.delay_s for one in fleet])
        self._router = ReplayRouter(
            recording.prompt_lens,
            policy,
            lines=[by_pool[pool] for pool in pools],
            pool_of=np.array([pools.index(one.profile.name) for one in fleet], np.int64),
            limit=limit,
            full_batch=np.minimum([full_batch(one.profile, one.scenario) for one in fleet], limit),
            delay_s=self._delay_s,
        )
        self._first_s, self._end_s, self._handed_s = np.zeros((3, count))
        self._on_the_way: list[tuple[float, int, I64]] = []
        self._steps: list[tuple[float, int]] = []
        self._num_ended = 0
        self._serves = np.array([one.from_s <= 0.0 for one in fleet])
        self._changes = sorted(
            (at_s, replica, serves)
            for replica, one in enumerate(fleet)
            for at_s, serves in ((one.from_s, True), (one.until_s, False))
            if 0.0 < at_s < inf
        )[::-1]
        self._books = ReplayBooks(
            [one.yardstick or one.profile.name for one in fleet],
            [one.node for one in fleet],
            np.array([one.from_s for one in fleet]),
            np.array([one.until_s for one in fleet]),
        )
        self._samples: list[ModelCounters] = []

    def run(self, stop_s: float) -> ReplayResult:
        arrivals_s = self._recording.arrivals_s
        num_arrived = 0
        while self._num_ended < len(arrivals_s):
            due_s = self._steps[0][0] if self._steps else np.inf
            land_s = self._on_the_way[0][0] if self._on_the_way else np.inf
            next_s = arrivals_s[num_arrived] if num_arrived < len(arrivals_s) else np.inf
            change_s = self._changes[-1][0] if self._changes else np.inf
            now_s = float(min(due_s, land_s, next_s, change_s))
            self._sample_until(min(now_s, stop_s))
            if now_s > stop_s:
                break
            if change_s <= now_s:
                _, replica, serves = self._changes.pop()
                self._change(replica, serves, change_s)
            elif next_s <= min(due_s, land_s):
                until_s = min(next_s + TICK_S, due_s, land_s)
                end = int(np.searchsorted(arrivals_s, until_s, side="right"))
                self._router.enqueue(np.arange(num_arrived, end))
                num_arrived = end
                self._dispatch(float(arrivals_s[end - 1]))
            elif land_s <= due_s:
                self._land(*heapq.heappop(self._on_the_way))
            else:
                now_s, replica = heapq.heappop(self._steps)
                self._end_step(replica, now_s)
        return self._result()

    def _dispatch(self, now_s: float) -> None:
        requests, replicas, expected = self._router.choose(now_s, self._serves)
        if not len(requests):
            return
        self._handed_s[requests] = now_s
        self._books.count_in_flight(self._router.in_flight, now_s)
        self._router.bind(requests, replicas, expected)
        for replica in np.unique(replicas).tolist():
            mine = requests[replicas == replica]
            if self._delay_s[replica] > 0.0:
                heapq.heappush(self._on_the_way, (now_s + float(self._delay_s[replica]), replica, mine))
            else:
                self._land(now_s, replica, mine)

    def _land(self, now_s: float, replica: int, requests: I64) -> None:
        if not self._serves[replica]:
            return  # it died meanwhile, and they were queued again
        engine = self._engines[replica]
        engine.submit(self._sequences[:, requests])
        if engine.due_s is None:
            self._begin_step(replica, now_s)

    def _begin_step(self, replica: int, now_s: float) -> None:
        self._books.begin_step(replica, now_s)
        heapq.heappush(self._steps, (self._engines[replica].begin_step(now_s), replica))

    def _change(self, replica: int, serves: bool, now_s: float) -> None:
        """It begins to serve, or dies: then what it had goes on elsewhere, before all that waits."""
        self._serves[replica] = serves
        if not serves:
            self._steps = [step for step in self._steps if step[1] != replica]
            heapq.heapify(self._steps)
            self._books.count_in_flight(self._router.in_flight, now_s)
            had = self._router.lose(replica)
            self._sequences[:, had] = begin_again(self._first_sequences[:, had], self._router.emitted[had])
        self._dispatch(now_s)

    def _end_step(self, replica: int, now_s: float) -> None:
        engine = self._engines[replica]
        num_held = engine.num_running + engine.num_waiting
        new, work, step_s = engine.end_step()
        self._books.end_step(replica, step_s, work, num_held)
        self._books.add_tokens(replica, len(new.ids))
        if engine.has_work:
            self._begin_step(replica, now_s)
        if new.finish.any():
            self._books.count_in_flight(self._router.in_flight, now_s)
        first, ended = self._router.take_in(replica, new, work, step_s)
        self._first_s[first] = now_s
        self._end_s[ended] = now_s
        self._num_ended += len(ended)
        self._dispatch(now_s)

    def _sample_until(self, now_s: float) -> None:
        while len(self._samples) * SAMPLE_S <= now_s < np.inf:
            self._samples.append(self._counters(len(self._samples) * SAMPLE_S))

    def _counters(self, time_s: float) -> ModelCounters:
        """As of a moment at which nothing happens."""
        return ModelCounters(
            time_s=time_s,
            num_queued=self._router.num_queued,
            num_continued_tokens=self._router.num_continued_tokens,
            num_continued_left=self._router.num_continued_left,
            replicas=self._books.counters(
                time_s, self._router.in_flight, [engine.num_waiting for engine in self._engines]
            ),
        )

    def _result(self) -> ReplayResult:
        num = len(self._engines)
        ended = self._end_s > 0.0
        replica, end_s = self._router.replica[ended], self._end_s[ended]
        served = np.maximum(np.bincount(replica, minlength=num), 1)
        last_end_s = np.zeros(num)
        np.maximum.at(last_end_s, replica, end_s)
        return ReplayResult(
            recording=self._recording,
            replica=self._router.replica,
            first_s=self._first_s,
            end_s=self._end_s,
            last_end_s=last_end_s,
            request_s=np.bincount(replica, weights=end_s - self._handed_s[ended], minlength=num) / served,
            num_preemptions=sum(engine.num_preemptions for engine in self._engines),
            samples=tuple(self._samples),
        )
