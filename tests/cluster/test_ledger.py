"""The first ledger: known losses land in their column, and the columns sum to the gap whatever the counters."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nfold.cluster.ledger import ModelCounters, ReplicaCounters, Yardstick, account, overhead_share, tokens_per_s

YARDSTICKS = {"CPU": Yardstick(tokens_per_s=100.0, num_in_flight=8.0)}
NODES = ("a", "b")


def replica(
    name: str,
    service_s: float,
    output_tokens: int,
    *,
    idle_s: float = 0.0,
    yardstick: str = "CPU",
    num_in_flight: int = 8,
    num_waiting: int = 0,
    overhead_s: float = 0.0,
    handover_s: float = 0.0,
) -> ReplicaCounters:
    return ReplicaCounters(
        replica=name,
        node=name,
        yardstick=yardstick,
        service_s=service_s,
        idle_s=idle_s,
        output_tokens=output_tokens,
        num_in_flight=num_in_flight,
        num_waiting=num_waiting,
        overhead_s=overhead_s,
        handover_s=handover_s,
    )


def sample(
    time_s: float,
    *,
    tokens: tuple[int, ...],
    idle: tuple[float, ...] = (0.0, 0.0),
    running: tuple[int, ...] = (8, 8),
    queued: int = 0,
) -> ModelCounters:
    replicas = tuple(
        replica(NODES[i], time_s, tokens[i], idle_s=idle[i], num_in_flight=running[i]) for i in range(len(tokens))
    )
    return ModelCounters(time_s=time_s, num_queued=queued, replicas=replicas)


BUSY = [sample(0, tokens=(0, 0)), sample(10, tokens=(1000, 1000))]
HALF_IDLE_ALONE = [
    sample(0, tokens=(0, 0), running=(8, 0)),
    sample(10, tokens=(1000, 0), idle=(0, 10), running=(8, 0)),
]
HALF_IDLE_WHILE_WORK_WAITS = [
    sample(0, tokens=(0, 0), running=(8, 0), queued=8),
    sample(10, tokens=(1000, 0), idle=(0, 10), running=(8, 0), queued=8),
]
WORK_WAITS_AT_ONE_END = [
    sample(0, tokens=(0, 0), running=(8, 0), queued=8),
    sample(10, tokens=(1000, 0), idle=(0, 10), running=(8, 0)),
]
SLOW = [sample(0, tokens=(0, 0)), sample(10, tokens=(1000, 700))]
FASTER_THAN_BASELINE = [sample(0, tokens=(0, 0)), sample(10, tokens=(1100, 1100))]


@pytest.mark.parametrize(
    ("samples", "measured", "no_demand", "starved", "unexplained", "efficiency"),
    [
        pytest.param(BUSY, 200, 0, 0, 0, 1.0, id="all busy"),
        pytest.param(HALF_IDLE_ALONE, 100, 100, 0, 0, None, id="no demand"),
        pytest.param(HALF_IDLE_WHILE_WORK_WAITS, 100, 0, 100, 0, 0.5, id="starved"),
        pytest.param(WORK_WAITS_AT_ONE_END, 100, 50, 50, 0, None, id="half of an interval"),
        pytest.param(SLOW, 170, 0, 0, 30, 0.85, id="slow"),
        pytest.param(FASTER_THAN_BASELINE, 220, 0, 0, -20, 1.1, id="faster than the baseline"),
    ],
)
def test_a_known_loss_lands_in_its_column(
    samples: list[ModelCounters],
    measured: float,
    no_demand: float,
    starved: float,
    unexplained: float,
    efficiency: float | None,
) -> None:
    ledger = account(samples, YARDSTICKS)
    assert ledger is not None
    assert ledger.baseline == pytest.approx(200)
    assert ledger.measured == pytest.approx(measured)
    assert ledger.losses == pytest.approx(
        {"no demand": no_demand, "starved": starved, "control plane": 0, "unexplained": unexplained}
    )
    assert ledger.efficiency == (None if efficiency is None else pytest.approx(efficiency))


def one_replica_each(time_s: float, *replicas: ReplicaCounters, queued: int = 0) -> ModelCounters:
    return ModelCounters(time_s=time_s, num_queued=queued, replicas=replicas)


CONTROL_PLANE = {
    "its work is on the way": (
        replica("a", 10, 800, idle_s=2, handover_s=2),
        YARDSTICKS["CPU"],
        0,
        {"no demand": 0, "starved": 0, "control plane": 20, "unexplained": 0},
    ),
    "no more than it was idle": (
        replica("a", 10, 800, idle_s=2, handover_s=5),
        YARDSTICKS["CPU"],
        0,
        {"no demand": 0, "starved": 0, "control plane": 20, "unexplained": 0},
    ),
    "the rest of its idling has its own reason": (
        replica("a", 10, 500, idle_s=5, handover_s=2),
        YARDSTICKS["CPU"],
        0,
        {"no demand": 30, "starved": 0, "control plane": 20, "unexplained": 0},
    ),
    "requests wait and no replica has any": (
        replica("a", 10, 0, idle_s=10, num_in_flight=0),
        YARDSTICKS["CPU"],
        7,
        {"no demand": 0, "starved": 0, "control plane": 100, "unexplained": 0},
    ),
    "at work but between steps": (
        replica("a", 10, 900, overhead_s=1),
        YARDSTICKS["CPU"],
        0,
        {"no demand": 0, "starved": 0, "control plane": 10, "unexplained": 0},
    ),
    "as much between steps as the baseline": (
        replica("a", 10, 1000, overhead_s=1),
        Yardstick(100.0, 8.0, overhead_share=0.1),
        0,
        {"no demand": 0, "starved": 0, "control plane": 0, "unexplained": 0},
    ),
}


@pytest.mark.parametrize(
    ("after", "yardstick", "queued", "losses"), CONTROL_PLANE.values(), ids=CONTROL_PLANE.keys()
)
def test_control_plane(after: ReplicaCounters, yardstick: Yardstick, queued: int, losses: dict[str, float]) -> None:
    before = replica("a", 0, 0, num_in_flight=after.num_in_flight)
    samples = [one_replica_each(0, before, queued=queued), one_replica_each(10, after, queued=queued)]
    ledger = account(samples, {"CPU": yardstick})
    assert ledger is not None
    assert ledger.losses == pytest.approx(losses, abs=1e-9)
    assert overhead_share(samples) == pytest.approx(
        after.overhead_s / (10 - after.idle_s) if after.idle_s < 10 else 0
    )


def test_below_saturation_headroom_is_stated_instead_of_efficiency() -> None:
    ledger = account(HALF_IDLE_ALONE, YARDSTICKS)
    assert ledger is not None
    assert not ledger.saturated
    assert ledger.headroom == pytest.approx(100)
    saturated = account(BUSY, YARDSTICKS)
    assert saturated is not None
    assert saturated.headroom is None


def test_much_work_at_one_moment_does_not_make_up_for_none_at_another() -> None:
    samples = [
        sample(0, tokens=(0, 0), queued=1000),
        sample(1, tokens=(100, 100)),
        sample(2, tokens=(200, 200), running=(0, 0)),
    ]
    ledger = account(samples, YARDSTICKS)
    assert ledger is not None
    assert ledger.efficiency is None


def test_a_replica_that_joins_is_provisioned_for_its_part_of_the_window() -> None:
    samples = [
        sample(0, tokens=(0,), running=(8,)),
        sample(10, tokens=(1000, 0)),
        sample(20, tokens=(2000, 1000)),
    ]
    ledger = account(samples, YARDSTICKS)
    assert ledger is not None
    assert ledger.baseline == pytest.approx(150)
    assert ledger.measured == pytest.approx(150)
    assert ledger.gap == pytest.approx(0)


def test_a_replica_that_starts_anew_gives_no_negative_rate() -> None:
    def at(time_s: float, service_s: float, tokens: int) -> ModelCounters:
        replicas = (replica("a", time_s, int(100 * time_s)), replica("b", service_s, tokens))
        return ModelCounters(time_s=time_s, num_queued=0, replicas=replicas)

    samples = [at(0, 50, 900), at(1, 0.2, 20), at(2, 1.2, 120)]
    ledger = account(samples, YARDSTICKS)
    assert ledger is not None
    assert ledger.measured == pytest.approx((100 + 100 + 100) / 2)
    assert ledger.baseline == pytest.approx(150)
    assert tokens_per_s(samples) == pytest.approx({"a": 100.0, "b": 50.0})


def test_counters_as_old_as_their_message_give_the_rate_of_their_own_span() -> None:
    """Within 10 s the replica told of 9 s of its own: 900 tokens in them are 100 tokens/s, not 90."""
    before, after = (
        ModelCounters(
            time_s=time_s, num_queued=0, replicas=(replica("a", told_s, int(100 * told_s), idle_s=idle_s),)
        )
        for time_s, told_s, idle_s in ((10, 10, 0), (20, 19, 4.5))
    )
    ledger = account([before, after], YARDSTICKS)
    assert ledger is not None
    assert ledger.measured == pytest.approx(100)
    assert ledger.baseline == pytest.approx(100)
    assert ledger.no_demand == pytest.approx(50)


def test_a_client_may_bring_its_own_count() -> None:
    ledger = account(BUSY, YARDSTICKS, measured=190.0)
    assert ledger is not None
    assert ledger.measured == 190.0
    assert ledger.unexplained == pytest.approx(10)


def test_pools_of_two_speeds_add_their_own_baselines() -> None:
    yardsticks = {"MI300X": Yardstick(100.0, 8.0), "MI355X": Yardstick(300.0, 8.0)}

    def mixed(time_s: float, slow: int, fast: int) -> ModelCounters:
        replicas = (
            replica("a", time_s, slow, yardstick="MI300X"),
            replica("b", time_s, fast, yardstick="MI355X"),
        )
        return ModelCounters(time_s=time_s, num_queued=0, replicas=replicas)

    ledger = account([mixed(0, 0, 0), mixed(2, 200, 540)], yardsticks)
    assert ledger is not None
    assert ledger.baseline == pytest.approx(400)
    assert ledger.efficiency == pytest.approx(370 / 400)


@pytest.mark.parametrize(
    ("samples", "yardsticks"),
    [
        ([], YARDSTICKS),
        (BUSY[:1], YARDSTICKS),
        ([BUSY[0], BUSY[0]], YARDSTICKS),
        (BUSY, {}),
        ([sample(0, tokens=()), sample(1, tokens=())], YARDSTICKS),
    ],
    ids=["none", "one", "no time", "no baseline", "no replicas"],
)
def test_no_ledger_without_a_window_replicas_and_baselines(
    samples: list[ModelCounters], yardsticks: dict[str, Yardstick]
) -> None:
    assert account(samples, yardsticks) is None


REPLICAS = st.lists(
    st.builds(
        ReplicaCounters,
        replica=st.sampled_from("abcd"),
        node=st.sampled_from("xy"),
        yardstick=st.sampled_from(["CPU", "MI355X"]),
        service_s=st.floats(0, 1e6),
        idle_s=st.floats(0, 1e6),
        output_tokens=st.integers(0, 10**9),
        num_in_flight=st.integers(0, 512),
        num_waiting=st.integers(0, 512),
        overhead_s=st.floats(0, 1e6),
        handover_s=st.floats(0, 1e6),
    ),
    max_size=4,
    unique_by=lambda replica: replica.replica,
).map(tuple)


@given(
    steps=st.lists(st.tuples(st.floats(1e-3, 1e3), st.integers(0, 100), REPLICAS), min_size=2, max_size=6),
    rate=st.floats(0.1, 1e6),
)
def test_columns_sum_to_the_gap(steps: list[tuple[float, int, tuple[ReplicaCounters, ...]]], rate: float) -> None:
    now_s, samples = 0.0, list[ModelCounters]()
    for step_s, queued, replicas in steps:
        now_s += step_s
        samples.append(ModelCounters(time_s=now_s, num_queued=queued, replicas=replicas))
    ledger = account(samples, {"CPU": Yardstick(rate, 8.0), "MI355X": Yardstick(3 * rate, 8.0)})
    if ledger is None:
        return
    scale = ledger.baseline + ledger.measured
    assert math.isclose(sum(ledger.losses.values()), ledger.baseline - ledger.measured, abs_tol=1e-9 * scale)
    assert ledger.no_demand >= 0
    assert ledger.starved >= 0
    assert ledger.control_plane >= 0
    assert ledger.no_demand + ledger.starved + ledger.control_plane <= ledger.baseline * (1 + 1e-9)
    assert (ledger.efficiency is None) != (ledger.headroom is None)
