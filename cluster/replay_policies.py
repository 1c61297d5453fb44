"""Routing policies to compare in a replay: ours, and what others do."""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..deployments.dispatch import LOOK_AHEAD
from ..deployments.routing_policy import assign, longest_first, tail_room, weigh, while_it_runs
from ..deployments.speed import TokenCosts

F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class FleetView:
    """What a router knows of its replicas when it decides; arrays [K].

    Attributes:
        room: requests that each may take.
        in_flight: requests that each has.
        prompt_tokens, output_tokens: outstanding at each, outputs as expected.
        num_queued: requests that wait, also those that a policy is not shown.
        mean_queued: their prompt and expected output tokens, means.
        longest: tokens of the longest among the answers that run.
    """

    room: I64
    in_flight: I64
    prompt_tokens: F64
    output_tokens: F64
    costs: TokenCosts
    delay_s: F64
    num_queued: int
    mean_queued: tuple[float, float]
    longest: float


# (view, prompt lengths [N], expected answers [N]), of the queue's head -> which of them [M], their replicas [M].
Policy = Callable[[FleetView, I32, F64], tuple[I64, I64]]


def earliest_finish(view: FleetView, prompt_lens: I32, expected: F64) -> tuple[I64, I64]:
    """Ours for requests that come over time."""
    total = int(np.maximum(view.room, 0).sum())
    prompt_lens, expected = prompt_lens[:total], expected[:total]
    mean_prompt, mean_output = float(prompt_lens.mean()), float(expected.mean())
    candidates, weight = weigh(
        view.room,
        *while_it_runs(view.in_flight, view.prompt_tokens, mean_prompt, mean_output),
        view.costs,
        view.delay_s,
        mean_prompt=mean_prompt,
        mean_output=mean_output,
        steps=mean_output,
    )
    chosen = assign(weight * prompt_lens + expected, candidates)
    return np.arange(len(chosen)), chosen


def finite_batch(view: FleetView, prompt_lens: I32, expected: F64) -> tuple[I64, I64]:
    """Ours for a batch that is there as a whole: long ones first, and all replicas end together."""
    mean_prompt, mean_output = view.mean_queued
    candidates, weight = weigh(
        view.room,
        view.prompt_tokens,
        view.output_tokens,
        view.costs.beside_steps(),
        view.delay_s,
        mean_prompt=mean_prompt,
        mean_output=mean_output,
        steps=max(view.longest, mean_output),
    )
    room = tail_room(weight * mean_prompt + mean_output, view.num_queued, candidates)
    order = longest_first(expected)
    costs = weight * prompt_lens[order] + expected[order]
    chosen = assign(costs, replace(candidates, room=room))
    return order[: len(chosen)], chosen


# What these choose from, beyond as many requests as there is room for.
LOOKS_AHEAD: dict[Policy, int] = {finite_batch: LOOK_AHEAD}


def least_outstanding(view: FleetView, prompt_lens: I32, expected: F64) -> tuple[I64, I64]:
    """To the replica with the fewest requests, as most load balancers do."""
    heap = [(num, replica) for replica, num in enumerate(view.in_flight.tolist()) if view.room[replica] > 0]
    heapq.heapify(heap)
    room: list[int] = view.room.tolist()
    chosen: list[int] = []
    while heap and len(chosen) < len(prompt_lens):
        num, replica = heap[0]
        chosen.append(replica)
        room[replica] -= 1
        if room[replica] > 0:
            heapq.heapreplace(heap, (num + 1, replica))
        else:
            heapq.heappop(heap)
    return np.arange(len(chosen)), np.array(chosen, np.int64)


@dataclass(frozen=True, slots=True)
class WeighedByHand:
    """To the replica with the fewest requests for its weight."""

    weights: tuple[float, ...]

    def __call__(self, view: FleetView, prompt_lens: I32, expected: F64) -> tuple[I64, I64]:
        room = np.maximum(view.room, 0)
        after = view.in_flight + 1.0
        chosen = np.empty(min(len(prompt_lens), int(room.sum())), np.int64)
        for i in range(len(chosen)):
            best = chosen[i] = int(np.argmin(np.where(room > 0, after / self.weights, np.inf)))
            room[best] -= 1
            after[best] += 1.0
        return np.arange(len(chosen)), chosen


class RoundRobin:
    """To each in turn that has room."""

    def __init__(self) -> None:
        self._next = 0

    def __call__(self, view: FleetView, prompt_lens: I32, expected: F64) -> tuple[I64, I64]:
        room: list[int] = np.maximum(view.room, 0).tolist()
        count = min(len(prompt_lens), sum(room))
        chosen: list[int] = []
        while len(chosen) < count:
            replica = self._next % len(room)
            self._next += 1
            if room[replica] > 0:
                room[replica] -= 1
                chosen.append(replica)
        return np.arange(count), np.array(chosen, np.int64)


class Random:
    """To any that has room, with equal chances per replica."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def __call__(self, view: FleetView, prompt_lens: I32, expected: F64) -> tuple[I64, I64]:
        room = np.maximum(view.room, 0).copy()
        count = min(len(prompt_lens), int(room.sum()))
        chosen: list[int] = []
        while len(chosen) < count:
            replica = int(self._random.choice(np.flatnonzero(room > 0)))
            room[replica] -= 1
            chosen.append(replica)
        return np.arange(count), np.array(chosen, np.int64)
