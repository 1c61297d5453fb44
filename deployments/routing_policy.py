"""Which replica gets which request: pure functions of what was measured.

A request goes where it is expected to finish first:

    expected finish at a replica = (tokens outstanding there + its own tokens) / the replica's speed

Speed means tokens per second at a full batch. It is not the rate seen last: a replica with two requests runs at a
small fraction of its speed, and would be starved for looking slow. So the pool learns its step-time curve from all
its replicas, `step_s = fixed_s + per_token_s * tokens`, and each replica how much slower than the curve it is.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .speed import TokenCosts

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

# Steps of the whole pool and of one replica after which an observation counts half.
CURVE_HALF_LIFE_STEPS = 200.0
SLOWNESS_HALF_LIFE_STEPS = 20.0
# One odd step (a compilation, a page fault) may not turn the estimate over.
SLOWNESS_CLAMP = 4.0
# Until answers of a model were seen.
PRIOR_OUTPUT_TOKENS = 256.0
OUTPUT_HALF_LIFE_REQUESTS = 50.0
MIN_RETRY_AFTER_S = 0.1
MAX_RETRY_AFTER_S = 60.0


@dataclass(frozen=True, slots=True)
class StepCurve:
    """A pool's step time as a straight line over the tokens of a step, from decayed sums of observations."""

    weight: float = 0.0
    sum_x: float = 0.0
    sum_y: float = 0.0
    sum_xx: float = 0.0
    sum_xy: float = 0.0

    def observe(self, num_tokens: int, step_s: float) -> "StepCurve":
        """With one more step. Steps that computed nothing teach nothing."""
        if num_tokens <= 0 or step_s <= 0.0:
            return self
        keep = 0.5 ** (1.0 / CURVE_HALF_LIFE_STEPS)
        return StepCurve(
            self.weight * keep + 1.0,
            self.sum_x * keep + num_tokens,
            self.sum_y * keep + step_s,
            self.sum_xx * keep + num_tokens * num_tokens,
            self.sum_xy * keep + num_tokens * step_s,
        )

    def step_s(self, num_tokens: float) -> float | None:
        """Expected seconds of a step of so many tokens, None before any was seen.

        The slope lies between 0 (time does not depend on the batch) and the line through the origin (time is
        proportional to it).
        """
        if self.weight == 0.0:
            return None
        mean_x, mean_y = self.sum_x / self.weight, self.sum_y / self.weight
        variance = self.sum_xx / self.weight - mean_x * mean_x
        covariance = self.sum_xy / self.weight - mean_x * mean_y
        slope = covariance / variance if variance > 1e-3 * mean_x * mean_x else 0.0
        slope = min(max(slope, 0.0), mean_y / mean_x)
        return mean_y + slope * (num_tokens - mean_x)


def observe_slowness(slowness: float, curve: StepCurve, num_tokens: int, step_s: float) -> float:
    """A replica's factor on its pool's curve after one more step: 1 is as the pool, 2 takes twice as long."""
    expected_s = curve.step_s(num_tokens)
    if num_tokens <= 0 or step_s <= 0.0 or not expected_s:
        return slowness
    ratio = min(max(step_s / expected_s, 1.0 / SLOWNESS_CLAMP), SLOWNESS_CLAMP)
    return slowness + (1.0 - 0.5 ** (1.0 / SLOWNESS_HALF_LIFE_STEPS)) * (ratio - slowness)


def tokens_per_s(curve: StepCurve, slowness: float, max_num_seqs: int) -> float | None:
    """Speed at a full batch; None before the pool was measured."""
    step_s = curve.step_s(max_num_seqs)
    return max_num_seqs / (step_s * slowness) if step_s else None


def known_speeds(speeds: Sequence[float | None]) -> list[float]:
    """Pools not measured yet count as the mean of those that are; when none is, all are equal."""
    known = [speed for speed in speeds if speed is not None]
    prior = sum(known) / len(known) if known else 1.0
    return [prior if speed is None else speed for speed in speeds]


@dataclass(frozen=True, slots=True)
class OutputLength:
    """What a model's answers have been like: a decayed mean of their tokens."""

    weight: float = 0.0
    total: float = 0.0

    def observe(self, num_tokens: int) -> "OutputLength":
        keep = 0.5 ** (1.0 / OUTPUT_HALF_LIFE_REQUESTS)
        return OutputLength(self.weight * keep + 1.0, self.total * keep + num_tokens)

    def expected(self, max_tokens: int, ignore_eos: bool = False) -> float:
        """Tokens expected of one answer, at most its `max_tokens`; all of them when nothing ends it earlier."""
        if ignore_eos:
            return max_tokens
        return min(max_tokens, self.total / self.weight if self.weight else PRIOR_OUTPUT_TOKENS)


def limit_in_flight(max_num_seqs: int, overcommit: float) -> int:
    """Requests that a replica may hold: a full batch and a few successors; the rest waits in the router, where it
    still can go anywhere."""
    return max_num_seqs + max(1, math.ceil(max_num_seqs * overcommit))


@dataclass(frozen=True, slots=True)
class Candidates:
    """The replicas that may take requests; all arrays [K].

    Attributes:
        room: requests that each may take now; 0 or less is none.
        outstanding_tokens: prompt and expected output tokens that each still has to compute.
        tokens_per_s: their speeds, above 0.
        delay_s: one way to each, on top of what is computed; 0 where it is not known.
    """

    room: I64
    outstanding_tokens: F64
    tokens_per_s: F64
    delay_s: F64


def assign(costs: F64, candidates: Candidates, preferred: I64 | None = None, guard_s: float = 0.0) -> I64:
    """Spread a queue over candidates, first come first served, each to where it is expected to finish first.

    Args:
        costs: [N] prompt and expected output tokens per request, in queue order.
        preferred: [N] the candidate that each would rather have, -1 for none.
        guard_s: by how much later than elsewhere it may finish there and still get it.

    Returns:
        [M] the candidate of each of the first M requests: of as many from the queue's head as there is room.
    """
    count = min(len(costs), int(np.maximum(candidates.room, 0).sum()))
    chosen = np.empty(count, np.int64)
    seconds_per_token = 1.0 / candidates.tokens_per_s
    free_s = candidates.delay_s + candidates.outstanding_tokens * seconds_per_token
    free_s[candidates.room <= 0] = np.inf
    finish_s = np.empty_like(free_s)
    room: list[int] = candidates.room.tolist()
    wished: list[int] | None = None if preferred is None else preferred.tolist()
    for i, cost in enumerate(costs[:count].tolist()):
        np.multiply(seconds_per_token, cost, out=finish_s)
        np.add(finish_s, free_s, out=finish_s)
        best = int(finish_s.argmin())
        if wished is not None and (wish := wished[i]) >= 0 and finish_s[wish] <= finish_s[best] + guard_s:
            best = wish
        chosen[i] = best
        room[best] -= 1
        free_s[best] = finish_s[best] if room[best] > 0 else np.inf
    return chosen


def weigh(
    room: I64,
    prompt_tokens: F64,
    output_tokens: F64,
    costs: TokenCosts,
    delay_s: F64,
    *,
    mean_prompt: float,
    mean_output: float,
    steps: F64 | float,
) -> tuple[Candidates, float]:
    """Candidates out of what each has to compute, where prompt and output tokens cost differently.

    Tokens become output tokens: a prompt token counts for `weight` of them, the same for all candidates; so is a
    request's cost to be reckoned, `weight * its prompt tokens + its expected output tokens`. For a mean request
    the seconds come out exactly as `costs` says.

    Args:
        prompt_tokens, output_tokens: [K] not yet computed; output tokens as expected.
        delay_s: [K] one way to each.
        mean_prompt, mean_output: tokens of the requests to be assigned, means, outputs as expected; 1 and more.
        steps: that a request takes at least, such as `mean_output`: on top of the replica's work, each costs
            `costs.step_s`, however little else there is.

    Returns: the candidates and `weight`.
    """
    weight = float(np.mean(costs.prompt_token_s / costs.output_token_s))
    request_s = costs.prompt_token_s * mean_prompt + costs.output_token_s * mean_output
    seconds_per_token = request_s / (weight * mean_prompt + mean_output)
    backlog_s = costs.prompt_token_s * prompt_tokens + costs.output_token_s * np.maximum(output_tokens, 0.0)
    candidates = Candidates(
        room=room,
        outstanding_tokens=backlog_s / seconds_per_token,
        tokens_per_s=1.0 / seconds_per_token,
        delay_s=delay_s + costs.step_s * steps,
    )
    return candidates, weight


def tail_room(mean_cost: float, num_queued: int, candidates: Candidates) -> I64:
    """[K] room with which the last of a finite batch ends everywhere at the same time, to within one request.

        replica 0   ███████████████|            |      full: it gets no more, it would end too late
        replica 1   ██████████|+++++++++++++++++|      + its part of the queue
        replica 2   █████|++++++++++++++++++++++|
                                              level

    The whole queue, `num_queued` requests of `mean_cost`, is poured over the candidates, full ones included: they
    will have room in time. While it reaches far above all of them nothing is limited.
    """
    if num_queued == 0 or len(candidates.room) == 0:
        return candidates.room
    free_s = candidates.delay_s + candidates.outstanding_tokens / candidates.tokens_per_s
    order = np.argsort(free_s)
    speed = np.cumsum(candidates.tokens_per_s[order])
    level_s = (mean_cost * num_queued + np.cumsum((candidates.tokens_per_s * free_s)[order])) / speed
    # The level stands where the next candidate is not reached any more.
    num_wet = int(np.argmax(np.append(free_s[order][1:] >= level_s[:-1], True)))
    part = np.maximum(level_s[num_wet] - free_s, 0.0) * candidates.tokens_per_s
    return np.minimum(candidates.room, np.ceil(part / mean_cost - 1e-9).astype(np.int64))


def longest_first(expected_tokens: F64) -> I64:
    """[N] the order in which a finite batch ends earliest: what takes long may not begin last."""
    return np.argsort(-expected_tokens, kind="stable")


def retry_after_s(queued_tokens: float, speeds: Sequence[float | None]) -> float:
    """When a refused client should come back: after the time that the queue before it takes."""
    total = sum(speed for speed in speeds if speed is not None)
    if total <= 0.0:
        return 1.0
    return min(max(queued_tokens / total, MIN_RETRY_AFTER_S), MAX_RETRY_AFTER_S)
