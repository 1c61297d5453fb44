"""Which replica gets which request: pure functions of what was measured.

A request goes where it is expected to finish first:

    expected finish there  =  the way in  +  its own steps alone  +  (tokens computed there + its own) / speed

Of a batch that is there as a whole, what is outstanding there is computed before; else, what runs beside it
(`while_it_runs`). Tokens count by what they cost at that replica (`speed`), output tokens by what is expected of
them (`length_prediction`). The way in ends when the replica's engine takes in requests next (`clumping`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..models.compiled import compiled, f64, f64s, i64s
from .speed import TokenCosts

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

MIN_RETRY_AFTER_S = 0.1
MAX_RETRY_AFTER_S = 60.0


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
        delay_s: until each takes in a request, on top of what is computed; 0 where it is not known.
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
    wished = np.full(len(costs), -1) if preferred is None else preferred
    token_s = 1.0 / candidates.tokens_per_s
    free_s = candidates.delay_s + candidates.outstanding_tokens * token_s
    return _assign(costs, wished, guard_s, np.maximum(candidates.room, 0), free_s, token_s)


@compiled(f64s, i64s, f64, i64s, f64s, f64s)
def _assign(costs: F64, wished: I64, guard_s: float, room: I64, free_s: F64, token_s: F64) -> I64:
    """Writes to `room`, 0 or more, and to `free_s`: when a candidate will have done what it has."""
    chosen = np.empty(min(len(costs), room.sum()), np.int64)
    for i in range(len(chosen)):
        best, best_s = -1, np.inf
        for k in range(len(room)):
            finish_s = free_s[k] + costs[i] * token_s[k]
            if room[k] > 0 and (best < 0 or finish_s < best_s):
                best, best_s = k, finish_s
        wish = wished[i]
        if wish >= 0 and room[wish] > 0:
            wish_s = free_s[wish] + costs[i] * token_s[wish]
            if wish_s <= best_s + guard_s:
                best, best_s = wish, wish_s
        chosen[i] = best
        room[best] -= 1
        free_s[best] = best_s
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
        delay_s: [K] until each takes in a request.
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


def while_it_runs(
    num_in_flight: I64, prompt_tokens: F64, mean_prompt: float, mean_output: float
) -> tuple[F64, F64]:
    """[K] prompt and output tokens that each computes before a mean request that joins it now ends there.

    An engine computes all its requests side by side, and others follow those that end, so whoever joins n requests
    shares it with n until the end, whatever is left of each:

        step        =  alone + an output token of each of n + the prompts that come meanwhile
        ends after  =  its steps alone + n requests like it, prompts and all            (by Little's law)

    On top come the `prompt_tokens` that wait there already, as they are computed first.
    """
    whole: F64 = num_in_flight.astype(np.float64)
    return prompt_tokens + whole * mean_prompt, whole * mean_output


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
