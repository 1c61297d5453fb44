from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nfold.deployments.routing_policy import (
    MAX_RETRY_AFTER_S,
    Candidates,
    assign,
    limit_in_flight,
    longest_first,
    retry_after_s,
    tail_room,
    weigh,
    while_it_runs,
)
from nfold.deployments.speed import TokenCosts

FREE = 1000


def candidates_of(*replicas: tuple[float, ...]) -> Candidates:
    """Each is (room, outstanding tokens, tokens/s) and may have a delay."""
    rows = np.array([(*replica, 0.0)[:4] for replica in replicas], np.float64).reshape(-1, 4)
    return Candidates(rows[:, 0].astype(np.int64), rows[:, 1], rows[:, 2], rows[:, 3])


ASSIGNMENTS = {
    "no replica, no assignment": ([10.0], [], []),
    "an empty queue": ([], [(FREE, 0, 1)], []),
    "the only one": ([10.0, 10.0], [(FREE, 500, 1)], [0, 0]),
    "equal replicas share": ([10.0] * 4, [(FREE, 0, 1), (FREE, 0, 1)], [0, 1, 0, 1]),
    "the emptier one first": ([10.0], [(FREE, 100, 1), (FREE, 50, 1)], [1]),
    "until it has caught up": ([20.0] * 4, [(FREE, 60, 1), (FREE, 0, 1)], [1, 1, 1, 0]),
    "the faster one when both are idle": ([10.0], [(FREE, 0, 1), (FREE, 0, 2)], [1]),
    "in proportion to speed": ([30.0] * 3, [(FREE, 0, 1), (FREE, 0, 2)], [1, 0, 1]),
    "a fast one with a long queue loses": ([10.0], [(FREE, 0, 1), (FREE, 100, 2)], [0]),
    "an idle but very slow one loses": ([100.0], [(FREE, 0, 1), (FREE, 500, 10)], [1]),
    "nothing to a full one": ([10.0, 10.0], [(0, 0, 1), (FREE, 900, 1)], [1, 1]),
    "an overfull one is full": ([10.0], [(-3, 0, 1)], []),
    "as many as there is room": ([10.0] * 5, [(1, 0, 1), (2, 0, 1)], [0, 1, 1]),
    "one far away gets what it finishes sooner all the same": (
        [10.0] * 4,
        [(FREE, 0, 1, 15), (FREE, 0, 1)],
        [1, 1, 0, 1],
    ),
    "long and short": ([100.0, 10.0, 10.0, 10.0], [(FREE, 0, 1), (FREE, 0, 1)], [0, 1, 1, 1]),
}


@pytest.mark.parametrize(("costs", "replicas", "chosen"), ASSIGNMENTS.values(), ids=ASSIGNMENTS.keys())
def test_assign(costs: list[float], replicas: list[tuple[float, ...]], chosen: list[int]) -> None:
    assert assign(np.array(costs, np.float64), candidates_of(*replicas)).tolist() == chosen


REPLICAS = st.tuples(
    st.integers(-2, 20), st.integers(0, 3000), st.sampled_from([1.0, 2.0, 4.0, 8.0]), st.integers(0, 50)
)


@given(
    costs=st.lists(st.integers(1, 2000), max_size=60),
    replicas=st.lists(REPLICAS, max_size=9),
)
def test_assign_is_the_plain_greedy_rule(costs: list[int], replicas: list[tuple[float, ...]]) -> None:
    """Against a reference with one request and one replica at a time."""
    room = [int(replica[0]) for replica in replicas]
    outstanding = [replica[1] for replica in replicas]
    expected: list[int] = []
    for cost in costs:
        finish_s = {
            i: delay_s + (outstanding[i] + cost) / speed
            for i, (_, _, speed, delay_s) in enumerate(replicas)
            if room[i] > 0
        }
        if not finish_s:
            break
        best = min(finish_s, key=lambda i: (finish_s[i], i))
        expected.append(best)
        room[best] -= 1
        outstanding[best] += cost

    assert assign(np.array(costs, np.float64), candidates_of(*replicas)).tolist() == expected


def test_a_pool_of_two_speeds_ends_together() -> None:
    """200 equal requests over speeds 1 : 3 finish at the same time, within one request."""
    speeds = [100.0, 300.0]
    chosen = assign(np.full(200, 50.0), candidates_of(*((FREE, 0.0, speed) for speed in speeds))).tolist()

    finish_s = [chosen.count(i) * 50.0 / speed for i, speed in enumerate(speeds)]
    assert abs(finish_s[0] - finish_s[1]) <= 50.0 / min(speeds)


@pytest.mark.parametrize(("max_num_seqs", "overcommit", "limit"), [(256, 0.125, 288), (1, 0.125, 2), (4, 0.0, 5)])
def test_limit_in_flight(max_num_seqs: int, overcommit: float, limit: int) -> None:
    assert limit_in_flight(max_num_seqs, overcommit) == limit


@pytest.mark.parametrize(
    ("queued_tokens", "speeds", "expected_s"),
    [
        (3000.0, [100.0, 200.0], 10.0),
        (3000.0, [None, 100.0], 30.0),
        (3000.0, [None], 1.0),
        (1e9, [1.0], MAX_RETRY_AFTER_S),
        (0.0, [100.0], 0.1),
    ],
)
def test_retry_after(queued_tokens: float, speeds: list[float | None], expected_s: float) -> None:
    assert retry_after_s(queued_tokens, speeds) == expected_s


MIXED = TokenCosts(np.array([0.02, 0.01]), np.array([4e-4, 1e-4]), np.array([8e-4, 4e-4]), np.zeros(2))


def test_weigh_gives_the_seconds_of_prompt_and_output_tokens() -> None:
    """Of what is outstanding exactly, and of a mean request exactly: 100 prompt and 50 output tokens."""
    candidates, weight = weigh(
        np.array([5, 5]),
        np.array([1000.0, 0.0]),
        np.array([0.0, 3000.0]),
        MIXED,
        np.array([0.0, 0.25]),
        mean_prompt=100.0,
        mean_output=50.0,
        steps=50.0,
    )

    assert candidates.outstanding_tokens / candidates.tokens_per_s == pytest.approx([0.4, 1.2])
    assert candidates.delay_s == pytest.approx([50 * 0.02, 0.25 + 50 * 0.01])
    assert weight == pytest.approx((0.5 + 0.25) / 2)
    request_s = (weight * 100 + 50) / candidates.tokens_per_s
    assert request_s == pytest.approx([100 * 4e-4 + 50 * 8e-4, 100 * 1e-4 + 50 * 4e-4])


def test_whoever_joins_shares_the_engine_with_all_that_run_there() -> None:
    """Steady arrivals at one engine: what is expected of a request is what it then takes.

    By Little's law n = rate x time in flight; in a second, steps have what prompts leave of it.
    """
    prompt_s, output_s, alone_s, mean_prompt, mean_output, rate = 3e-5, 5e-5, 0.01, 300.0, 200.0, 30.0
    prompt_share = rate * mean_prompt * prompt_s
    true_s = mean_output * alone_s / (1.0 - prompt_share - rate * mean_output * output_s)
    prompts, outputs = while_it_runs(np.array([rate * true_s]), np.zeros(1), mean_prompt, mean_output)

    expected_s = mean_output * alone_s + prompts[0] * prompt_s + outputs[0] * output_s
    assert expected_s == pytest.approx(true_s)


def test_prompts_that_wait_are_computed_first() -> None:
    prompts, outputs = while_it_runs(np.array([2, 2]), np.array([0.0, 500.0]), 100.0, 50.0)

    assert prompts.tolist() == [200.0, 700.0]
    assert outputs.tolist() == [100.0, 100.0]


def test_little_work_goes_where_a_request_ends_first_however_much_a_slow_one_could_take() -> None:
    """A fast replica with three requests ends a fourth sooner than an idle slow one: its steps are shorter."""
    costs = TokenCosts(np.array([0.03, 0.01]), np.array([1e-4, 1e-5]), np.array([2e-4, 5e-5]), np.zeros(2))
    candidates, weight = weigh(
        np.array([9, 9]),
        np.zeros(2),
        np.array([0.0, 3 * 280.0]),
        costs,
        np.zeros(2),
        mean_prompt=280.0,
        mean_output=280.0,
        steps=280.0,
    )

    assert assign(np.array([weight * 280 + 280]), candidates).tolist() == [1]


TAILS = {
    "a long queue limits nothing": (1000, [(9, 0, 1), (9, 50, 2)], [9, 9]),
    "the last ones are shared": (4, [(9, 0, 1), (9, 0, 1)], [2, 2]),
    "by speed": (6, [(9, 0, 1), (9, 0, 2)], [2, 4]),
    "one that ends too late anyway gets none": (3, [(9, 90, 1), (9, 0, 1)], [0, 3]),
    "though others have no room yet": (3, [(9, 90, 1), (0, 0, 1)], [0, 0]),
    "a far one less": (4, [(9, 0, 1, 20), (9, 0, 1)], [1, 3]),
    "at least one gets the last": (1, [(9, 5, 1), (9, 5, 1), (9, 5, 1)], [1, 1, 1]),
    "none left": (0, [(9, 5, 1)], [9]),
    "nobody there": (5, [], []),
}


@pytest.mark.parametrize(("num_queued", "replicas", "room"), TAILS.values(), ids=TAILS.keys())
def test_tail_room(num_queued: int, replicas: list[tuple[float, ...]], room: list[int]) -> None:
    assert tail_room(10.0, num_queued, candidates_of(*replicas)).tolist() == room


@given(
    num_queued=st.integers(1, 500),
    replicas=st.lists(
        st.tuples(st.just(10_000), st.integers(0, 3000), st.sampled_from([1.0, 2.0, 5.0]), st.integers(0, 50)),
        min_size=1,
        max_size=9,
    ),
)
def test_the_tail_ends_within_one_request(num_queued: int, replicas: list[tuple[float, ...]]) -> None:
    """With tail_room every replica that gets work ends within one request of the level, and all of it has room."""
    candidates = candidates_of(*replicas)
    room = tail_room(10.0, num_queued, candidates)
    assert room.sum() >= num_queued

    chosen = assign(np.full(num_queued, 10.0), replace(candidates, room=room))
    work = np.bincount(chosen, minlength=len(replicas)) * 10.0
    end_s = candidates.delay_s + (candidates.outstanding_tokens + work) / candidates.tokens_per_s
    request_s = 10.0 / candidates.tokens_per_s
    slowest = int(np.where(work > 0, end_s, 0.0).argmax())
    assert (end_s >= end_s[slowest] - np.maximum(request_s, request_s[slowest]) - 1e-6)[work > 0].all()


def test_long_ones_first() -> None:
    assert longest_first(np.array([1.0, 9.0, 5.0, 9.0])).tolist() == [1, 3, 2, 0]
