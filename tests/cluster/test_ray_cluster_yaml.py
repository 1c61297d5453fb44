"""The cluster file of real nodes: Ray takes it, and its environment is the one that nfold needs."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from nfold.cluster.provider.autoscaling import NODE_TYPE_LABEL, read_node_types
from nfold.cluster.provider.hosts_config import hosts_config
from nfold.cluster.provider.listed_hosts import ListedHosts
from nfold.deployments.config import HttpConfig
from nfold.deployments.haproxy import BINARY_VARIABLE, PROGRAM
from nfold.deployments.ray_environment import ray_environment
from ray._private.label_utils import parse_node_labels_string
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]
START_COMMANDS = ("head_start_ray_commands", "worker_start_ray_commands")


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())


def ray_start(config: dict[str, Any], key: str) -> str:
    commands = [command for command in config[key] if "ray start" in command]
    assert len(commands) == 1
    return commands[0]


def exported(command: str) -> dict[str, str]:
    """The variables of its one `export`."""
    exports = [part.strip() for part in command.split(";") if part.strip().startswith("export ")]
    assert len(exports) == 1
    return dict(word.split("=", 1) for word in shlex.split(exports[0])[1:])


def options(command: str) -> dict[str, str]:
    return dict(re.findall(r"--([a-z-]+)(?:=(\S+))?", command.split("ray start", 1)[1]))


def test_ray_takes_the_file(config: dict[str, Any]) -> None:
    prepared = ListedHosts.bootstrap_config(prepare_config(config))
    validate_config(prepared)
    provider = hosts_config(prepared["provider"])
    assert provider.ssh_user == config["auth"]["ssh_user"]
    assert provider.start_commands == tuple(config["worker_start_ray_commands"])
    assert provider.setup_commands == tuple(config["setup_commands"])
    assert provider.copy_paths == ("~/nfold", "~/.ray/auth_token")


def test_each_listed_host_can_be_asked_for(config: dict[str, Any]) -> None:
    types = {each.name: each for each in read_node_types(ROOT / "ray_cluster.yaml")}
    hosts = hosts_config(ListedHosts.bootstrap_config(prepare_config(config))["provider"]).hosts
    assert {name: len(listed) for name, listed in hosts.items()} == {"mi355x-8": types["mi355x-8"].max_nodes}
    assert types["mi355x-8"].labels == {NODE_TYPE_LABEL: "mi355x-8"}
    assert types["mi355x-8-head"].max_nodes == 1
    assert {each.accelerator for each in types.values()} == {"AMD-Instinct-MI355X-OAM"}
    assert config["max_workers"] == types["mi355x-8"].max_nodes


@pytest.mark.parametrize("key", START_COMMANDS)
def test_each_start_has_the_environment_and_the_token(config: dict[str, Any], key: str) -> None:
    environment = exported(ray_start(config, key))
    assert environment.pop("RAY_AUTH_MODE") == "token"
    expected = {**ray_environment(HttpConfig()), BINARY_VARIABLE: f"$HOME/nfold-venv/bin/{PROGRAM}"}
    assert environment == expected


@pytest.mark.parametrize("key", START_COMMANDS)
def test_each_node_is_found_by_prometheus_and_labelled(config: dict[str, Any], key: str) -> None:
    given = options(ray_start(config, key))
    assert given["metrics-export-port"] == "8080"
    assert parse_node_labels_string(given["labels"]) == {"nfold-cluster": "mi355x"}
    assert "num-gpus" not in given, "Ray counts the healthy ones"


def test_the_token_and_the_code_reach_each_node(config: dict[str, Any]) -> None:
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert config["file_mounts"]["~/nfold"] == "."
    setup = "\n".join(config["setup_commands"])
    assert "$HOME/nfold[serve]" in setup
    assert "amdsmi" in setup
    assert "RAY_AUTH_MODE=token" in setup, "for `ray status` and `nfold serve` in a login shell"
