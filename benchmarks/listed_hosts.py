"""Over real ssh: `ray up` of `ray_cluster.yaml`, then the controller adds a listed host under load and removes it
when idle.

    sudo -E python benchmarks/listed_hosts.py [--keep DIRECTORY]

Hosts are network, pid, mount and uts namespaces of this machine, each with its own sshd (see
tests/support/netns_hosts.sh; needs root, iproute2, util-linux, openssh-server and rsync). Of the cluster file only
what is marked EDIT there is replaced, accelerators are simulated, and nothing is installed. The first listed host
does not exist, and has to be passed over. Last line: JSON.
"""

import argparse
import contextlib
import json
import os
import secrets
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from autoscaling_decisions import ACCELERATOR, ENGINE, await_nodes, decisions, num_flaps
from autoscaling_drive import ClientProcess
from nfold.cluster.config import NfoldConfig
from nfold.cluster.load import LoadSettings
from nfold.cluster.service import api_url, start_service, stop_service
from nfold.deployments.placement import simulated_resources
from nfold.models.settings import Settings

ROOT = Path(__file__).parents[1]
ENVIRONMENT = Path(sys.prefix)
NET = "10.77.0"
HEAD, SILENT = f"{NET}.1", f"{NET}.9"
NUM_HOSTS = 3
TYPE, MODEL = "h200-1", "big"
# Of the requests that keep one node busy; and the tokens of the longest answers.
MORE_THAN_ONE_NODE, ANSWER = 1.2, 100
LAUNCHER = "100"


class Machines:
    """The namespaces, until the block ends."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._hosts: subprocess.Popen[str] | None = None
        self._prefix = ""

    def __enter__(self) -> "Machines":
        script = [str(ROOT / "tests/support/netns_hosts.sh"), str(self.directory), str(NUM_HOSTS), str(ENVIRONMENT)]
        self._hosts = subprocess.Popen(["bash", *script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._hosts.stdout is not None
        word, _, self._prefix = self._hosts.stdout.readline().strip().partition(" ")
        if word != "ready":
            raise SystemExit("the namespaces could not be made; see above")
        return self

    def __exit__(self, *exception: object) -> None:
        assert self._hosts is not None
        assert self._hosts.stdin is not None
        self._hosts.stdin.close()
        self._hosts.wait(30)

    def launch(self, *command: str) -> None:
        """On the machine beside the hosts, with a home and a /tmp/ray of its own."""
        for name in ("home", "ray"):
            (self.directory / name).mkdir(exist_ok=True)
        own = f"mount --bind {self.directory}/ray /tmp/ray && exec {shlex.join(command)}"
        Path("/tmp/ray").mkdir(exist_ok=True)
        variables = {
            "HOME": f"{self.directory}/home",
            "TMPDIR": str(self.directory),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        subprocess.run(
            ["ip", "netns", "exec", f"{self._prefix}-{LAUNCHER}", "unshare", "--mount", "bash", "-c", own],
            env={**os.environ, **variables, "PATH": f"{ENVIRONMENT}/bin:{os.environ['PATH']}"},
            check=True,
            timeout=300,
        )

    def on(self, host: str, command: str, timeout_s: float = 300) -> str:
        """Standard output of a command in a login shell there; what it prints is shown as it comes."""
        options = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
        login = f"bash --login -i -c {shlex.quote(f'source ~/.bashrc; {command}')} 2>&1"
        ssh = ["ssh", "-i", f"{self.directory}/key", *options.split(), f"root@{host}", login]
        lines: list[str] = []
        with subprocess.Popen(
            ["ip", "netns", "exec", f"{self._prefix}-{LAUNCHER}", "timeout", f"{timeout_s:g}", *ssh],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if "job control" not in line and "terminal process group" not in line:
                    lines.append(line)
                    print(f"    {line}" if not line.startswith("{") else "", end="", flush=True)
        if process.returncode:
            raise SystemExit(f"{host}: `{command}` ended with status {process.returncode}")
        return "".join(lines)


def cluster_yaml(directory: Path) -> dict[str, Any]:
    """`ray_cluster.yaml` for these hosts."""
    config = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())
    resources = {"CPU": 1.0, **simulated_resources(ACCELERATOR, 1, 1)}
    head_type = config["head_node_type"]
    config["provider"] |= {"head_ip": HEAD, "hosts": {TYPE: [SILENT, f"{NET}.2", f"{NET}.3"]}}
    config["available_node_types"] = {
        head_type: config["available_node_types"][head_type] | {"resources": resources},
        TYPE: {"resources": resources, "labels": {"nfold-node-type": TYPE}, "node_config": {}, "max_workers": 2},
    }
    config["auth"] = {"ssh_user": "root", "ssh_private_key": f"{directory}/key"}
    config["file_mounts"] = {"~/.ray/auth_token": f"{directory}/auth_token"}
    config["setup_commands"] = []
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        config[key] = [_start_command(command) for command in config[key]]
    return config


def _start_command(command: str) -> str:
    """Simulated accelerators are what the node type says; the rest is as in the file."""
    command = command.replace("$HOME/nfold-venv", str(ENVIRONMENT)).replace(" RAY_OVERRIDE_RESOURCES;", ";")
    return command.replace("--object-store-memory=2147483648", "--object-store-memory=80000000 --num-cpus=1")


def measure(directory: Path, seconds: dict[str, float]) -> dict[str, Any]:
    (directory / "auth_token").write_text(secrets.token_hex(32))
    path = directory / "cluster.yaml"
    path.write_text(yaml.safe_dump(cluster_yaml(directory)))
    with Machines(directory) as machines:
        with _timed("hosts and ray up", seconds):
            machines.launch("ray", "up", "-y", "--no-config-cache", "--disable-usage-stats", str(path))
        try:
            with _timed("serving", seconds):
                said = machines.on(HEAD, f"cd {ROOT} && python benchmarks/listed_hosts.py --on-head")
        except SystemExit:
            machines.on(HEAD, "tail -n 60 /tmp/ray/session_latest/logs/monitor.* | grep -v legacy; ray status")
            raise
        with _timed("ray down", seconds):
            machines.launch("ray", "down", "-y", str(path))
        return json.loads(said.splitlines()[-1])


@contextlib.contextmanager
def _timed(name: str, seconds: dict[str, float]) -> Iterator[None]:
    begin = time.monotonic()
    print(f"  {name}", flush=True)
    yield
    seconds[name] = round(time.monotonic() - begin, 1)


def service_config() -> NfoldConfig:
    scaling = {
        "max_nodes": 2,
        "idle_before_removal_s": 10,
        "provision_s": 20,
        "load_s": 10,
        "backlog_within_s": 30,
        "give_up_s": 120,
    }
    return NfoldConfig.model_validate(
        {
            "name": "hosts",
            "cluster": {"address": "auto"},
            "drain_timeout_s": 60,
            "models": [
                {
                    "name": MODEL,
                    "path": "simulated",
                    "pools": [{"accelerator": ACCELERATOR, "num_replicas": 1}],
                    "engine": ENGINE,
                    "max_queued_requests": 8192,
                }
            ],
            "controller": {"enabled": True, "tick_s": 1, "models": {MODEL: scaling}},
        }
    )


def serve_on_head() -> dict[str, Any]:
    """What is done on the head: serve, step the load up and down, look at what the controller does."""
    config, home = service_config(), Settings.from_environment().home
    state = start_service(config, home, lambda text: print(text, flush=True))
    try:
        from nfold.cluster.measuring import take_baseline

        short = LoadSettings(warmup_s=2.0, window_s=5.0)
        baseline = take_baseline(
            config, home, MODEL, lambda text: None, repeats=1, settings=short, curve=False, roofline=False
        )
        told = f"{baseline.tokens_per_s:,.0f} tokens/s (simulated) with {baseline.concurrency} requests"
        print(f"one node: {told}", flush=True)
        with ClientProcess(api_url(config), ANSWER, "--whole") as clients:
            figures = watch(config, clients, int(MORE_THAN_ONE_NODE * baseline.concurrency))
        return figures | decisions(home, config.name)
    finally:
        stop_service(state, home, lambda text: None)


def watch(config: NfoldConfig, clients: ClientProcess, streams: int) -> dict[str, Any]:
    """The controller adds the host that answers, and gives it back."""
    from nfold.cluster.controller.actuation import NodeState
    from nfold.cluster.controller.actuator import RayActuator, find_node_types

    actuator, begin = RayActuator(config, find_node_types(config)), time.monotonic()
    moves: list[dict[str, Any]] = []
    for wanted, hosts in ((streams, 1), (2, 0)):
        clients.want({MODEL: wanted})
        moves += await_nodes(actuator, TYPE, hosts, 1 + hosts, begin)
    ended = clients.end()
    refused = [node for node in actuator.observe().nodes if node.state == NodeState.FAILED]
    for node in refused:
        print(f"{node.node_id}: {node.reason}", flush=True)
    return {
        "events": len(moves),
        "num_failed": ended["num_failed"],
        "num_cut": ended["num_cut"],
        "num_done": ended["num_done"],
        "first_error": ended["first_error"] or ended["first_cut"],
        "flaps": num_flaps(moves),
        "list": moves,
        "passed_over": sorted({node.node_id for node in refused}),
        "simulated": True,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--on-head", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--keep", type=Path, help="a directory for keys and logs, instead of one that goes away")
    args = parser.parse_args()
    if args.on_head:
        print(json.dumps(serve_on_head()))
        return
    if os.geteuid():
        raise SystemExit("needs root, for the namespaces")
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="nfold-hosts-") as temporary:
        figures = measure(args.keep or Path(temporary), seconds)
    from nfold.cluster.provenance import provenance

    line = {"benchmark": "listed_hosts", **figures, "seconds": seconds, "provenance": provenance().model_dump()}
    print(json.dumps(line))
    if wrong := shortcomings(figures):
        raise SystemExit("not as it should be: " + "; ".join(wrong))


def shortcomings(figures: dict[str, Any]) -> list[str]:
    """What of the claim does not hold."""
    moves = [(move["before"], move["nodes"]) for move in figures["list"]]
    claims = {
        f"the host was to come and go once, and there were {moves}": moves == [(0, 1), (1, 0)],
        f"{figures['num_failed']} requests failed: {figures['first_error']}": figures["num_failed"] == 0,
        f"{figures['num_cut']} requests were cut": figures["num_cut"] == 0,
        "no request was answered": figures["num_done"] > 0,
        f"the controller kept {figures['decisions']} decisions": figures["decisions"] >= 2,
        f"passed over were {figures['passed_over']}, not the silent host": figures["passed_over"] == [SILENT],
    }
    return [what for what, holds in claims.items() if not holds]


if __name__ == "__main__":
    main()
