"""What Ray is started with."""

from pathlib import Path

import pytest
from nfold.deployments.config import HttpConfig
from nfold.deployments.ray_environment import ray_environment
from nfold.models.errors import ConfigError


def test_the_proxy_needs_nothing_of_haproxy() -> None:
    assert not any("HAPROXY" in name for name in ray_environment(HttpConfig(ingress="proxy")))


def test_clusters_on_one_machine_share_no_port_and_no_file() -> None:
    def side_ports(environment: dict[str, str]) -> set[str]:
        return {value for name, value in environment.items() if name.endswith(("METRICS_PORT", "STATS_PORT"))}

    first, second = (ray_environment(HttpConfig(), Path(name)) for name in ("/tmp/nf-1", "/tmp/nf-2"))
    assert len(side_ports(first)) == 2
    assert not side_ports(first) & side_ports(second)
    assert {value for value in first.values() if value.startswith("/tmp/nf-1")} == {
        "/tmp/nf-1",
        *(f"/tmp/nf-1/{name}" for name in ("haproxy.cfg", "admin.sock", "server-state", "metrics.sock")),
    }


def test_a_long_directory_is_refused() -> None:
    with pytest.raises(ConfigError, match="at most 24"):
        ray_environment(HttpConfig(), Path("/tmp/" + "x" * 20))
