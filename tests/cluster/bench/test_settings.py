from pathlib import Path

import mlperf_loadgen
import pytest
from nfold.cluster.bench.rules import Gate, rules_of
from nfold.cluster.bench.scenarios import Scenario
from nfold.cluster.bench.settings import Asked, run_settings
from nfold.cluster.bench.user_conf import parse_user_conf, read_user_conf
from nfold.models.errors import ConfigError


@pytest.mark.parametrize(
    ("workload", "scenario", "limits_ms", "count"),
    [
        ("llama2-70b", Scenario.SERVER, (2000, 200), 24_576),
        ("llama2-70b", Scenario.INTERACTIVE, (450, 40), 24_576),
        ("gpt-oss-120b", Scenario.SERVER, (3000, 80), 6_396),
        ("gpt-oss-120b", Scenario.INTERACTIVE, (2000, 15), 6_396),
    ],
)
def test_official_limits_come_from_loadgen(workload, scenario, limits_ms, count):
    settings = run_settings(rules_of(workload), scenario, count)
    values = settings.values
    assert (values["ttft_latency"], values["tpot_latency"]) == tuple(limit * 1_000_000 for limit in limits_ms)
    assert values["performance_sample_count_override"] == count
    assert settings.min_duration_s == 600
    assert settings.counts_tokens
    assert settings.departures == ()


def test_settings_reach_loadgen():
    asked = Asked(target_qps=12.5, min_duration_s=900)
    found = run_settings(rules_of("llama2-70b"), Scenario.SERVER, 24_576, asked=asked).test_settings()
    assert found.scenario == mlperf_loadgen.TestScenario.Server
    assert found.mode == mlperf_loadgen.TestMode.PerformanceOnly
    assert (found.server_target_qps, found.min_duration_ms) == (12.5, 900_000)


def test_accuracy_mode_is_loadgens():
    found = run_settings(rules_of("sums"), Scenario.OFFLINE, 10, accuracy=True).test_settings()
    assert found.mode == mlperf_loadgen.TestMode.AccuracyOnly


def test_a_short_run_says_that_it_is_one():
    settings = run_settings(rules_of("llama2-70b"), Scenario.OFFLINE, 24_576, asked=Asked(min_duration_s=20))
    assert settings.departures == ("short run: 20 s instead of 600 s",)


def test_fewer_samples_than_the_rules_want_are_told():
    settings = run_settings(rules_of("gpt-oss-120b"), Scenario.OFFLINE, 100)
    assert settings.departures == ("100 samples instead of 6396",)
    assert settings.values["performance_sample_count_override"] == 100


def test_own_workloads_have_limits_and_say_whose_they_are():
    settings = run_settings(rules_of("sums"), Scenario.INTERACTIVE, 10)
    assert settings.values["tpot_latency"] == 40_000_000
    assert settings.departures == ("sums is no workload of MLCommons",)


def test_own_workloads_are_asked_in_whole_passes_except_one_by_one():
    for scenario in Scenario:
        values = run_settings(rules_of("sums"), scenario, 10).values
        assert values["sample_concatenate_permutation"] is (scenario is not Scenario.SINGLE_STREAM)


def test_a_workload_without_samples_is_refused():
    with pytest.raises(ConfigError, match="no samples"):
        run_settings(rules_of("sums"), Scenario.OFFLINE, 0)


def test_a_scenario_that_a_workload_lacks_is_refused():
    with pytest.raises(ConfigError, match=r"gpt-oss-120b has Offline, Server, Interactive"):
        run_settings(rules_of("gpt-oss-120b"), Scenario.SINGLE_STREAM, 10)


def test_user_conf_sets_what_submitters_may_set():
    conf = parse_user_conf("# ours\nllama2-70b.Server.target_qps = 3650\n*.*.min_duration = 1200000\n")
    settings = run_settings(rules_of("llama2-70b"), Scenario.SERVER, 24_576, conf)
    assert (settings.target_qps, settings.min_duration_s, settings.departures) == (3650, 1200, ())


def test_the_closer_line_of_user_conf_wins():
    conf = parse_user_conf("llama2-70b.Offline.target_qps = 7\n*.Offline.target_qps = 3\n")
    assert conf.settings("llama2-70b", "Offline") == {"target_qps": 7}
    assert conf.settings("gpt-oss-120b", "Offline") == {"target_qps": 3}


def test_user_conf_may_not_loosen_the_rules_unseen():
    conf = parse_user_conf("*.Server.tpot_latency = 500\n")
    settings = run_settings(rules_of("llama2-70b"), Scenario.SERVER, 24_576, conf)
    assert settings.values["tpot_latency"] == 500_000_000
    assert "user.conf sets tpot_latency to 500" in settings.departures[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("*.Server.target_qqs = 3", r"user.conf, line 1: got 'target_qqs'; unknown key; known are target_qps"),
        ("\n*.Sever.target_qps = 3", r"line 2: got 'Sever'; the scenario must be one of Offline"),
        ("target_qps = 3", "a line reads MODEL.SCENARIO.KEY = VALUE"),
        ("*.Server.target_qps = fast", "target_qps must be a number"),
        ("*.Server.target_qps = -1", "target_qps must be a number from 0"),
        ("*.Server.target_qps = nan", "target_qps must be a number from 0"),
    ],
)
def test_a_wrong_line_of_user_conf_is_named(text, said):
    with pytest.raises(ConfigError, match=said):
        parse_user_conf(text)


def test_a_user_conf_that_is_not_there_is_told(tmp_path: Path):
    with pytest.raises(ConfigError, match="a readable text file"):
        read_user_conf(tmp_path / "user.conf")


def test_a_gate_says_what_is_missed():
    gate = Gate(metric="m", at_least={"a": 1.0, "b": 2.0}, at_most={"a": 3.0}, source="")
    assert gate.misses({"a": 2.0, "b": 2.0}) == []
    assert gate.misses({"a": 4.0}) == ["no b", "a 4.0000 is above 3.0000"]


def test_the_llama_gate_is_the_rules():
    gate = rules_of("llama2-70b").gate
    assert gate is not None
    passing = {"rouge1": 44.387, "rouge2": 22.014, "rougeL": 28.588, "tokens_per_sample": 283.0}
    assert gate.misses(passing) == []
    assert gate.misses(passing | {"tokens_per_sample": 330.0}) != []
    assert gate.misses(passing | {"rouge1": 44.0}) != []
