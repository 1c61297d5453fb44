"""A replica that is kept out of routing: it ends what it has, gets nothing new, and comes back."""

from collections.abc import Iterator

import pytest
from nfold.deployments.router_stats import ReplicaSnapshot
from nfold.models.engine.protocol import SamplingParams
from service_rig import Answer, Rig, poll_until


@pytest.fixture
def rig() -> Iterator[Rig]:
    with Rig() as rig:
        yield rig


def test_quarantine_takes_new_requests_away_and_gives_them_back(rig: Rig) -> None:
    sick, well = rig.replica("sick"), rig.replica("well")
    router = rig.router(sick, well)
    addresses = [sick.address, well.address]

    def ask(count: int) -> list[Answer]:
        answers = [Answer() for _ in range(count)]
        for number, answer in enumerate(answers):
            router.submit("m", [number], SamplingParams(3, ignore_eos=True), answer)
        poll_until(router, lambda: all(answer.ended for answer in answers), "all answers")
        return answers

    def seen() -> dict[str, ReplicaSnapshot]:
        return {replica.address.replica_id: replica for replica in router.snapshot().replicas}

    router.update_replicas(addresses, {"sick"})
    ask(8)
    assert len(sick.engine.submitted_ids) == 0
    assert len(well.engine.submitted_ids) == 8
    assert (seen()["sick"].state, seen()["sick"].alive) == ("quarantined", True)

    router.update_replicas(addresses)
    ask(8)
    assert len(sick.engine.submitted_ids) > 0
    assert seen()["sick"].state == "ready"
