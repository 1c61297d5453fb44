"""What Ray is started with, and HAProxy's ports kept on this machine."""

from pathlib import Path

import pytest
from nfold.deployments.config import HttpConfig
from nfold.deployments.haproxy import mended
from nfold.deployments.ray_environment import ray_environment
from nfold.models.errors import ConfigError

CONFIG = """\
global
    stats socket /tmp/x/admin.sock mode 666 level admin expose-fd listeners
frontend prometheus
    bind :9101
    mode http
frontend http_frontend
    bind {host}:8000
listen stats
  bind *:8404
  stats enable
"""


@pytest.mark.parametrize("host", ["*", "127.0.0.1"])
def test_only_the_api_keeps_its_host(host: str) -> None:
    binds = [line.strip() for line in mended(CONFIG.format(host=host)).splitlines() if "bind" in line]
    assert binds == ["bind 127.0.0.1:9101", f"bind {host}:8000", "bind 127.0.0.1:8404"]


def test_the_admin_socket_is_its_owners() -> None:
    assert "admin.sock mode 600 level admin" in mended(CONFIG)


def test_serve_does_not_watch_the_clients_of_the_api() -> None:
    frontend = mended(CONFIG).partition("frontend http_frontend\n")[2].partition("listen stats")[0]
    assert "http-request set-header x-request-disconnect-disabled ?1\n" in frontend
    assert mended(CONFIG).count("disconnect-disabled") == 1


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
