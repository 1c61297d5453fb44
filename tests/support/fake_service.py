"""Router snapshots of a service that is not there: two nodes with one replica each, busy at a known rate."""

from dataclasses import dataclass, field

from nfold.cluster.baseline import Baseline, BaselineKey
from nfold.cluster.latency import Percentiles
from nfold.cluster.provenance import Provenance
from nfold.deployments.addresses import ReplicaAddress
from nfold.deployments.router_stats import (
    HistogramSnapshot,
    ModelSnapshot,
    PoolSnapshot,
    ReplicaSnapshot,
    RouterSnapshot,
)
from nfold.deployments.wire import ReplicaStatus
from nfold.models.engine.protocol import EngineStats

MODEL = "nfold-sums"
POOL = "cpu"
NODE_NAMES = {"a" * 56: "node-0", "b" * 56: "node-1"}
BOUNDS_S = (0.01, 0.1, 1.0)


@dataclass
class FakeReplica:
    """A replica whose counters follow from its age: `rate` tokens/s while busy."""

    replica_id: str
    node_id: str
    rate: float = 100.0
    started_at: float = 0.0
    idle_share: float = 0.0
    alive: bool = True
    num_running: int = 8

    def snapshot(self, now: float, age_s: float = 0.0) -> ReplicaSnapshot:
        """As a router sees it at `now`; its last status is `age_s` old."""
        service_s = now - age_s - self.started_at
        tokens = int(self.rate * service_s * (1 - self.idle_share))
        address = ReplicaAddress(
            replica_id=self.replica_id,
            model=MODEL,
            pool=POOL,
            accelerator="CPU",
            node_id=self.node_id,
            host="host",
            ipc_endpoint="ipc:///nowhere",
            tcp_endpoint="",
            max_num_seqs=8,
            max_model_len=256,
            tp=1,
            started_at=self.started_at,
        )
        stats = EngineStats(
            num_running=self.num_running,
            num_waiting=0,
            num_kv_blocks=100,
            num_kv_blocks_used=25,
            total_steps=tokens // 8,
            total_prompt_tokens=2 * tokens,
            total_output_tokens=tokens,
            total_cached_prompt_tokens=0,
            total_recomputed_tokens=0,
            total_preemptions=0,
            total_step_s=service_s * (1 - self.idle_share),
        )
        status = ReplicaStatus(
            stats=stats,
            idle_s=service_s * self.idle_share,
            busy_s=service_s * (1 - self.idle_share),
            overhead_s=0.0,
            draining=False,
            num_gateways=1,
            num_messages_in=0,
            num_messages_out=0,
            num_rejected_messages=0,
        )
        return ReplicaSnapshot(
            address=address,
            state="ready" if self.alive else "lost",
            alive=self.alive,
            reason="",
            num_in_flight=self.num_running,
            num_in_flight_others=0,
            outstanding_tokens=0.0,
            tokens_per_s=None,
            status=status,
            status_age_s=age_s,
            num_output_tokens=tokens,
            num_prompt_tokens=2 * tokens,
        )


@dataclass
class FakeRouter:
    """A router's snapshot, whose own counters are set by the test."""

    router_id: str
    replicas: list[FakeReplica] = field(default_factory=list)
    num_queued: int = 0
    num_finished: int = 0
    ttft_counts: tuple[int, ...] = (0, 0, 0, 0)
    status_age_s: float = 0.0

    def snapshot(self, now: float) -> RouterSnapshot:
        ttft = HistogramSnapshot(BOUNDS_S, self.ttft_counts, 0.05 * sum(self.ttft_counts))
        empty = HistogramSnapshot(BOUNDS_S, (0, 0, 0, 0), 0.0)
        model = ModelSnapshot(
            model=MODEL,
            num_queued=self.num_queued,
            num_in_flight=sum(replica.num_running for replica in self.replicas),
            num_submitted=self.num_finished,
            num_refused=0,
            num_finished=self.num_finished,
            num_failed=0,
            num_aborted=0,
            num_continued=0,
            num_prompt_tokens=0,
            num_output_tokens=0,
            expected_output_tokens=10.0,
        )
        return RouterSnapshot(
            router_id=self.router_id,
            taken_at=now,
            replicas=tuple(replica.snapshot(now, self.status_age_s) for replica in self.replicas),
            models=(model,),
            pools=(PoolSnapshot(model=MODEL, pool=POOL, ttft=ttft, tpot=empty, e2e=empty),),
        )


def two_nodes(rate: float = 100.0) -> list[FakeReplica]:
    return [FakeReplica("replica-0", "a" * 56, rate), FakeReplica("replica-1", "b" * 56, rate)]


def baseline(tokens_per_s: float = 100.0) -> Baseline:
    """Of one node with one replica."""
    latency = Percentiles(p50=0.01, p90=0.02, p99=0.04)
    return Baseline(
        key=BaselineKey(model=MODEL, accelerator="CPU", tp=1, workload="sums"),
        weights="ab" * 32,
        engine="native",
        settings={"max_num_seqs": 8},
        node="node-0",
        num_replicas=1,
        concurrency=8,
        num_in_flight=8.0,
        tokens_per_s=tokens_per_s,
        repeats=[tokens_per_s],
        window_s=10.0,
        ttft_s=latency,
        tpot_s=latency,
        e2e_s=latency,
        step_times=[],
        provenance=Provenance(date="2026-11-21T00:00:00+00:00", host="host", cpu="cpu", num_cores=2, versions={}),
    )
