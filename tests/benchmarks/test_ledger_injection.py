"""The ledger finds what was injected, within the benchmark's own goals; shorter runs than the benchmark's."""

from pathlib import Path

import ledger_injection as program
import ledger_injection_virtual as virtual
import pytest
from ledger_injection import CaseStore, measure
from ledger_injection_verdicts import GOALS, INJECTIONS, Case, Names, Verdict, judge, line_of, summary

# Short answers on few slots: what is in progress at the window's ends is little, although the window is short.
SETUP = virtual.Setup(15.0, 60.0, num_slots=64, mean_answer=50, delay_s=1.0, saturated_s=120.0)
NUM = 8
PAIRS: list[Names] = [("slow_20", "half_slots"), ("starved_pool", "delay"), ("dead_node", "no_demand")]


@pytest.fixture(scope="module")
def clean() -> Case:
    return measure(((), NUM, SETUP))


@pytest.fixture(scope="module")
def alone(clean: Case) -> dict[Names, Case]:
    return {}


def case(injections: Names, clean: Case, known: dict[Names, Case]) -> Case:
    if injections not in known:
        known[injections] = measure((injections, NUM, SETUP)).against(clean)
    return known[injections]


def within_goals(verdict: Verdict) -> bool:
    return all(error <= GOALS[name] for name, error in summary([verdict]).items())


def test_nothing_injected_nothing_found(clean: Case) -> None:
    verdict = judge(clean, {})
    assert within_goals(verdict), line_of(verdict)


@pytest.mark.parametrize("name", INJECTIONS)
def test_each_alone(name: str, clean: Case, alone: dict[Names, Case]) -> None:
    verdict = judge(case((name,), clean, alone), {})
    assert within_goals(verdict), line_of(verdict)
    assert max(verdict.true.values()) > 0.5, "there is something to be found"


@pytest.mark.parametrize("pair", PAIRS)
def test_in_pairs(pair: Names, clean: Case, alone: dict[Names, Case]) -> None:
    rests = {(name,): case((name,), clean, alone).rest for name in pair}
    verdict = judge(case(pair, clean, alone), rests)
    assert within_goals(verdict), line_of(verdict)


def test_shapley_shares_what_two_causes_lose_together() -> None:
    """Alone they lose 10 and 20, together 26: each gives up half of the 4 that both take."""
    found = dict.fromkeys((*program.COLUMNS, program.UNEXPLAINED), 0.0)
    both = Case(("half_slots", "delay"), NUM, measured=74.0, known={}, found=found, rest=26.0)
    verdict = judge(both, {("half_slots",): 10.0, ("delay",): 20.0})
    assert (verdict.true["underfilled"], verdict.true["control plane"]) == pytest.approx((8.0, 18.0))
    assert verdict.error_points == pytest.approx(18.0)


def test_a_run_goes_on_from_the_cases_that_are_kept(tmp_path: Path) -> None:
    found = dict.fromkeys((*program.COLUMNS, program.UNEXPLAINED), 1.0)
    one = Case(("slow_5", "delay"), NUM, measured=90.0, known={"slow step": 1.0}, found=found)
    CaseStore(tmp_path / "cases", SETUP).add(one)
    assert CaseStore(tmp_path / "cases", SETUP).cases == {(("slow_5", "delay"), NUM): one}
    assert CaseStore(tmp_path / "cases", virtual.Setup(15.0, 61.0)).cases == {}


def test_the_program_takes_its_arguments() -> None:
    args = program.parse(["--quick"])
    assert (args.accelerators, args.singles) == ([8], True)
    assert program.parse([]).accelerators == [8, 87]
