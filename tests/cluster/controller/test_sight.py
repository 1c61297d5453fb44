"""What the controller makes of routers' snapshots, baselines and node types."""

from itertools import count

import pytest
from nfold.cluster.config import NfoldConfig
from nfold.cluster.controller.actuation import Actual, ActualNode, NodeState, NodeType
from nfold.cluster.controller.attainment import Attainment
from nfold.cluster.controller.offers import offers_of
from nfold.cluster.controller.settings import ControllerSettings
from nfold.cluster.controller.sight import Probe, Sight
from nfold.cluster.observer import Observer, Reading
from nfold.deployments.addresses import ReplicaAddress
from nfold.deployments.router_stats import HistogramSnapshot, ModelSnapshot, ReplicaSnapshot, RouterSnapshot
from nfold.deployments.wire import ReplicaStatus
from nfold.models.engine.protocol import EngineStats

_TICKS = map(float, count())
MI355X = "AMD-Instinct-MI355X-OAM"


def config(tp: int = 1, **controller: object) -> NfoldConfig:
    return NfoldConfig.model_validate(
        {
            "models": [{"name": "m", "pools": [{"accelerator": MI355X, "tp": tp}]}],
            "controller": {"models": {"m": {"slo": {"ttft_s": 2.0}}}, **controller},
        }
    )


def kind(name: str, gpus: float, accelerator: str = MI355X) -> NodeType:
    return NodeType(
        name=name,
        resources={"CPU": 64.0, "GPU": gpus, f"accelerator_type:{accelerator}": 1.0},
        accelerator=accelerator,
        num_accelerators=int(gpus),
        max_nodes=4,
    )


def test_offers_fill_whole_nodes_and_say_what_does_not_fit() -> None:
    (whole, small, other) = offers_of(
        config(tp=4), [kind("whole", 8), kind("small", 2), kind("other", 8, "AMD-Instinct-MI300X-OAM")], []
    )["m"]

    assert (whole.num_replicas, whole.num_engines, whole.tokens_per_s) == (2, 2, None)
    assert (small.num_replicas, small.misfit) == (0, "small has 2 GPU in all, 2 too few")
    assert "other has AMD-Instinct-MI300X-OAM, not" in other.misfit


def histogram(*counts: int) -> dict[tuple[str, str, str], HistogramSnapshot]:
    return {("ttft", "m", "p"): HistogramSnapshot((1.0, 3.0), counts, 0.0)}


def test_attainment_is_of_the_window_and_interpolates() -> None:
    attainment = Attainment(window_s=60.0)
    attainment.look(0.0, histogram(100, 0, 50))
    assert attainment.share("ttft", "m", 2.0) is None
    attainment.look(30.0, histogram(106, 2, 52))

    assert attainment.share("ttft", "m", 2.0) == pytest.approx((6 + 1) / 10)
    assert attainment.share("ttft", "m", None) is None
    attainment.look(90.0, histogram(106, 2, 52))
    attainment.look(160.0, histogram(106, 2, 52))
    assert attainment.share("ttft", "m", 2.0) is None


def router(num_submitted: int, num_tokens: int, in_flight: int, num_queued: int = 0) -> RouterSnapshot:
    stats = EngineStats(in_flight, 0, 100, 25, 10, 0, num_tokens, 0, 0, 0, 1.0)
    address = ReplicaAddress(
        replica_id="r",
        model="m",
        pool=f"m--{MI355X}",
        accelerator=MI355X,
        node_id="n1",
        host="h",
        ipc_endpoint="ipc://x",
        tcp_endpoint="",
        max_num_seqs=8,
        max_model_len=100,
        tp=1,
        started_at=1.0,
    )
    replica = ReplicaSnapshot(
        address=address,
        state="ready",
        alive=True,
        reason="",
        num_in_flight=in_flight,
        num_in_flight_others=0,
        outstanding_tokens=0.0,
        tokens_per_s=None,
        status=ReplicaStatus(
            stats=stats,
            idle_s=0.0,
            busy_s=1.0,
            overhead_s=0.0,
            draining=False,
            num_gateways=1,
            num_messages_in=0,
            num_messages_out=0,
            num_rejected_messages=0,
        ),
        status_age_s=0.0,
        num_output_tokens=num_tokens,
        num_prompt_tokens=0,
    )
    model = ModelSnapshot(
        model="m",
        num_queued=num_queued,
        num_in_flight=in_flight,
        num_submitted=num_submitted,
        num_refused=0,
        num_finished=0,
        num_failed=0,
        num_aborted=0,
        num_continued=0,
        num_prompt_tokens=0,
        num_output_tokens=num_tokens,
        expected_output_tokens=50.0,
    )
    return RouterSnapshot(router_id="g", taken_at=next(_TICKS), replicas=(replica,), models=(model,), pools=())


def test_rates_and_silences_are_taken_from_looks() -> None:
    now_s = 0.0
    observer = Observer(lambda: now_s)
    sight = Sight(config(), ControllerSettings())
    nodes = (ActualNode(node_id="n1", node_type="whole", state=NodeState.READY, since_s=0.0),)
    actual = Actual(time_s=5000.0, node_types=(kind("whole", 8),), nodes=nodes, pools=())

    def look(*told: int) -> tuple[float, float, float, float]:
        reading = Reading([router(*told)], {"n1": "node one"})
        probes = {"r": Probe(True, 1.0)}
        report = observer.observe(reading)
        sight.watch(reading, report, now_s)
        snapshot = sight.snapshot(reading, report, actual, probes, now_s)
        load, (signs,) = snapshot.load("m"), snapshot.replicas
        assert signs.probe == "passed"
        return load.arriving_tokens_per_s, load.queued_tokens, signs.silent_s, signs.idle_s

    assert look(1000, 0, 4) == (0.0, 0.0, 0.0, 0.0)  # what came before is no arrival now
    now_s = 10.0
    assert look(1020, 40, 4, 3) == (100.0, 150.0, 0.0, 0.0)
    now_s = 20.0
    assert look(1020, 40, 4) == (50.0, 0.0, 10.0, 0.0)
    now_s = 25.0
    assert look(1020, 80, 0)[2:] == (0.0, 5.0)


def test_a_model_that_is_not_served_is_named() -> None:
    with pytest.raises(ValueError, match="no such model is served; there is m"):
        config(models={"other": {}})
