"""The terminal report says the same without colour, and never states an efficiency that was not earned."""

import io
from dataclasses import replace

from nfold.cluster.ledger import Ledger, nothing_lost
from nfold.cluster.report import ScalingReport, render
from rich.console import Console

LOST = {**nothing_lost(), "no demand": 10, "starved": 40}
SATURATED = Ledger(window_s=20, measured=1850, baseline=2000, columns=LOST, saturated=True)
REPORT = ScalingReport(
    model="nfold-sums",
    workload="sums",
    one_node_tokens_per_s=1000,
    one_node_spread=0.021,
    num_nodes=2,
    node_tokens_per_s={"node-1": 930, "node-0": 920},
    ledger=SATURATED,
    exact_share=0.9987,
    addresses={"API": "http://127.0.0.1:8000/v1", "metrics": "http://127.0.0.1:9400/metrics"},
)


def text_of(report: ScalingReport) -> str:
    out = io.StringIO()
    Console(width=100, color_system=None, file=out).print(render(report))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def test_plain_text() -> None:
    assert text_of(REPORT) == "\n".join(
        [
            "nfold-sums under sums on 2 nodes",
            "one node (baseline)  1,000 tokens/s  spread 2.1%",
            "2 nodes              1,850 tokens/s  1.85 times one node",
            "  node-0               920 tokens/s",
            "  node-1               930 tokens/s",
            "scaling efficiency 92.5% over 20 s · 99.87% of answers exact",
            "",
            "where it went     tokens/s   share",
            "measured             1,850   92.5%  ██████████████████████████████",
            "no demand               10    0.5%",
            "starved                 40    2.0%  █",
            "unexplained            100    5.0%  ██",
            "sum of baselines     2,000  100.0%",
            "",
            "API      http://127.0.0.1:8000/v1",
            "metrics  http://127.0.0.1:9400/metrics",
        ]
    )


def test_below_saturation_it_speaks_of_headroom() -> None:
    text = text_of(replace(REPORT, ledger=replace(SATURATED, saturated=False, measured=500)))
    assert "headroom 10 tokens/s" in text
    assert "efficiency 25" not in text


def test_faster_than_the_baseline_shows_a_negative_rest() -> None:
    text = text_of(replace(REPORT, ledger=replace(SATURATED, measured=2100, columns=nothing_lost())))
    assert "scaling efficiency 105.0%" in text
    assert "unexplained           -100   -5.0%" in text


def test_simulated_and_failed_are_said() -> None:
    text = text_of(replace(REPORT, simulated=True, num_failed=3))
    assert text.startswith("SIMULATED")
    assert "3 requests FAILED" in text
