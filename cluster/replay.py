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

from ..deployments.dispatch import RECKON_EVERY_S
from ..deployments.length_prediction import LengthPrediction
from ..deployments.request_queue import sample_of
from ..deployments.router_settings import RouterSettings
from ..deployments.routing_policy import limit_in_flight
from ..deployments.speed import StepLine, observe_step, token_costs
from ..models.engine.simulated.faults import Fault
from ..models.engine.simulated.profile import StepTimeProfile
from ..models.engine.simulated.sequences import begin_again, known_sequences
from ..models.engine.simulated.virtual import VirtualEngine
from .ledger import ModelCounters
from .recording import Recording
from .replay_books import ReplayBooks
from .replay_policies import LOOKS_AHEAD, FleetView, Policy
from .replay_result import ReplayResult
from .speed_priors import full_batch, profile_points

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

TICK_S = 0.02
SAMPLE_S = 1.0
OVERCOMMIT = RouterSettings().overcommit
MAX_TOKENS = 1024


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
        count, num = len(recording), len(fleet)
        self._recording = recording
        self._policy = policy
        self._look_ahead = LOOKS_AHEAD.get(policy, 0)
        self._engines = [VirtualEngine(one.profile, one.scenario, one.slowness, one.faults) for one in fleet]
        pools = list(dict.fromkeys(one.profile.name for one in fleet))
        self._pool_of = np.array([pools.index(one.profile.name) for one in fleet], np.int64)
        by_pool = {
            one.profile.name: StepLine.from_baseline(profile_points(one.profile, one.scenario)) for one in fleet
        }
        self._lines = [by_pool[pool] for pool in pools]
        longest = min(one.profile.max_model_len for one in fleet)
        self._first_sequences = known_sequences(recording.prompt_lens, recording.answer_lens, longest)
        self._sequences = self._first_sequences.copy()
        batches = [one.profile.scenario(one.scenario).limits.max_num_seqs for one in fleet]
        limits = [limit_in_flight(batch, OVERCOMMIT) for batch in batches]
        self._limit = np.array(
            [one.max_in_flight or limit for one, limit in zip(fleet, limits, strict=True)], np.int64
        )
        self._full_batch = np.minimum([full_batch(one.profile, one.scenario) for one in fleet], self._limit)
        self._delay_s = np.array([one.delay_s for one in fleet])
        # What the router keeps of each replica.
        self._slowness = np.ones(num)
        self._in_flight = np.zeros(num, np.int64)
        self._prompt_tokens = np.zeros(num)
        self._output_tokens = np.zeros(num)
        self._answers = LengthPrediction()
        # What it keeps of each request.
        self._replica = np.full(count, -1, np.int64)
        self._emitted = np.zeros(count, np.int64)
        self._queue, self._head = np.zeros(0, np.int64), 0
        self._first_s, self._end_s, self._handed_s = np.zeros((3, count))
        self._members: list[I64] = [np.zeros(0, np.int64) for _ in fleet]
        self._on_the_way: list[tuple[float, int, I64]] = []
        self._steps: list[tuple[float, int]] = []
        self._num_ended = 0
        self._reckoned_s = -inf
        self._mean_queued = 0.0, 0.0
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
        self._num_continued_tokens, self._num_continued_left = 0, 0.0
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
                self._queue = np.concatenate((self._queue[self._head :], np.arange(num_arrived, end)))
                self._head = 0
                num_arrived = end
                self._dispatch(float(arrivals_s[end - 1]))
            elif land_s <= due_s:
                self._land(*heapq.heappop(self._on_the_way))
            else:
                now_s, replica = heapq.heappop(self._steps)
                self._end_step(replica, now_s)
        return self._result()

    def _dispatch(self, now_s: float) -> None:
        num_queued = len(self._queue) - self._head
        if not num_queued:
            return
        if self._look_ahead and now_s - self._reckoned_s >= RECKON_EVERY_S:
            self._reckon(now_s)
        room = np.where(self._serves, self._limit - self._in_flight, 0)
        total = int(np.maximum(room, 0).sum())
        if total == 0:
            return
        num_shown = total + self._look_ahead
        head = self._queue[self._head : self._head + num_shown]
        prompt_lens = self._recording.prompt_lens[head]
        expected = self._answers.expected(prompt_lens, np.full(len(prompt_lens), MAX_TOKENS))
        costs = token_costs([line.costs for line in self._lines], self._slowness, self._full_batch, self._pool_of)
        view = FleetView(
            room=room,
            in_flight=self._in_flight,
            prompt_tokens=self._prompt_tokens,
            output_tokens=self._output_tokens,
            costs=costs,
            delay_s=self._delay_s,
            num_queued=num_queued,
            mean_queued=self._mean_queued if num_queued > len(head) else (prompt_lens.mean(), expected.mean()),
            longest=self._answers.longest_of(float(self._in_flight.sum()), MAX_TOKENS),
        )
        picked, chosen = self._policy(view, prompt_lens, expected)
        requests = head[picked]
        if len(picked) < len(head):
            head[len(picked) :] = np.delete(head, picked)
        self._head += len(picked)
        self._replica[requests] = chosen
        self._handed_s[requests] = now_s
        num = len(room)
        self._books.count_in_flight(self._in_flight, now_s)
        self._in_flight += np.bincount(chosen, minlength=num)
        self._prompt_tokens += np.bincount(chosen, weights=prompt_lens[picked], minlength=num)
        self._output_tokens += np.bincount(chosen, weights=expected[picked], minlength=num)
        for replica in np.unique(chosen).tolist():
            mine = requests[chosen == replica]
            if self._delay_s[replica] > 0.0:
                heapq.heappush(self._on_the_way, (now_s + float(self._delay_s[replica]), replica, mine))
            else:
                self._land(now_s, replica, mine)

    def _land(self, now_s: float, replica: int, requests: I64) -> None:
        if not self._serves[replica]:
            return  # it died meanwhile, and they were queued again
        engine = self._engines[replica]
        engine.submit(self._sequences[:, requests])
        self._members[replica] = np.concatenate((self._members[replica], requests))
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
            had = np.flatnonzero((self._replica == replica) & (self._end_s == 0.0))
            self._sequences[:, had] = begin_again(self._first_sequences[:, had], self._emitted[had])
            prompt_lens, emitted = self._recording.prompt_lens[had], self._emitted[had]
            self._num_continued_tokens += int(prompt_lens.sum() + emitted.sum())
            limits = np.full(len(had), MAX_TOKENS)
            self._num_continued_left += float(self._answers.remaining(prompt_lens, emitted, limits).sum())
            self._books.count_in_flight(self._in_flight, now_s)
            self._in_flight[replica] = 0
            self._prompt_tokens[replica] = self._output_tokens[replica] = 0.0
            self._members[replica] = np.zeros(0, np.int64)
            self._queue, self._head = np.concatenate((had, self._queue[self._head :])), 0
        self._dispatch(now_s)

    def _end_step(self, replica: int, now_s: float) -> None:
        engine = self._engines[replica]
        num_held = engine.num_running + engine.num_waiting
        new, work, step_s = engine.end_step()
        self._books.end_step(replica, step_s, work, num_held)
        self._books.add_tokens(replica, len(new.ids))
        if engine.has_work:
            self._begin_step(replica, now_s)
        line = self._lines[self._pool_of[replica]]
        line.observe(work.num_prefill_tokens, work.num_decode_tokens, step_s)
        self._slowness[replica] = observe_step(
            float(self._slowness[replica]), line.costs, work.num_prefill_tokens, work.num_decode_tokens, step_s
        )
        ids = new.ids.astype(np.int64)
        self._emitted[ids] += 1
        self._output_tokens[replica] -= len(ids)
        if work.num_prefill_tokens:
            first = ids[self._emitted[ids] == 1]
            self._first_s[first] = now_s
            self._prompt_tokens[replica] -= float(self._recording.prompt_lens[first].sum())
        if new.finish.any():
            ended = ids[new.finish != 0]
            self._end_s[ended] = now_s
            self._num_ended += len(ended)
            self._books.count_in_flight(self._in_flight, now_s)
            self._in_flight[replica] -= len(ended)
            self._answers.observe(self._recording.prompt_lens[ended], self._emitted[ended])
        self._dispatch(now_s)

    def _sample_until(self, now_s: float) -> None:
        while len(self._samples) * SAMPLE_S <= now_s < np.inf:
            self._samples.append(self._counters(len(self._samples) * SAMPLE_S))

    def _counters(self, time_s: float) -> ModelCounters:
        """As of a moment at which nothing happens."""
        return ModelCounters(
            time_s=time_s,
            num_queued=len(self._queue) - self._head,
            num_continued_tokens=self._num_continued_tokens,
            num_continued_left=self._num_continued_left,
            replicas=self._books.counters(
                time_s, self._in_flight, [engine.num_waiting for engine in self._engines]
            ),
        )

    def _reckon(self, now_s: float) -> None:
        """As a router does of a finite batch: what is outstanding and waits, by how far all answers have come."""
        self._reckoned_s = now_s
        for replica, members in enumerate(self._members):
            self._members[replica] = members[self._end_s[members] == 0.0]
        running = np.concatenate(self._members)
        self._answers.watch(self._recording.prompt_lens[running], self._emitted[running])
        for replica, members in enumerate(self._members):
            prompt_lens = self._recording.prompt_lens[members]
            limits = np.full(len(members), MAX_TOKENS)
            self._output_tokens[replica] = self._answers.remaining(
                prompt_lens, self._emitted[members], limits
            ).sum()
        waiting = self._recording.prompt_lens[sample_of(self._queue[self._head :])]
        expected = self._answers.expected(waiting, np.full(len(waiting), MAX_TOKENS))
        self._mean_queued = float(waiting.mean()), float(expected.mean())

    def _result(self) -> ReplayResult:
        num = len(self._engines)
        ended = self._end_s > 0.0
        replica, end_s = self._replica[ended], self._end_s[ended]
        served = np.maximum(np.bincount(replica, minlength=num), 1)
        last_end_s = np.zeros(num)
        np.maximum.at(last_end_s, replica, end_s)
        return ReplayResult(
            recording=self._recording,
            replica=self._replica,
            first_s=self._first_s,
            end_s=self._end_s,
            last_end_s=last_end_s,
            request_s=np.bincount(replica, weights=end_s - self._handed_s[ended], minlength=num) / served,
            num_preemptions=sum(engine.num_preemptions for engine in self._engines),
            samples=tuple(self._samples),
        )
