"""A real Prometheus scrapes the observer and answers for tokens/s, efficiency and every panel of the dashboard."""

import json
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
from fake_service import NODE_NAMES, FakeRouter, baseline, two_nodes
from nfold.cluster.http_endpoint import HttpEndpoint
from nfold.cluster.observer import Observer, Reading, ServiceReport

DOCS = Path(__file__).parents[2] / "docs"
DASHBOARD = json.loads((DOCS / "grafana" / "nfold.json").read_text())
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
PATIENCE_S = 60.0


def program(name: str) -> str:
    """`make test` puts Debian's binary beside the virtual environment's Python."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if not found:
        pytest.fail(f"this test needs the {name} binary: run `make test`, or install Debian's package prometheus")
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class LiveService:
    """Two replicas of 90 tokens/s each since the epoch, looked at afresh by each scrape; the baseline is 100."""

    def __init__(self) -> None:
        self.start_s = time.monotonic()
        self.observer = Observer(time.monotonic)
        self.router = FakeRouter("r", two_nodes(rate=90.0), num_finished=7)

    def report(self) -> ServiceReport:
        now_s = time.monotonic()
        served = int(now_s - self.start_s)
        self.router.ttft_counts = (served, served, 0, 0)
        return self.observer.observe(Reading([self.router.snapshot(now_s)], NODE_NAMES, [baseline(100.0)]))


@dataclass
class Prometheus:
    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def query(self, expression: str) -> list[dict[str, Any]]:
        with urlopen(f"{self.url}/api/v1/query?{urlencode({'query': expression})}", timeout=10) as answer:
            body = json.load(answer)
        assert body["status"] == "success"
        return body["data"]["result"]

    def wait_for(self, expression: str) -> list[dict[str, Any]]:
        """The first answer that is not empty."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            assert self.process.poll() is None, f"prometheus ended:\n{self.log.read_text()[-2000:]}"
            try:
                if found := self.query(expression):
                    return found
            except URLError:
                pass  # it does not listen yet
            time.sleep(0.2)
        pytest.fail(f"no answer to {expression} in {PATIENCE_S:.0f} s:\n{self.log.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Runs with the example configuration of docs/, but for the target and the interval."""
    directory = tmp_path_factory.mktemp("prometheus")
    endpoint = HttpEndpoint(LiveService().report, "127.0.0.1", 0)
    example = (DOCS / "prometheus.yml").read_text()
    assert "127.0.0.1:9400" in example
    config = directory / "prometheus.yml"
    config.write_text(
        example.replace("127.0.0.1:9400", endpoint.url.removeprefix("http://")).replace(
            "interval: 5s", "interval: 1s"
        )
    )
    port, log = free_port(), directory / "log"
    command = [
        program("prometheus"),
        f"--config.file={config}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield Prometheus(f"http://127.0.0.1:{port}", process, log)
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        endpoint.close()


def test_tokens_per_second_by_node(prometheus: Prometheus) -> None:
    tokens = "nfold_output_tokens_total[5s]"
    found = prometheus.wait_for(f"sum by (node) (rate({tokens}) and count_over_time({tokens}) >= 5)")
    rates = {series["metric"]["node"]: float(series["value"][1]) for series in found}
    assert rates == pytest.approx({"node-0": 90.0, "node-1": 90.0}, rel=0.25)


def test_efficiency(prometheus: Prometheus) -> None:
    found = prometheus.wait_for('nfold_scaling_efficiency_ratio{window="10s"}')
    assert [series["metric"]["model"] for series in found] == ["nfold-sums"]
    assert float(found[0]["value"][1]) == pytest.approx(0.9, rel=0.05)


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_each_panel_has_data(prometheus: Prometheus, expression: str) -> None:
    found = prometheus.wait_for(expression.replace("$__rate_interval", "10s").replace("$model", ".*"))
    assert all("value" in series for series in found)


def test_the_dashboard_asks_for_the_model_where_it_may() -> None:
    names = {name for expression in EXPRESSIONS for name in re.findall(r"nfold_\w+", expression)}
    assert len(names) > 10
    assert all('model=~"$model"' in expression for expression in EXPRESSIONS if "replica_up" not in expression)
