"""When what is bound to a replica is sent: tables for the pure functions, and a router on a clock of its own."""

from collections.abc import Iterator
from math import inf

import numpy as np
import pytest
from bulk_answers import BulkAnswers, ask_bulk
from nfold.deployments.clumping import MAX_MARGIN_S, Rate, WayIn, clump_s, observe_shortest_step
from nfold.deployments.router import Router, RouterSettings
from service_rig import Rig, poll_until, states, wait_until

# requests/s, replicas, messages/s allowed, longest wait: the wait
WAITS = {
    "a quiet router waits for nothing": (999.0, 87, 1000.0, 0.05, 0.0),
    "nothing at all": (0.0, 87, 1000.0, 0.05, 0.0),
    "a little above: a little": (1100.0, 10, 1000.0, 0.05, 10 * (1 / 1000 - 1 / 1100)),
    "far above: nearly the gap between two messages to one replica": (1e9, 10, 1000.0, 0.05, 0.01),
    "never longer than it may": (20_000.0, 87, 1000.0, 0.005, 0.005),
    "switched off": (20_000.0, 87, 1000.0, 0.0, 0.0),
}


@pytest.mark.parametrize(("rate", "replicas", "limit", "longest", "wait"), WAITS.values(), ids=WAITS.keys())
def test_clump_s(rate: float, replicas: int, limit: float, longest: float, wait: float) -> None:
    assert clump_s(rate, replicas, limit, longest) == pytest.approx(wait)


@pytest.mark.parametrize("rate", [1001.0, 3650.0, 20_000.0])
@pytest.mark.parametrize("replicas", [8, 87, 512])
def test_messages_stay_below_the_limit(rate: float, replicas: int) -> None:
    """A replica's messages are one wait and one gap between its requests apart."""
    apart_s = clump_s(rate, replicas, 1000.0, inf) + replicas / rate
    assert replicas / apart_s <= 1000.0 * (1 + 1e-9)


def way_in(intake: float, every: float, delay: float) -> WayIn:
    return WayIn(np.array([intake]), np.array([every]), np.array([delay]))


# now, longest wait, intake, seconds between two, delay: when
MOMENTS = {
    "long before an intake: as long as it may": (10.0, 0.005, 10.09, 0.1, 0.0, 10.005),
    "shortly before: while it still arrives in time": (10.0, 0.05, 10.05, 0.1, 0.0, 10.03),
    "the way there counts": (10.0, 0.05, 10.05, 0.1, 0.02, 10.01),
    "intakes are far apart": (10.0, 1.0, 10.5, 2.0, 0.0, 10.5 - MAX_MARGIN_S),
    "it may be any moment: at once": (10.0, 0.05, 10.01, 0.1, 0.0, 10.0),
    "it should have been: at once": (10.0, 0.05, 9.1, 0.1, 0.0, 10.0),
    "far away: at once": (10.0, 0.05, 10.09, 0.1, 0.08, 10.0),
    "an idle replica: at once": (10.0, 0.05, -inf, 0.1, 0.0, 10.0),
    "before the first step was seen: at once": (10.0, 0.05, 10.0, 0.0, 0.0, 10.0),
    "nothing is held": (10.0, 0.0, 10.1, 0.1, 0.0, 10.0),
}


@pytest.mark.parametrize(
    ("now", "hold", "intake", "every", "delay", "moment"), MOMENTS.values(), ids=MOMENTS.keys()
)
def test_send_at_s(now: float, hold: float, intake: float, every: float, delay: float, moment: float) -> None:
    assert way_in(intake, every, delay).send_at_s(now, hold) == pytest.approx(moment)


# now, intake, seconds between two, delay: the wait
WAYS = {
    "in time for the next": (10.0, 10.05, 0.1, 0.0, 0.05),
    "too late for it": (10.0, 10.01, 0.1, 0.0, 0.11),
    "too far for it": (10.0, 10.05, 0.1, 0.04, 0.15),
    "an idle replica: the way": (10.0, -inf, 0.1, 0.04, 0.04),
    "nothing is known: the way": (10.0, -inf, 0.0, 0.0, 0.0),
    "it said nothing for long: the way": (10.0, 9.0, 0.1, 0.02, 0.02),
}


@pytest.mark.parametrize(("now", "intake", "every", "delay", "wait"), WAYS.values(), ids=WAYS.keys())
def test_wait_s(now: float, intake: float, every: float, delay: float, wait: float) -> None:
    assert way_in(intake, every, delay).wait_s(now) == pytest.approx(wait)


def test_the_shortest_step_falls_at_once_and_grows_slowly() -> None:
    shortest_s = 0.0
    for step_s in (0.08, 0.05, 0.2, 0.2):
        shortest_s = observe_shortest_step(shortest_s, step_s)
    assert 0.05 < shortest_s < 0.06
    for _ in range(100):
        shortest_s = observe_shortest_step(shortest_s, 0.2)
    assert shortest_s == 0.2


def test_rate_follows_and_forgets() -> None:
    rate = Rate()
    now_s = 0.0
    for _ in range(2000):
        now_s += 0.001
        rate.count(4, now_s)
    assert rate.per_s == pytest.approx(4000, rel=0.02)
    assert rate.count(1, now_s + 60) < 100


@pytest.fixture
def rig() -> Iterator[Rig]:
    with Rig() as rig:
        yield rig


def test_a_busy_router_holds_requests_while_a_step_runs(rig: Rig) -> None:
    """The clock stands still except where the test moves it; the replica's step is one that the test ends."""
    replica, now_s = rig.replica("r"), [1000.0]
    settings = RouterSettings(max_submits_per_s=10.0, max_clump_s=0.02, assign_every_s=0.0, dead_after_s=1e9)
    router = rig.closing(Router("router", None, settings, lambda: now_s[0]))
    router.update_replicas([replica.address])
    poll_until(router, lambda: states(router) == {"ready"}, "a replica that is ready")
    answers = BulkAnswers()
    for num_rounds in (1, 2, 3, 4):  # busy: fifty requests in each tenth of a second
        now_s[0] += 0.1
        ask_bulk(router, [1] * 50, BulkAnswers())
        poll_until(
            router, lambda n=num_rounds: router.snapshot().models[0].num_finished == 50 * n, "those that end"
        )
    replica.engine.gate.clear()
    num_before = replica.engine.num_submit_calls
    ask_bulk(router, [3], answers)
    router.flush()
    assert router.next_flush_s() == inf, "nothing is held from an idle replica"
    wait_until(lambda: replica.engine.num_submit_calls == num_before + 1, "a step that goes on")
    state = next(iter(router._connections))
    router._loads.intake_s[state.number], router._loads.intake_every_s[state.number] = now_s[0] + 0.1, 0.1

    waits = []
    for _ in range(3):
        ask_bulk(router, [1], answers, first_tag=10 + len(waits))
        router.flush()
        waits.append(router.next_flush_s())
        now_s[0] += 0.005

    assert waits == pytest.approx([0.02, 0.015, 0.01])
    now_s[0] += 0.005
    router.flush()
    assert router.next_flush_s() == inf
    replica.engine.gate.set()
    poll_until(router, lambda: len(answers.finish) == 3 + 1, "all answers")
    assert replica.engine.num_submit_calls == num_before + 2


def test_a_busy_router_looks_at_its_queue_once_in_a_while(rig: Rig) -> None:
    replica, now_s = rig.replica("r"), [1000.0]
    settings = RouterSettings(max_submits_per_s=10.0, max_clump_s=0.0, assign_every_s=0.005, dead_after_s=1e9)
    router = rig.closing(Router("router", None, settings, lambda: now_s[0]))
    router.update_replicas([replica.address])
    poll_until(router, lambda: states(router) == {"ready"}, "a replica that is ready")
    answers = BulkAnswers()
    for num_rounds in (1, 2, 3, 4):
        now_s[0] += 0.1
        ask_bulk(router, [1] * 50, answers, first_tag=50 * num_rounds)
        poll_until(
            router, lambda n=num_rounds: router.snapshot().models[0].num_finished == 50 * n, "those that end"
        )
    num_before = replica.engine.num_submit_calls
    for tag in range(3):
        now_s[0] += 0.001
        ask_bulk(router, [1], answers, first_tag=1000 + tag)
        router.flush()
        assert router.snapshot().models[0].num_queued == tag + 1
    assert router.next_flush_s() == pytest.approx(0.002)
    now_s[0] += 0.003
    poll_until(router, lambda: router.snapshot().models[0].num_finished == 203, "the three that came late")
    assert replica.engine.num_submit_calls == num_before + 1


def test_messages_gather_while_there_are_many(rig: Rig) -> None:
    replica, now_s = rig.replica("r"), [1000.0]
    settings = RouterSettings(take_in_every_s=0.004, dead_after_s=1e9)
    router = rig.closing(Router("router", None, settings, lambda: now_s[0]))
    router.update_replicas([replica.address])
    poll_until(router, lambda: states(router) == {"ready"}, "a replica that is ready")
    answers = BulkAnswers()
    assert router.gather_s() == 0.0
    for num_rounds in (1, 2, 3, 4):
        now_s[0] += 0.1
        ask_bulk(router, [100], answers, first_tag=num_rounds)  # a hundred steps, a message each
        poll_until(router, lambda n=num_rounds: len(answers.finish) == n, "an answer")

    assert router.gather_s() == pytest.approx(0.004)
    now_s[0] += 0.003
    assert router.gather_s() == pytest.approx(0.001)
    now_s[0] += 0.002
    assert router.gather_s() == 0.0
    now_s[0] += 10.0
    for tag in (100, 101):
        now_s[0] += 0.2
        ask_bulk(router, [1], answers, first_tag=tag)
        poll_until(router, lambda tag=tag: tag in answers.finish, "an answer after a silence")
    assert router.gather_s() == 0.0, "not many any more"
