"""Until a router has seen a replica's steps it goes by what a baseline tells."""

from collections.abc import Iterator

import pytest
from nfold.deployments.router import Router
from nfold.deployments.speed_prior import SpeedPrior
from nfold.models.engine.protocol import SamplingParams
from service_rig import Answer, Rig, poll_until

POINTS = ((0.0, 4.0, 0.1), (0.0, 8.0, 0.1))


@pytest.fixture
def rig() -> Iterator[Rig]:
    with Rig() as rig:
        yield rig


def speed(router: Router) -> float | None:
    return router.snapshot().replicas[0].tokens_per_s


def prior(accelerator: str) -> SpeedPrior:
    return SpeedPrior(model="m", accelerator=accelerator, tp=1, points=POINTS)


def test_a_prior_counts_until_steps_were_seen(rig: Rig) -> None:
    running = rig.replica("r")
    router, address = rig.router(running), running.service.address
    assert speed(router) is None
    router.update_speed_priors([prior(f"not {address.accelerator}")])
    assert speed(router) is None, "of another kind"
    router.update_speed_priors([prior(address.accelerator)])
    assert speed(router) == pytest.approx(address.max_num_seqs / 0.1, rel=0.01)

    answer = Answer()
    router.submit("m", [1, 2, 3], SamplingParams(200, ignore_eos=True), answer)
    poll_until(router, lambda: answer.ended, "the answer")
    seen = speed(router)
    router.update_speed_priors(
        [SpeedPrior(model="m", accelerator=address.accelerator, tp=1, points=((0, 8, 9.0),))]
    )
    assert speed(router) == seen


def test_a_replica_that_comes_later_starts_from_it(rig: Rig) -> None:
    running = rig.replica("r")
    router = rig.router()
    router.update_speed_priors([prior(running.service.address.accelerator)])
    router.update_replicas([running.service.address])
    assert speed(router) is not None
