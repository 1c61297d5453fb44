"""What of Serve's configuration is mended, and what is not touched. `test_haproxy.py` shows what it does."""

from pathlib import Path

import pytest
from nfold.deployments.haproxy_config import mended

DIRECTORY = Path("/tmp/x")
CONFIG = """\
global
    stats socket /tmp/x/admin.sock mode 666 level admin expose-fd listeners
defaults
    errorfile 502 /tmp/x/500.http
    errorfile 503 /tmp/x/500.http
frontend prometheus
    bind :9101
    mode http
frontend http_frontend
    bind {host}:8000
    use_backend http-nfold if is_http-nfold
backend default_backend
    http-request return status 404
backend http-nfold
    option httpchk GET /-/healthz
    server a 10.0.0.1:30000 check observe layer4 error-limit 1 on-error mark-down
    server b 10.0.0.2:30000 check observe layer4 error-limit 1 on-error mark-down
    server proxy 10.0.0.1:8500 check backup
backend grpc-nfold
    option tcp-check
    server a 10.0.0.1:40000 proto h2 check
    server proxy 10.0.0.1:9500 proto h2 check backup
listen stats
  bind *:8404
  stats enable
"""


def sections(config: str) -> dict[str, list[str]]:
    """By their first lines."""
    found: dict[str, list[str]] = {}
    for line in config.splitlines():
        if line[0].isspace():
            found[list(found)[-1]].append(line.strip())
        else:
            found[line] = []
    return found


def mended_sections(host: str = "*") -> dict[str, list[str]]:
    return sections(mended(CONFIG.format(host=host), DIRECTORY))


@pytest.mark.parametrize("host", ["*", "127.0.0.1"])
def test_only_the_api_keeps_its_host(host: str) -> None:
    binds = {name: [line for line in lines if "bind" in line] for name, lines in mended_sections(host).items()}
    assert {name: lines for name, lines in binds.items() if lines} == {
        "frontend prometheus": ["bind 127.0.0.1:9101"],
        "frontend http_frontend": ["bind unix@/tmp/x/again.sock mode 600 id 2", f"bind {host}:8000"],
        "listen stats": ["bind 127.0.0.1:8404"],
    }


def test_the_admin_socket_is_its_owners() -> None:
    assert "stats socket /tmp/x/admin.sock mode 600 level admin expose-fd listeners" in mended_sections()["global"]


def test_serve_does_not_watch_the_clients_of_the_api() -> None:
    told = [
        name for name, lines in mended_sections().items() if any("disconnect-disabled ?1" in line for line in lines)
    ]
    assert told == ["frontend http_frontend"]


def test_errors_are_told_by_our_page() -> None:
    assert mended_sections()["defaults"] == [f"errorfile {status} /tmp/x/no_gateway.http" for status in (502, 503)]


def test_the_last_resort_is_haproxy_itself_and_no_gateway() -> None:
    servers = [line.split()[1:3] for line in mended_sections()["backend http-nfold"] if line.startswith("server ")]
    assert servers == [["a", "10.0.0.1:30000"], ["b", "10.0.0.2:30000"], ["itself", "unix@/tmp/x/again.sock"]]
    assert [line.split()[1] for line in mended_sections()["backend http-nfold-gateways"]] == ["a", "b"]


@pytest.mark.parametrize("name", ["backend default_backend", "backend grpc-nfold"])
def test_what_is_not_for_gateways_stays(name: str) -> None:
    assert mended_sections()[name] == sections(CONFIG)[name]
