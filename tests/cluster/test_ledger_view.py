"""`nfold ledger` and the waterfall: the same figures in words and as a drawing."""

import io
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from fake_service import MODEL, NODE_NAMES, FakeRouter, baseline, two_nodes
from nfold.cluster.ledger import COLUMNS, Ledger, nothing_lost
from nfold.cluster.ledger_view import By, check_by, draw, ledger_of, render
from nfold.cluster.observer import EMPTY_REPORT, Observer, Reading
from nfold.cluster.status_page import status_json
from nfold.cluster.waterfall import waterfall_svg
from nfold.models.errors import ConfigError, StateError
from rich.console import Console

LEDGER = Ledger(
    window_s=60,
    measured=700,
    baseline=1000,
    columns={**nothing_lost(), "unhealthy": 125, "slow step": 165, "recompute": -10},
    saturated=True,
    hole_s=3.0,
)


def models(num_looks: int = 5, *, measured: bool = True, simulated: bool = False) -> dict[str, Any]:
    now_s = 100.0
    observer = Observer(lambda: now_s)
    router = FakeRouter("r", two_nodes())
    report = EMPTY_REPORT
    for _ in range(num_looks):
        now_s += 1.0
        baselines = [baseline(110.0)] if measured else []
        report = observer.observe(Reading([router.snapshot(now_s)], NODE_NAMES, baselines))
    return status_json(report, [MODEL] if simulated else [])["models"]


def text_of(told: dict[str, Any], by: By | None = None) -> str:
    out = io.StringIO()
    Console(width=120, color_system=None, file=out).print(render(told, None, by))
    return out.getvalue()


def test_all_columns_of_all_windows() -> None:
    text = text_of(models())
    assert all(f"  {column} " in text for column in (*COLUMNS, "unexplained"))
    header = text.splitlines()[1]
    assert [header.index(window) for window in ("10 s", "1 min", "10 min")] == sorted(
        header.index(window) for window in ("10 s", "1 min", "10 min")
    )
    assert "90.9%" in next(line for line in text.splitlines() if "scaling efficiency" in line)


@pytest.mark.parametrize("by", ["pool", "node", "replica"])
def test_its_parts(by: By) -> None:
    names: dict[By, tuple[str, ...]] = {
        "pool": ("cpu",),
        "node": ("node-0", "node-1"),
        "replica": ("replica-0", "replica-1"),
    }
    lines = text_of(models(), by).splitlines()
    for name in names[by]:
        assert "90.9%" in next(line for line in lines if line.startswith(name))


def test_what_is_simulated_says_so() -> None:
    assert "SIMULATED" in text_of(models(simulated=True))
    assert "SIMULATED" not in text_of(models())


def test_why_there_is_none() -> None:
    assert "no baseline; measure one with `nfold baseline`" in text_of(models(measured=False))
    assert "no ledger yet" in text_of(models(num_looks=1))
    with pytest.raises(StateError, match="no model named 'other'"):
        render(models(), "other")


def test_what_is_no_part_is_refused() -> None:
    assert check_by(None) is None
    assert check_by("node") == "node"
    with pytest.raises(ConfigError, match="must be pool, node or replica"):
        check_by("rack")


def test_figures_survive_the_way() -> None:
    told = models()[MODEL]["ledgers"]["10"]
    whole, nodes = ledger_of(told["model"]), [ledger_of(each) for each in told["nodes"].values()]
    assert whole.measured == pytest.approx(sum(node.measured for node in nodes))
    assert sum(whole.losses.values()) == pytest.approx(whole.gap)


def test_the_waterfall_goes_from_the_baselines_down_to_what_was_measured() -> None:
    root = ElementTree.fromstring(waterfall_svg(LEDGER, "llama <70b>", simulated=True))
    texts = [element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts[0] == "SIMULATED: llama <70b>"
    assert "70.0%" in texts[1]
    assert "3 s not accounted for" in texts[1]
    assert [text for text in texts if text in (*COLUMNS, "unexplained")] == [*COLUMNS, "unexplained"]
    shares = dict(zip(texts[3::2], texts[2::2], strict=True))
    assert shares["baselines"] == "100.0%"
    assert shares["slow step"] == "16.5%"
    assert shares["recompute"] == "-1.0%"
    assert shares["measured"] == "70.0%"


def test_it_is_drawn_into_a_file(tmp_path: Path) -> None:
    draw(models(), MODEL, tmp_path / "ledger.svg")
    assert (tmp_path / "ledger.svg").read_text().startswith("<svg")
    with pytest.raises(StateError, match="no ledger of 'other'"):
        draw(models(), "other", tmp_path / "no.svg")
