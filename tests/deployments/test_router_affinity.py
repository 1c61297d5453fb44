"""Requests go where the beginning of their prompt went, unless it is much too busy there."""

from collections.abc import Iterator

import pytest
from fake_engine import FakeEngine
from nfold.deployments.router import RouterSettings
from nfold.models.engine.protocol import SamplingParams
from service_rig import Answer, Rig, Running, poll_until, states


@pytest.fixture
def rig() -> Iterator[Rig]:
    with Rig() as rig:
        yield rig


def shares(rig: Rig, affinity_s: float, num_replicas: int = 3) -> tuple[list[int], list[Running]]:
    """Thirty requests with one beginning, one after the other: how many each replica got."""
    replicas = [rig.replica(f"r{i}", FakeEngine()) for i in range(num_replicas)]
    router = rig.router(*replicas, settings=RouterSettings(tick_s=0.02, prefix_affinity_s=affinity_s))
    first = [7] * 64
    answers: list[Answer] = []
    for i in range(30):
        answers.append(Answer())
        router.submit("m", [*first, i], SamplingParams(100, ignore_eos=True), answers[-1], stream=False)
        router.flush()
    poll_until(router, lambda: all(answer.ended for answer in answers), "all answers")
    return sorted(len(replica.engine.submitted_ids) for replica in replicas), replicas


def test_prompts_that_begin_alike_go_together(rig: Rig) -> None:
    assert shares(rig, affinity_s=1e9)[0] == [0, 0, 30]


def test_without_affinity_they_spread(rig: Rig) -> None:
    assert shares(rig, affinity_s=0.0)[0][0] > 0


def test_a_lost_replica_is_no_longer_wished_for(rig: Rig) -> None:
    replicas = [rig.replica(f"r{i}", FakeEngine()) for i in range(2)]
    router = rig.router(*replicas, settings=RouterSettings(tick_s=0.02, prefix_affinity_s=1e9))

    def ask() -> None:
        answer = Answer()
        router.submit("m", [7] * 64, SamplingParams(3, ignore_eos=True), answer)
        poll_until(router, lambda: answer.ended, "the answer")

    ask()
    favourite = next(replica for replica in replicas if replica.engine.submitted_ids)
    favourite.service.stop()
    poll_until(router, lambda: "lost" in states(router), "the loss")
    for _ in range(3):
        ask()

    assert len(favourite.engine.submitted_ids) == 1
