"""When messages would have come, whatever held them up."""

import pytest
from nfold.deployments.arrival import Arrivals


def test_what_a_message_waited_is_left_out() -> None:
    arrivals = Arrivals()
    assert arrivals.at_s(100.0, 5.5) == 5.5, "nothing is known yet"
    assert arrivals.at_s(101.0, 6.3) == pytest.approx(6.3), "a faster one"
    assert arrivals.at_s(101.1, 6.9) == pytest.approx(6.4, abs=0.001)
    assert arrivals.at_s(101.2, 6.9) == pytest.approx(6.5, abs=0.001)


def test_a_way_that_grows_longer_is_learnt() -> None:
    arrivals = Arrivals()
    arrivals.at_s(0.0, 1.0)
    for second in range(1, 101):
        at_s = arrivals.at_s(second, second + 1.05)
    assert at_s == pytest.approx(101.05)
