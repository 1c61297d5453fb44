import math
import random

import pytest
from nfold.deployments.round_trip import RoundTrip


def after(*measurements: tuple[float, float]) -> float:
    round_trip = RoundTrip()
    for measured_s, away_s in measurements:
        round_trip = round_trip.observe(measured_s, away_s)
    return round_trip.mean_s


def test_nothing_measured_is_no_delay() -> None:
    assert after() == 0.0


def test_an_idle_replica_tells_exactly() -> None:
    assert after((0.06, 0.0)) == pytest.approx(0.06)


def test_steps_average_out() -> None:
    """A replica with steps of 50 ms, 60 ms there and back: the Ping comes at any moment of a step."""
    chance = random.Random(0)
    assert after(*((0.06 + chance.uniform(0, 0.05), 0.05) for _ in range(400))) == pytest.approx(0.06, abs=0.006)


def test_one_exact_measurement_outweighs_many_vague_ones() -> None:
    assert after(*[(0.3, 0.5)] * 50, (0.06, 0.0)) == pytest.approx(0.06, rel=0.01)


def test_it_follows_a_change() -> None:
    assert after(*[(0.06, 0.0)] * 100, *[(0.01, 0.0)] * 100) == pytest.approx(0.01, abs=0.003)


@pytest.mark.parametrize("wrong", [(-1.0, 0.0), (math.nan, 0.0), (1.0, math.nan), (1.0, -1.0), (1e9, 0.0)])
def test_what_cannot_be_is_ignored(wrong: tuple[float, float]) -> None:
    assert after((0.06, 0.0), wrong) == pytest.approx(0.06)
