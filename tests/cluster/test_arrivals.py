"""Schedules of requests."""

import math

import pytest
from nfold.cluster.arrivals import ClosedLoop, Offline, Poisson


def test_a_closed_loop_refills_what_has_ended() -> None:
    loop = ClosedLoop(8)
    assert loop.take_due(0.0, 0, 0) == [0.0] * 8
    assert loop.take_due(1.0, 8, 8) == []
    assert loop.take_due(1.5, 8, 5) == [1.5] * 3
    assert math.isinf(loop.next_due_s())
    assert not loop.ramped_up(7)
    assert loop.ramped_up(8)


def test_offline_is_all_at_once() -> None:
    offline = Offline(100)
    assert len(offline.take_due(0.0, 0, 0)) == 100
    assert offline.take_due(9.0, 100, 3) == []
    assert not offline.steady


def test_poisson_is_the_same_for_a_seed_and_has_its_rate() -> None:
    one, other = (Poisson(50.0, seed=3).take_due(100.0, 0, 0) for _ in range(2))
    assert one == other
    assert len(one) == pytest.approx(5000, rel=0.1)
    assert Poisson(50.0, seed=4).take_due(100.0, 0, 0) != one


def test_poisson_requests_are_due_at_their_own_time_however_often_it_is_asked() -> None:
    often, once = Poisson(20.0, seed=1), Poisson(20.0, seed=1)
    due: list[float] = []
    for tick in range(1, 101):
        assert often.next_due_s() > (tick - 1) / 10
        due += often.take_due(tick / 10, len(due), 0)
    assert due == once.take_due(10.0, 0, 0)
    assert due == sorted(due)
