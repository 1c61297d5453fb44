"""`nfold bench`, `report`, `verify` and `submission` on a service of simulated accelerators, as users run them."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from nfold.cluster.bench.record_store import open_record
from nfold_terminal import Terminal

pytestmark = pytest.mark.cluster

CLUSTER = "{local: {simulated_nodes: [{accelerator: MI300X, nodes: 2, accelerators: 2, hosts_per_ray_node: 2}]}}"
MODELS = (
    "[{name: big, path: simulated, pools: [{accelerator: MI300X}], engine: {engine: simulated, simulated: "
    "{scenario: server}}}]"
)
LOAD = ("--scenario", "Server", "--target-qps", "40", "--min-duration", "2", "--warmup", "1", "--samples", "40")


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    terminal = Terminal(tmp_path_factory.mktemp("home"), CLUSTER, MODELS)
    yield terminal
    if terminal.is_up():
        terminal.run("down", "--now")


@pytest.mark.slow
def test_a_record_from_bench_to_submission(terminal: Terminal, tmp_path: Path) -> None:
    """One test in steps, as a cluster takes long to start."""
    terminal.run("serve", str(terminal.config))
    refused = terminal.refuse("bench", "random-16-16", *LOAD, "--nodes", "2")
    assert "no baseline is kept for big on simulated-MI300X" in refused

    out = tmp_path / "record"
    said = terminal.run("bench", "random-16-16", *LOAD, "--nodes", "1,2", "--out", str(out))
    assert "SIMULATED" in said
    assert "short run: 2 s instead of 600 s" in " ".join(said.split())
    with open_record(out) as (record, _):
        assert [(point.num_nodes, point.num_accelerators) for point in record.points] == [(1, 2), (2, 4)]
        assert all(run.num_failed == 0 and run.num_short == 0 for point in record.points for run in point.runs)
        assert all(run.ledger is not None for point in record.points for run in point.runs)
        assert [node.healthy for node in record.nodes] == [2, 2]
        assert record.simulated
        assert record.baseline is not None
        assert record.hosts[0].cpu

    terminal.run("report", str(out))
    assert "SIMULATED" in (out / "report" / "index.html").read_text()
    assert "inconclusive" in terminal.run("verify", str(out), "--repeats", "1")
    terminal.run("submission", str(out), "--out", str(tmp_path / "tree"), "--submitter", "Us", "--division", "open")
    [system] = (tmp_path / "tree/open/Us/systems").iterdir()
    assert "SIMULATED" in json.loads(system.read_text())["sw_notes"]
    assert terminal.run("down") == "nfold is down\n"
