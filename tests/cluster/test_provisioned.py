"""Who is provisioned and absent: dead, starting, or not missed."""

from fake_service import MODEL, NODE_NAMES, POOL, FakeReplica, FakeRouter, two_nodes
from nfold.cluster.ledger import Presence
from nfold.cluster.provisioned import PoolTarget, Roster
from nfold.cluster.service_view import merge


def absent(roster: Roster, replicas: list[FakeReplica], wanted: int, starting: int = 0) -> dict[str, Presence]:
    view = merge([FakeRouter("r", replicas).snapshot(100.0)], NODE_NAMES)
    target = PoolTarget(MODEL, "CPU", 1, num_wanted=wanted, num_starting=starting)
    return {each.replica: each.presence for each in roster.absent(view, {POOL: target}).get(MODEL, [])}


def test_all_there() -> None:
    assert absent(Roster(), two_nodes(), wanted=2) == {}


def test_one_that_never_was_there_is_starting() -> None:
    assert absent(Roster(), two_nodes()[:1], wanted=2) == {f"{POOL}/0.0": Presence.STARTING}


def test_one_that_vanished_is_dead_until_its_successor_comes() -> None:
    roster, replicas = Roster(), two_nodes()
    absent(roster, replicas, wanted=2)
    assert absent(roster, replicas[:1], wanted=2) == {"replica-1": Presence.DEAD}
    assert absent(roster, replicas[:1], wanted=2, starting=1) == {"replica-1": Presence.STARTING}
    new = FakeReplica("replica-2", "b" * 56)
    assert absent(roster, [replicas[0], new], wanted=2) == {}


def test_one_that_routers_have_lost_is_dead() -> None:
    roster, replicas = Roster(), two_nodes()
    absent(roster, replicas, wanted=2)
    replicas[0].alive = False
    assert absent(roster, replicas, wanted=2) == {"replica-0": Presence.DEAD}


def test_one_that_is_not_wanted_any_more_is_not_missed() -> None:
    roster, replicas = Roster(), two_nodes()
    absent(roster, replicas, wanted=2)
    assert absent(roster, replicas[:1], wanted=1) == {}
    assert absent(roster, replicas[:1], wanted=2) == {f"{POOL}/0.0": Presence.STARTING}
