"""Schedules of requests."""

import pytest
from nfold.cluster.arrivals import ClosedLoop, Offline, Poisson


def test_a_closed_loop_refills_what_has_ended() -> None:
    loop = ClosedLoop(8)
    assert loop.num_due(0.0, 0, 0) == 8
    assert loop.num_due(1.0, 8, 8) == 0
    assert loop.num_due(1.0, 8, 5) == 3
    assert not loop.ramped_up(7)
    assert loop.ramped_up(8)


def test_offline_is_all_at_once() -> None:
    offline = Offline(100)
    assert offline.num_due(0.0, 0, 0) == 100
    assert offline.num_due(9.0, 100, 3) == 0
    assert not offline.steady


def test_poisson_is_the_same_for_a_seed_and_has_its_rate() -> None:
    counts = [Poisson(50.0, seed=3).num_due(100.0, 0, 0) for _ in range(2)]
    assert counts[0] == counts[1]
    assert counts[0] == pytest.approx(5000, rel=0.1)
    assert Poisson(50.0, seed=4).num_due(100.0, 0, 0) != counts[0]


def test_poisson_gaps_add_up_however_often_it_is_asked() -> None:
    often, once = Poisson(20.0, seed=1), Poisson(20.0, seed=1)
    submitted = 0
    for tick in range(1, 101):
        submitted += often.num_due(tick / 10, submitted, 0)
    assert submitted == once.num_due(10.0, 0, 0)
