import pytest
from nfold.cluster.bench.balance import slowest_nodes
from nfold.cluster.bench.differences import differences
from nfold.cluster.bench.equivalence import Verdict, compare, whole_verdict
from nfold.cluster.bench.order import order_of
from nfold.cluster.bench.scenarios import Scenario
from nfold.cluster.bench.show_verdict import render_comparison, render_judgement
from nfold.cluster.bench.verdict import judge_records
from nfold.models.errors import StateError
from rich.console import Console
from run_records import make_record

SAME = (1900.0, 1901.0, 1899.0)


def test_equal_repeats_are_reproduced():
    found = compare([100.0, 100.2, 99.9], [100.1, 99.8, 100.0], 0.02)
    assert found.verdict is Verdict.REPRODUCED
    assert found.low is not None
    assert found.high is not None
    assert 0.98 < found.low < 1 < found.high < 1.02


def test_a_clear_difference_is_not_reproduced():
    assert compare([100.0, 100.2, 99.9], [95.0, 95.2, 94.9], 0.02).verdict is Verdict.NOT_REPRODUCED


def test_noise_is_inconclusive_and_says_how_many_more():
    found = compare([100.0, 103.0, 98.0], [101.0, 99.0, 102.0], 0.02)
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.num_more is None or found.num_more >= 1
    quieter = compare([100.0, 100.4, 99.7, 100.1, 99.9], [100.9, 101.4], 0.02)
    assert quieter.verdict is Verdict.INCONCLUSIVE
    assert quieter.num_more is not None
    assert 1 <= quieter.num_more <= 10


def test_one_repeat_is_never_enough():
    found = compare([100.0, 100.0], [100.0], 0.02)
    assert (found.verdict, found.num_more, found.low) == (Verdict.INCONCLUSIVE, 2, None)
    assert compare([100.0], [100.0], 0.02).num_more is None


def test_one_measure_that_differs_decides():
    good, bad = compare([1.0, 1.0], [1.0, 1.0], 0.02), compare([1.0, 1.0], [0.9, 0.9], 0.02)
    assert whole_verdict([good, good]) == (Verdict.REPRODUCED, 0)
    assert whole_verdict([good, bad])[0] is Verdict.NOT_REPRODUCED


def test_a_record_is_reproduced_by_itself():
    found = judge_records(make_record(), make_record())
    assert (found.verdict, found.differences) == (Verdict.REPRODUCED, [])
    assert found.sentence == "reproduced within ±2.0%"


def test_a_slow_node_is_found_and_ranked_first():
    here = make_record(slow=0.05)
    provenance = here.provenance.model_copy(update={"versions": {"nfold": "0.2.0"}})
    here = here.model_copy(update={"provenance": provenance})
    found = judge_records(make_record(), here)
    assert found.verdict is Verdict.NOT_REPRODUCED
    assert str(found.differences[0]) == (
        "speed of node-1 against the other nodes: the slowest is 0.0% below there, 5.0% below here"
    )
    assert str(found.differences[1]) == "version of nfold: 0.1.0 there, 0.2.0 here"


def with_speeds(record, *speeds: float):
    """Each of its runs on two nodes with the second as fast as this against the first."""
    point = record.whole
    runs = [
        run.model_copy(update={"node_speeds": {"node-0": 1.0, "node-1": speed}})
        for run, speed in zip(point.runs, speeds, strict=True)
    ]
    points = [*record.points[:-1], point.model_copy(update={"runs": runs})]
    return record.model_copy(update={"points": points})


def test_a_node_is_judged_by_its_steps_where_these_are_known():
    """Under Server's load both nodes brought the same tokens/s, and the figure is the same."""
    server = make_record().workload.model_copy(update={"scenario": Scenario.SERVER})
    there, here = (
        with_speeds(make_record(), *speeds).model_copy(update={"workload": server})
        for speeds in ((1.001, 0.999, 1.0), (0.952, 0.953, 0.951))
    )
    found = judge_records(there, here)
    assert found.verdict is Verdict.NOT_REPRODUCED
    assert found.measures["tokens/s"].verdict is Verdict.REPRODUCED
    assert str(found.differences[0]).startswith("speed of node-1 against the other nodes: the slowest is 0.")
    assert judge_records(there, there).verdict is Verdict.REPRODUCED


def test_what_a_router_gave_a_node_to_do_says_nothing_of_it():
    there, here = (
        record.model_copy(
            update={"workload": record.workload.model_copy(update={"scenario": Scenario.SINGLE_STREAM})}
        )
        for record in (make_record(), make_record(slow=0.3))
    )
    found = judge_records(there, here)
    assert (found.verdict, found.differences) == (Verdict.REPRODUCED, [])


def test_nodes_with_fewer_accelerators_are_not_slower():
    """Seven of eight: tokens/s by accelerator count."""
    there, here = make_record(slow=1 / 8), make_record(slow=1 / 8)
    nodes = [there.nodes[0].model_copy(update={"healthy": 8}), there.nodes[1].model_copy(update={"healthy": 7})]
    there, here = (record.model_copy(update={"nodes": nodes}) for record in (there, here))
    assert slowest_nodes(here, by_steps=False) == pytest.approx([1.0, 1.0, 1.0])
    assert judge_records(there, here).verdict is Verdict.REPRODUCED


def test_a_changed_engine_setting_is_ranked_first():
    here = make_record((1700.0, 1702.0, 1699.0), settings={"max_num_seqs": 128})
    found = judge_records(make_record(), here)
    assert found.verdict is Verdict.NOT_REPRODUCED
    assert str(found.differences[0]) == "engine setting max_num_seqs: 256 there, 128 here"


def test_too_few_repeats_are_inconclusive():
    found = judge_records(make_record(), make_record((1900.0,)))
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "2 more repeats needed" in found.sentence


def test_a_record_of_one_repeat_needs_more_itself():
    found = judge_records(make_record((1900.0,)), make_record())
    assert found.sentence == "inconclusive, repeats here alone cannot decide within ±2.0%: the record needs more"


def test_records_of_other_workloads_are_not_held_against_each_other():
    other = make_record()
    workload = other.workload.model_copy(update={"scenario": Scenario.SERVER})
    found = judge_records(make_record(), other.model_copy(update={"workload": workload}))
    assert found.sentence == "inconclusive: they are of different workloads or scenarios"


def test_invalid_runs_prove_nothing():
    here = make_record()
    point = here.whole
    runs = [run.model_copy(update={"valid": False}) for run in point.runs]
    points = [here.points[0], point.model_copy(update={"runs": runs})]
    found = judge_records(make_record(), here.model_copy(update={"points": points}))
    assert found.sentence == "inconclusive: no run here is valid"


def test_injected_faults_are_found_by_their_effect_not_by_their_name():
    there, here = make_record(settings={"faults": ""}), make_record(settings={"faults": "slow"})
    assert differences(there, here) == []


def test_memory_that_moves_a_little_is_no_difference():
    there, here = make_record(settings={"num_kv_blocks": 1000}), make_record(settings={"num_kv_blocks": 1050})
    assert differences(there, here) == []


def test_a_verdict_and_a_comparison_are_readable():
    console = Console(width=160, record=True)
    console.print(render_judgement(judge_records(make_record(), make_record(slow=0.05))))
    console.print(render_comparison([("a", make_record()), ("b", make_record((1700.0,), simulated=True))]))
    text = console.export_text()
    for part in ("not reproduced within ±2.0%", "1. speed of node-1", "89.5%", "SIMULATED", "engine: native there"):
        assert part in text


def test_verify_runs_what_the_record_ran():
    order = order_of(make_record())
    assert (order.nodes, order.repeats, order.min_duration_s) == ((2,), 3, 600)
    assert (order.target_qps, order.num_samples, order.accuracy) == (100.0, 512, False)


def test_verify_wants_the_file_that_the_record_was_made_with():
    record = make_record()
    workload = record.workload.model_copy(update={"data_file": "orca.pkl"})
    with pytest.raises(StateError, match=r"give that file with --data"):
        order_of(record.model_copy(update={"workload": workload}))
