"""Small generations on single replicas, over real sockets."""

from collections.abc import Iterator

import pytest
from nfold.cluster.controller.probes import Prober, probe
from nfold.deployments.addresses import ServiceKeys
from nfold.deployments.engine_service import ServiceSettings
from service_rig import Rig, wait_until


@pytest.fixture
def rig() -> Iterator[Rig]:
    with Rig() as rig:
        yield rig


def test_a_replica_that_answers_passes(rig: Rig) -> None:
    assert probe(rig.replica("well").address, None, 10.0) == ""


def test_a_half_alive_one_does_not(rig: Rig) -> None:
    """It is connected and says that it is ready, and computes nothing."""
    sick = rig.replica("sick")
    sick.engine.gate.clear()

    assert probe(sick.address, None, 0.5) == "no answer within 0.5 s"


def test_probes_run_aside_and_are_remembered(rig: Rig) -> None:
    keys = ServiceKeys.generate()
    settings = ServiceSettings(status_s=0.05, tcp_host="127.0.0.1")
    well, sick = (rig.replica(name, keys=keys, settings=settings) for name in ("well", "sick"))
    sick.engine.gate.clear()
    prober = Prober(lambda: keys, 0.5, clock=lambda: 7.0)
    prober.probe([well.address, sick.address])
    wait_until(lambda: len(prober.results) == 2, "both probes")

    assert [(prober.results[name].passed, prober.results[name].ended_s) for name in ("well", "sick")] == [
        (True, 7.0),
        (False, 7.0),
    ]
    prober.forget(["well"])
    assert set(prober.results) == {"well"}
