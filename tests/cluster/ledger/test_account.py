"""Known losses, each alone: the column that is theirs has all of it, and the others nothing."""

from collections.abc import Callable

import pytest
from nfold.cluster.ledger import COLUMNS, UNEXPLAINED, Ledger, ModelCounters, Presence, Yardstick, account
from step_spans import BATCH, CURVE, SteppingReplica, saturated_yardstick

YARDSTICK = saturated_yardstick()
Act = Callable[[SteppingReplica], None]


def ledger_of(*acts: Act, seconds: int = 20, queued: int = 0) -> Ledger:
    """Each act is what one replica does in each second."""
    replicas = [SteppingReplica(name=f"replica-{index}") for index in range(len(acts))]
    samples = [_look(0.0, replicas, queued)]
    for second in range(seconds):
        for replica, act in zip(replicas, acts, strict=True):
            act(replica)
        samples.append(_look(second + 1.0, replicas, queued))
    ledger = account(samples, {"CPU": YARDSTICK})
    assert ledger is not None
    return ledger


def _look(time_s: float, replicas: list[SteppingReplica], queued: int) -> ModelCounters:
    return ModelCounters(
        time_s=time_s, num_queued=queued, replicas=tuple(replica.counters() for replica in replicas)
    )


def shares(ledger: Ledger) -> dict[str, float]:
    """Columns of more than 0.1 % of the baselines, in per cent."""
    found = {name: 100.0 * ledger.share(name) for name in (*COLUMNS, UNEXPLAINED)}
    return {name: share for name, share in found.items() if abs(share) > 0.1}


def full(replica: SteppingReplica) -> None:
    replica.work(1.0, waiting=8)


def test_nothing_is_lost_at_the_baseline() -> None:
    ledger = ledger_of(full, full)
    assert shares(ledger) == {}
    assert ledger.efficiency == pytest.approx(1.0)


@pytest.mark.parametrize("percent", [5, 20])
def test_slow_step(percent: int) -> None:
    ledger = ledger_of(lambda replica: replica.work(1.0, waiting=8, slow=1 + percent / 100))
    assert shares(ledger) == pytest.approx({"slow step": 100 * percent / (100 + percent)}, abs=0.1)


def half_full_s() -> float:
    """Of a second at half a batch, what a full one would have saved: half of the fixed part of its steps."""
    return 100 * 0.5 * CURVE.batch_s[0] / CURVE.step_s(BATCH / 2 * 100 / 64, BATCH / 2, 0)


HALF_BATCH = {
    "it has no room for its own": ({"waiting": 100}, 0, {"underfilled": 1.0}),
    "work waits elsewhere": ({}, 1000, {"starved": 1.0}),
    "some waits elsewhere": ({}, BATCH // 8, {"starved": 0.25, "no demand": 0.75}),
    "its work is on the way": ({"on_the_way": 100}, 1000, {"control plane": 1.0}),
    "some is on the way": ({"on_the_way": BATCH // 4}, 0, {"control plane": 0.5, "no demand": 0.5}),
    "nothing waits anywhere": ({}, 0, {"no demand": 1.0}),
    "a step leaves some for the next": ({"deferred": BATCH // 8}, 0, {"no demand": 1.0}),
    "more is on the way": ({"deferred": BATCH // 8, "on_the_way": 100}, 0, {"control plane": 1.0}),
    "steps leave as many as would fill it": ({"deferred": BATCH}, 0, {"underfilled": 1.0}),
}


@pytest.mark.parametrize(("more", "queued", "expected"), HALF_BATCH.values(), ids=HALF_BATCH.keys())
def test_a_batch_that_is_not_full_has_its_reason(
    more: dict[str, int], queued: int, expected: dict[str, float]
) -> None:
    ledger = ledger_of(lambda replica: replica.work(1.0, batch=BATCH // 2, **more), queued=queued)
    lost = {name: share * half_full_s() for name, share in expected.items()}
    assert shares(ledger) == pytest.approx(lost, rel=0.02)


def test_of_what_comes_in_bursts_the_queue_fills_no_slots_that_are_empty_later() -> None:
    """Half of the time it has more than fits, half of the time a half batch, while more is on the way."""

    def act(replica: SteppingReplica) -> None:
        replica.work(0.5, waiting=BATCH)
        replica.work(0.5, batch=BATCH // 2, on_the_way=BATCH)

    assert shares(ledger_of(act)) == pytest.approx({"control plane": half_full_s() / 2}, rel=0.05)


def test_idle_while_another_has_more_than_it_can_do() -> None:
    ledger = ledger_of(lambda replica: replica.work(1.0, waiting=500), lambda replica: replica.idle(1.0))
    assert shares(ledger) == pytest.approx({"starved": 50.0})


def test_idle_while_requests_wait_and_no_replica_has_any() -> None:
    ledger = ledger_of(lambda replica: replica.idle(1.0), queued=BATCH)
    assert shares(ledger) == pytest.approx({"control plane": 100.0})


def test_recompute() -> None:
    ledger = ledger_of(lambda replica: replica.work(1.0, waiting=8, again=500))
    step_s = CURVE.step_s(BATCH * 100 / 64 + 500, BATCH, 0)
    assert shares(ledger) == pytest.approx({"recompute": 100 * 500 * CURVE.prefill_token_s / step_s}, rel=0.02)


def test_time_between_steps() -> None:
    ledger = ledger_of(lambda replica: replica.work(1.0, waiting=8, between_s=0.01))
    step_s = CURVE.step_s(BATCH * 100 / 64, BATCH, 0)
    assert shares(ledger) == pytest.approx({"control plane": 100 * 0.01 / (step_s + 0.01)}, rel=0.02)


@pytest.mark.parametrize(
    ("presence", "column"),
    [(Presence.DRAINING, "draining"), (Presence.QUARANTINED, "unhealthy")],
)
def test_a_replica_that_gets_nothing_more_lacks_work_for_that(presence: Presence, column: str) -> None:
    def act(replica: SteppingReplica) -> None:
        replica.presence = presence
        replica.idle(1.0)

    assert shares(ledger_of(full, act, queued=1000)) == pytest.approx({column: 50.0})


@pytest.mark.parametrize(("presence", "column"), [(Presence.STARTING, "starting"), (Presence.DEAD, "unhealthy")])
def test_a_replica_that_does_not_serve_costs_its_baseline(presence: Presence, column: str) -> None:
    def act(replica: SteppingReplica) -> None:
        replica.presence = presence

    assert shares(ledger_of(full, act)) == pytest.approx({column: 50.0})


def test_tokens_computed_again_for_a_dead_replica_are_recompute() -> None:
    """As many as prompts are computed anyway; what their answers would have cost of prompts is not lost."""
    replica = SteppingReplica()
    samples: list[ModelCounters] = []
    for second in range(21):
        tokens, left = (10_000, 1_000.0) if second >= 10 else (0, 0.0)
        counters = (replica.counters(),)
        samples.append(
            ModelCounters(
                time_s=second,
                num_queued=0,
                replicas=counters,
                num_continued_tokens=tokens,
                num_continued_left=left,
            )
        )
        full(replica)
    ledger = account(samples, {"CPU": YARDSTICK})
    assert ledger is not None
    net = 10_000 - 1_000 * YARDSTICK.prefill_per_token
    lost = 100 * net * CURVE.prefill_token_s / samples[-1].replicas[0].service_s
    assert 100 * ledger.share("recompute") == pytest.approx(lost, rel=0.02)


def test_without_a_curve_only_idling_is_told_apart() -> None:
    replica = SteppingReplica()
    before = ModelCounters(time_s=0.0, num_queued=0, replicas=(replica.counters(),))
    replica.work(5.0, slow=2.0)
    replica.idle(10.0 - replica.now_s)
    after = ModelCounters(time_s=10.0, num_queued=0, replicas=(replica.counters(),))
    ledger = account([before, after], {"CPU": Yardstick(YARDSTICK.tokens_per_s, BATCH)})
    assert ledger is not None
    assert set(shares(ledger)) == {"no demand", UNEXPLAINED}
