"""A load generator held to a share of a core, by the kernel: `nfold bench` must refuse its figure.

    python benchmarks/client_limited.py [--share 0.1]

A replica of few slots is loaded through LoadGen twice, by a client that is free and by one that is held (cgroup v1,
needs root). The checks that every bench makes must admit the first figure and refuse the second. Last line: JSON.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from nfold.cluster.bench.client import ClientJob
from nfold.cluster.bench.client_process import run_in_process
from nfold.cluster.bench.figures import check_client
from nfold.cluster.bench.made_sets import random_set
from nfold.cluster.bench.roofline import measure_roofline
from nfold.cluster.bench.rules import rules_of
from nfold.cluster.bench.scenarios import Scenario
from nfold.cluster.bench.settings import Asked, run_settings
from nfold.cluster.roofline import ReplicaSize, empty_replicas
from nfold.models.errors import StateError

PERIOD_US = 100_000
SIZE = ReplicaSize("m", max_num_seqs=16, max_model_len=512)


def hold(share: float) -> Callable[[int], None]:
    """Puts a process into a cgroup with so much of a core; 1 leaves it alone."""

    def put(pid: int) -> None:
        if share < 1:
            group = Path("/sys/fs/cgroup/cpu/nfold-client-limited")
            group.mkdir(exist_ok=True)
            (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
            (group / "cpu.cfs_quota_us").write_text(str(round(share * PERIOD_US)))
            (group / "cgroup.procs").write_text(str(pid))

    return put


def attempt(share: float) -> dict[str, float | bool | str]:
    """One bench's checks with the client held so."""
    samples = random_set(32, 64, 512, 127, SIZE.max_model_len, simulated=True)
    asked = Asked(target_qps=150, min_duration_s=3, min_queries=64)
    settings = run_settings(rules_of("free-form"), Scenario.OFFLINE, len(samples), asked=asked)
    put = hold(share)
    roofline = measure_roofline(
        SIZE.model,
        SIZE.max_model_len,
        rules_of("free-form"),
        samples,
        expected_qps=settings.target_qps,
        run=lambda job: run_in_process(job, on_start=put),
    )
    with empty_replicas([SIZE]) as replicas, tempfile.TemporaryDirectory() as directory:
        job = ClientJob(
            model=SIZE.model,
            replicas=tuple(replicas),
            nodes={replica.replica_id: "stub" for replica in replicas},
            samples=samples,
            settings=settings,
            log_dir=Path(directory) / "run",
        )
        result = run_in_process(job, on_start=put)
    tokens_per_s = result.num_tokens / result.end_s
    said = "the figure counts"
    try:
        check_client(result.busy_share, tokens_per_s, roofline, result.delayed_share)
    except StateError as error:
        said = str(error)
    print(f"client with {share:.0%} of a core: {tokens_per_s:,.0f} tokens/s, roofline {roofline:,.0f}, ", end="")
    print(f"{result.busy_share:.0%} busy, {result.delayed_share:.0%} delayed: {said}", flush=True)
    refused = said.startswith("client-limited")
    return {
        "share": share,
        "tokens_per_s": tokens_per_s,
        "roofline": roofline,
        "busy": result.busy_share,
        "delayed": result.delayed_share,
    } | {"refused": refused}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=0.1)
    args = parser.parse_args()
    assert os.geteuid() == 0, "only root may hold a process to a share of a core"
    free, held = attempt(1.0), attempt(args.share)
    ok = bool(held["refused"]) and not free["refused"]
    print(json.dumps({"benchmark": "client_limited", "simulated": True, "ok": ok, "free": free, "held": held}))


if __name__ == "__main__":
    main()
