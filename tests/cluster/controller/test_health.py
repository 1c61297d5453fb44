"""Who is kept out of routing, let back in, or replaced; how many at a time."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from nfold.cluster.controller.decision import HealthVerdict, Remedy
from nfold.cluster.controller.health import decide_health, needs_probe
from nfold.cluster.controller.settings import HealthSettings
from nfold.cluster.controller.snapshot import Memory, ReplicaSigns

SETTINGS = HealthSettings()
TICK_S = 5.0


def replicas(count: int = 10, **sick: object) -> list[ReplicaSigns]:
    """`r0` is as `sick` says, the others are well and busy."""
    well = [
        ReplicaSigns(
            replica_id=f"r{i}", model="llama", pool="p", node_id=f"node-{i // 5}", num_in_flight=4, speed=0.99
        )
        for i in range(count)
    ]
    return [replace(well[0], **sick), *well[1:]]  # pyright: ignore[reportArgumentType]


class Ward:
    """Decides again and again; remembers."""

    def __init__(self) -> None:
        self.memory = Memory()
        self.time_s = 1000.0
        self.told: list[HealthVerdict] = []

    def go(self, signs: Sequence[ReplicaSigns], seconds: float = TICK_S) -> "Ward":
        for _ in range(round(seconds / TICK_S)):
            out = {one.replica_id for one in self.memory.quarantine}
            seen = [replace(one, state="quarantined") if one.replica_id in out else one for one in signs]
            verdicts, self.memory = decide_health(seen, SETTINGS, self.memory, self.time_s)
            self.told += verdicts
            self.time_s += TICK_S
        return self

    @property
    def remedies(self) -> list[tuple[Remedy, str]]:
        return [(one.remedy, one.replica_id) for one in self.told if one.remedy is not Remedy.WAIT]

    @property
    def out(self) -> list[str]:
        return [one.replica_id for one in self.memory.quarantine]


def test_well_replicas_are_left_alone() -> None:
    assert Ward().go(replicas(), 600.0).told == []


@pytest.mark.parametrize(
    ("sick", "reason"),
    [
        ({"num_in_flight": 7, "silent_s": 61.0}, "holds 7 requests and has brought no token for 61 s"),
        ({"probe": "failed", "reason": "no answer within 20 s"}, "small generation: no answer within 20 s"),
    ],
)
def test_half_alive_ones_leave_routing_at_once(sick: dict[str, object], reason: str) -> None:
    ward = Ward().go(replicas(**sick))

    assert ward.remedies == [(Remedy.QUARANTINE, "r0")]
    assert reason in ward.told[0].reason


def test_a_straggler_leaves_after_a_minute_not_for_one_slow_moment() -> None:
    ward = Ward().go(replicas(speed=0.6), 55.0).go(replicas(), 60.0).go(replicas(speed=0.6), 60.0)
    assert ward.remedies == []
    ward.go(replicas(speed=0.6))
    assert ward.remedies == [(Remedy.QUARANTINE, "r0")]
    assert "works at 60% of its baseline" in ward.told[0].reason


def test_what_slows_all_of_them_goes_with_no_replica() -> None:
    signs = [replace(one, speed=0.53 + 0.01 * i) for i, one in enumerate(replicas())]
    assert Ward().go(signs, 300.0).told == []

    ward = Ward().go([replace(signs[0], speed=0.4), *signs[1:]], 70.0)
    assert ward.remedies == [(Remedy.QUARANTINE, "r0")], "0.4 is less than 0.7 of 0.62"


def test_one_that_is_idle_is_no_straggler() -> None:
    assert Ward().go(replicas(speed=None, num_in_flight=0, idle_s=500.0), 600.0).told == []


def test_it_comes_back_when_a_small_generation_ends_well() -> None:
    ward = Ward().go(replicas(num_in_flight=3, silent_s=70.0)).go(replicas(num_in_flight=0, speed=None), 30.0)
    assert ward.out == ["r0"]
    ward.go(replicas(num_in_flight=0, speed=None, probe="passed", probe_age_s=2.0))

    assert ward.remedies == [(Remedy.QUARANTINE, "r0"), (Remedy.RELEASE, "r0")]
    assert ward.out == []


def test_a_probe_from_before_proves_nothing() -> None:
    ward = Ward().go(replicas(silent_s=70.0)).go(replicas(num_in_flight=0, probe="passed", probe_age_s=900.0), 30.0)
    assert ward.out == ["r0"]


def test_a_straggler_comes_back_only_at_its_usual_speed() -> None:
    ward = Ward().go(replicas(speed=0.5), 70.0)
    ward.go(replicas(num_in_flight=0, speed=None, probe="passed", probe_age_s=1.0), 20.0)
    assert ward.out == ["r0"]
    ward.go(replicas(num_in_flight=0, speed=0.97, probe="passed", probe_age_s=1.0))
    assert ward.out == []


def test_one_that_stays_sick_is_replaced_once() -> None:
    ward = Ward().go(replicas(silent_s=70.0), 200.0)

    assert ward.remedies == [(Remedy.QUARANTINE, "r0"), (Remedy.REPLACE, "r0")]
    assert ward.memory.quarantine[0].replaced
    ward.go(replicas()[1:])  # Serve has ended it
    assert ward.out == []


def test_never_more_than_a_share_is_out_and_the_sickest_go_first() -> None:
    """Six of ten are too slow and one hangs: that one goes, and the slowest."""
    signs = [
        replace(one, speed=0.3 + 0.05 * i) if 1 <= i <= 6 else one for i, one in enumerate(replicas(silent_s=90.0))
    ]
    ward = Ward().go(signs, 70.0)

    assert ward.out == ["r0", "r1"]
    waits = [one for one in ward.told if one.remedy is Remedy.WAIT]
    assert "2 of 10 replicas are out already" in waits[-1].reason


def test_the_only_replica_stays_however_sick() -> None:
    ward = Ward().go(replicas(1, silent_s=500.0), 300.0)

    assert ward.out == []
    assert {one.remedy for one in ward.told} == {Remedy.WAIT}


def test_those_that_died_count_as_out() -> None:
    signs = replicas(silent_s=90.0)
    signs[3:5] = [replace(one, state="lost") for one in signs[3:5]]

    assert Ward().go(signs, 60.0).out == []


def test_a_node_whose_replicas_are_all_sick_is_drained() -> None:
    """Two of ten, both on one node of their own."""
    signs = [
        replace(one, node_id="bad", silent_s=90.0) if one.replica_id in ("r0", "r1") else one for one in replicas()
    ]
    ward = Ward().go(signs, 200.0)

    assert [one.node_id for one in ward.told if one.remedy is Remedy.DRAIN_NODE] == ["bad"]
    assert ward.memory.leaving == ("bad",)
    ward.go(signs[2:])
    assert ward.memory.leaving == ()


def test_only_what_nothing_else_proves_is_probed() -> None:
    busy, idle = replicas()[1], replicas(num_in_flight=0, idle_s=61.0)[0]

    assert not needs_probe(busy, SETTINGS, quarantined=False)
    assert needs_probe(busy, SETTINGS, quarantined=True)
    assert needs_probe(idle, SETTINGS, quarantined=False)
    assert not needs_probe(replace(idle, probe="passed", probe_age_s=30.0), SETTINGS, quarantined=False)
    assert not needs_probe(replace(idle, state="lost"), SETTINGS, quarantined=False)
