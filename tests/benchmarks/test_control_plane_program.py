"""The program around the measurements: options, fleets, goals, the last line, relays."""

import json
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from control_plane import COMMON, MEASUREMENTS, line_of, parse
from control_plane_cpu import CpuSeconds, service_processes
from control_plane_fleet import fleet_config
from control_plane_relay import far_away
from control_plane_report import Goal, added_figures, cpu_figures, latency_figures, what_is_full
from kept_results import keep
from nfold.deployments.addresses import ReplicaAddress


def test_87_accelerators_are_ten_nodes_of_eight_and_one_of_seven() -> None:
    config = fleet_config([("MI355X", 87)], "llama-2-70b", "offline", port=9000)
    assert config.cluster.local is not None
    groups = [(group.nodes, group.accelerators) for group in config.cluster.local.simulated_nodes]
    assert groups == [(10, 8), (1, 7)]
    assert {group.hosts_per_ray_node for group in config.cluster.local.simulated_nodes} == {1}


def test_64_nodes_are_packed_onto_few_ray_nodes() -> None:
    config = fleet_config([("MI355X", 512)], "gpt-oss-120b", "offline", port=9000)
    assert config.cluster.local is not None
    [group] = config.cluster.local.simulated_nodes
    assert group.nodes == 64
    assert group.nodes / group.hosts_per_ray_node <= 16


def test_quick_fills_in_only_what_is_not_given() -> None:
    args = parse(["server", "--quick", "--seconds", "7"])
    assert (args.seconds, args.accelerators) == (7.0, 8)
    assert parse(["server"]).accelerators is None


@pytest.mark.parametrize("name", sorted(MEASUREMENTS))
def test_the_last_line_has_the_common_figures_and_says_simulated(name: str, tmp_path: Path) -> None:
    line = line_of(name, {"tokens_per_s": 1.0, "own": [1]}, quick=False)
    assert all(key in line for key in COMMON)
    assert line["simulated"] is True
    assert line["own"] == [1]
    kept = keep(f"control_plane-{name}", line, tmp_path)
    assert kept is not None
    assert kept.name.startswith(f"control_plane-{name}-")
    assert json.loads(kept.read_text())["measurement"] == name


def test_goals_know_both_directions_and_what_was_not_measured() -> None:
    assert Goal("x", 2.0, 1.0).met is True
    assert Goal("x", 2.0, 1.0, at_least=False).met is False
    assert Goal("x", None, 1.0).met is None
    assert "MISSED" in str(Goal("x", 0.5, 0.99, "%"))


def test_added_is_measured_less_replayed() -> None:
    ideal_s = np.full(200, 0.190)
    figures = added_figures(ideal_s + 0.005, ideal_s)
    assert figures["added_ttft_p99_ms"] == pytest.approx(5.0)
    assert figures["engines_ttft_p99_ms"] == pytest.approx(190.0)


def test_a_percentile_among_requests_without_a_token_is_none() -> None:
    values_s = np.array([0.1] * 90 + [np.inf] * 10)
    assert latency_figures("ttft", values_s)["ttft_p99_ms"] is None
    assert latency_figures("ttft", values_s)["ttft_p50_ms"] == pytest.approx(100.0)
    assert added_figures(values_s, np.full(100, 0.1))["added_ttft_p99_ms"] is None


def test_cpu_by_million_tokens_and_who_fills_the_machine() -> None:
    used = CpuSeconds(router=5.0, engines=14.2, others=0.5, machine=19.8, wall_s=10.0)
    figures = cpu_figures(used, 10_000_000, num_cores=2)
    assert figures["router_cpu_s_per_million_tokens"] == pytest.approx(0.5)
    assert figures["engine_cpu_s_per_million_tokens"] == pytest.approx(1.42)
    assert "engine hosts 1.42" in what_is_full(figures, 2)
    router = CpuSeconds(router=9.5, engines=1.0, others=0.5, machine=11.0, wall_s=10.0)
    assert "router's process is full" in what_is_full(cpu_figures(router, 1, 2), 2)
    idle = CpuSeconds(router=1.0, engines=1.0, others=0.5, machine=3.0, wall_s=10.0)
    assert what_is_full(cpu_figures(idle, 1, 2), 2) == ""


class Process:
    def __init__(self, command: str) -> None:
        self._command = command

    def cmdline(self) -> list[str]:
        return self._command.split()


def test_processes_are_told_apart_by_their_command() -> None:
    processes = [Process("ray::ServeReplica:a:pool"), Process("raylet --x")]
    parts = [part for _, part in service_processes(processes, lambda command: "ServeReplica:a:pool" in command)]
    assert parts == ["engines", "others"]


def test_a_relay_passes_bytes_both_ways_and_late() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=_echo, args=(server,), daemon=True).start()
        near = ReplicaAddress(
            replica_id="r",
            model="m",
            pool="p",
            accelerator="A",
            node_id="",
            host="here",
            ipc_endpoint="ipc:///x",
            tcp_endpoint=f"tcp://127.0.0.1:{server.getsockname()[1]}",
            max_num_seqs=1,
            max_model_len=2,
            tp=1,
        )
        with far_away([near], delay_ms=20.0) as [far]:
            assert far.host != near.host
            assert far.ipc_endpoint == ""
            host, _, port = far.tcp_endpoint.removeprefix("tcp://").rpartition(":")
            with socket.create_connection((host, int(port)), timeout=10) as client:
                begin_s = time.monotonic()
                client.sendall(b"hello")
                assert client.recv(100) == b"hello"
                assert time.monotonic() - begin_s >= 0.04  # the least that two delays take


def _echo(server: socket.socket) -> None:
    connection, _ = server.accept()
    with connection:
        while data := connection.recv(100):
            connection.sendall(data)
