"""A record beside what others published."""

from pathlib import Path

import pytest
from nfold.cluster.bench.published_beside import published_beside
from nfold.cluster.bench.published_results import PUBLISHED, published_efficiency
from nfold.cluster.bench.record import RunRecord
from nfold.cluster.bench.report import write_report
from nfold.cluster.bench.scenarios import Scenario
from nfold.cluster.bench.show import render_record
from rich.console import Console
from run_records import make_record, write_record


def simulated_record(num_accelerators: int, figure: float) -> RunRecord:
    """Offline on simulated MI355X; its ledger explains what 2000 tokens/s less than `figure` are."""
    record = make_record((figure,), simulated=True, workload="llama2-70b-99.9")
    point = record.points[1].model_copy(update={"num_accelerators": num_accelerators})
    model = record.model.model_copy(update={"accelerator": "simulated-MI355X"})
    return record.model_copy(update={"points": [record.points[0], point], "model": model})


def test_a_multinode_result_is_known_by_its_own_single_node() -> None:
    multinode = next(
        each
        for each in PUBLISHED
        if (each.num_accelerators, each.scenario, each.workload) == (87, Scenario.OFFLINE, "llama2-70b")
    )
    assert published_efficiency(multinode) == pytest.approx(0.926, abs=5e-4)
    alone = next(each for each in PUBLISHED if each.num_accelerators == 8)
    assert published_efficiency(alone) is None


def test_87_accelerators_stand_beside_amds_and_the_ledger_says_where_the_rest_went(tmp_path: Path) -> None:
    record = simulated_record(87, 1_900.0)
    [beside] = published_beside(record)
    assert beside.result.tokens_per_s == 1_042_110
    assert beside.share == pytest.approx(1_900 / 1_042_110)
    assert beside.explanation == (
        "the published run is at 92.6% of as many accelerators of its own single node; this record at 95.0% of its "
        "own; it lost 4.0% starved, 1.0% unexplained"
    )
    page = write_report(write_record(record, tmp_path / "r"), tmp_path / "page").read_text()
    console = Console(width=300, record=True)
    console.print(render_record(record))
    for text in (page, console.export_text()):
        assert "1,042,110" in text
        assert "(simulated)" in text
        assert "at 92.6% of as many accelerators" in text


def test_below_saturation_the_load_of_both_is_said_and_what_was_won_too() -> None:
    record = simulated_record(94, 1_900.0)
    workload = record.workload.model_copy(update={"name": "gpt-oss-120b", "scenario": Scenario.SERVER})
    point = record.points[1]
    run = point.runs[0]
    assert run.ledger is not None
    losses = {"no demand": 160.0, "underfilled": -40.0, "unexplained": -20.0, "starved": 1.0}
    ledger = run.ledger.model_copy(update={"efficiency": None, "losses": losses})
    run = run.model_copy(update={"ledger": ledger, "target_qps": 668.2})
    points = [record.points[0], point.model_copy(update={"runs": [run]})]
    [beside] = published_beside(record.model_copy(update={"workload": workload, "points": points}))
    assert beside.result.tokens_per_s == 900_054
    assert beside.explanation == (
        "668 queries/s were sent here, 705 there; the published run is at 93.3% of as many accelerators of its own "
        "single node; this record at 95.0% of its own; it lost 8.0% no demand; it won 2.0% underfilled, 1.0% "
        "unexplained"
    )


def test_other_accelerators_and_numbers_stand_alone() -> None:
    assert published_beside(simulated_record(16, 1_900.0)) == []
    assert published_beside(make_record()) == []
