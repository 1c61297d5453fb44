"""Submission trees out of run records, by the rules of MLCommons' checker."""

import hashlib
import json
import re
from collections import deque
from pathlib import Path

import mlperf_loadgen
import numpy as np
import pytest
from nfold.cluster.bench.record import AccuracyFacts, LoadgenFacts, RunRecord
from nfold.cluster.bench.record_store import seal
from nfold.cluster.bench.rounds import ROUNDS, round_of
from nfold.cluster.bench.rules import rules_of
from nfold.cluster.bench.scenarios import Scenario
from nfold.cluster.bench.settings import RunSettings, loadgen_version, run_settings
from nfold.cluster.bench.submission import write_submission
from nfold.models.errors import ConfigError, StateError
from run_records import make_record, write_record
from submission_rules import problems

LLAMA = "llama2-70b-99.9"
NUM_SAMPLES = 24_576
PASSING = {"rouge1": 44.5, "rouge2": 22.1, "rougeL": 28.7, "tokens_per_sample": 294.0}


def run_loadgen(settings: RunSettings, directory: Path) -> None:
    """The real LoadGen, whose queries are answered at once with eight tokens."""
    arrived: deque[list[int]] = deque()
    tokens = np.arange(8, dtype=np.int32)

    def issue(ids: list[int], indices: list[int]) -> None:
        answer = mlperf_loadgen.QuerySampleResponse
        mlperf_loadgen.QuerySamplesComplete([answer(each, tokens.ctypes.data, tokens.nbytes, 8) for each in ids])
        arrived.append(indices)

    log = mlperf_loadgen.LogSettings()
    log.enable_trace = False
    log.log_output.outdir = str(directory)
    log.log_output.copy_summary_to_stdout = False
    sut = mlperf_loadgen.ConstructFastSUT(issue, lambda: None)
    qsl = mlperf_loadgen.ConstructQSL(NUM_SAMPLES, NUM_SAMPLES, lambda rows: None, lambda rows: None)
    mlperf_loadgen.StartTestWithLogSettings(sut, qsl, settings.test_settings(), log)
    mlperf_loadgen.DestroyQSL(qsl)
    mlperf_loadgen.DestroyFastSUT(sut)
    assert sum(map(len, arrived)) >= NUM_SAMPLES


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunRecord, Path]:
    """A record of Llama 2 70B Offline with LoadGen's own logs of both modes."""
    directory = tmp_path_factory.mktemp("records") / "offline"
    performance, accuracy = (
        run_settings(rules_of("llama2-70b"), Scenario.OFFLINE, NUM_SAMPLES, accuracy=each) for each in (False, True)
    )
    facts = AccuracyFacts(
        metric="rouge",
        scores=PASSING,
        at_least={},
        at_most={},
        misses=[],
        gate="",
        num_samples=NUM_SAMPLES,
        logs="accuracy",
    )
    loadgen = LoadgenFacts(
        version=loadgen_version(), key=performance.key, settings=performance.values, user_conf=""
    )
    record = make_record(workload=LLAMA, settings={"dtype": "bfloat16"}, accuracy=facts, loadgen=loadgen)
    write_record(record, directory)
    run_loadgen(performance, directory / record.whole.typical.logs)
    run_loadgen(accuracy, directory / "accuracy")
    seal(record, directory)
    return record, directory


def seeds_of(record: RunRecord) -> dict[str, int]:
    found = round_of(record.loadgen.settings)
    assert found is not None, "a new wheel: its round's seeds belong into rounds.py"
    return dict(found.seeds)


def test_what_the_checker_would_miss_is_what_nfold_lists(offline: tuple[RunRecord, Path], tmp_path: Path) -> None:
    record, directory = offline
    assert (directory / "accuracy/mlperf_log_accuracy.json").stat().st_size > 100 * 1024
    missing = write_submission([directory], tmp_path / "out", submitter="Us")
    found = problems(tmp_path / "out", seeds_of(record))
    fields = {each.removesuffix(" is empty") for each in found if each.endswith(" is empty")}
    assert fields
    assert fields == {each for each in missing if each.startswith("systems/")}
    assert set(found) - {f"{field} is empty" for field in fields} == {
        f"{LLAMA}: lacks Server or Interactive",
        f"{LLAMA}/Offline: TEST06 is missing",
    }
    assert f"{LLAMA}: Server or Interactive, one of which is required" in missing
    assert f"{LLAMA}/Offline: compliance run TEST06" in missing


def test_with_what_people_fill_in_only_the_runs_are_missing_that_nfold_does_not_make(
    offline: tuple[RunRecord, Path], tmp_path: Path
) -> None:
    record, directory = offline
    missing = write_submission([directory], tmp_path / "out", submitter="Us")
    [path] = (tmp_path / "out/closed/Us/systems").iterdir()
    description = json.loads(path.read_text())
    open_fields = [each.partition(": ")[2] for each in missing if each.startswith("systems/")]
    path.write_text(json.dumps(description | dict.fromkeys(open_fields, "1") | {"status": "available"}))
    assert problems(tmp_path / "out", seeds_of(record)) == [
        f"{LLAMA}: lacks Server or Interactive",
        f"{LLAMA}/Offline: TEST06 is missing",
    ]


def test_what_would_be_refused_is_listed(offline: tuple[RunRecord, Path], tmp_path: Path) -> None:
    """Runs of another round's seeds, accuracy below the gate, an empty user.conf."""
    record, directory = offline
    other = next(each for each in ROUNDS if each.seeds != seeds_of(record))
    write_submission([directory], tmp_path / "out", submitter="Us")
    place = tmp_path / f"out/closed/Us/results/2xCPU/{LLAMA}/Offline"
    (place / "accuracy/accuracy.txt").write_text("{'rouge1': 40.0, 'rouge2': 22.1, 'rougeL': 28.7}\n")
    (place / "user.conf").write_text("")
    found = problems(tmp_path / "out", other.seeds)
    for said in (
        "qsl_rng_seed is of another round",
        "no hash in accuracy.txt",
        "accuracy: rouge1",
        "accuracy: tokens_per_sample",
    ):
        assert f"{LLAMA}/Offline: {said}" in found
    assert f"{LLAMA}/Offline/user.conf: is missing or empty" in found


def test_the_round_is_told_by_its_seeds(tmp_path: Path) -> None:
    record = make_record(workload="llama2-70b-99")
    settings = dict(record.loadgen.settings) | ROUNDS[1].seeds
    later = record.model_copy(update={"loadgen": record.loadgen.model_copy(update={"settings": settings})})
    for number, (each, said) in enumerate(
        (
            (record, "the seeds of a round; those of LoadGen 6.0.17 are of none that nfold knows"),
            (later, "a benchmark of v6.1, whose seeds LoadGen 6.0.17 has"),
        )
    ):
        directory = write_record(each, tmp_path / f"r{number}")
        missing = write_submission([directory], tmp_path / f"out{number}", submitter="Us")
        assert f"llama2-70b-99/Offline: {said}" in missing


def test_a_submission_says_what_keeps_results_out(tmp_path: Path) -> None:
    record = make_record(simulated=True, accuracy=None, no_accuracy="none was asked for")
    directory = write_record(record, tmp_path / "r")
    missing = write_submission([directory], tmp_path / "out", submitter="Us", division="open", system="ours")
    assert any("SIMULATED" in each for each in missing)
    assert "sums/Offline/accuracy: an accuracy run" in missing
    assert "sums: it is no benchmark of MLCommons, so the checker refuses it" in missing
    missing = write_submission([directory], tmp_path / "net", submitter="Us", division="network")
    assert any(each.startswith("network: ") for each in missing)


def test_a_submission_of_nonsense_is_refused(tmp_path: Path) -> None:
    directory = write_record(make_record(), tmp_path / "r")
    with pytest.raises(ConfigError, match="must be one of closed, open, network"):
        write_submission([directory], tmp_path / "out", submitter="Us", division="shut")
    with pytest.raises(ConfigError, match="it names a folder"):
        write_submission([directory], tmp_path / "out", submitter="../Us")
    with pytest.raises(StateError, match="a submission takes one"):
        write_submission([directory, directory], tmp_path / "out", submitter="Us")


def test_the_hash_is_of_the_whole_accuracy_log(offline: tuple[RunRecord, Path], tmp_path: Path) -> None:
    _, directory = offline
    write_submission([directory], tmp_path / "out", submitter="Us")
    text = (tmp_path / f"out/closed/Us/results/2xCPU/{LLAMA}/Offline/accuracy/accuracy.txt").read_text()
    whole = (directory / "accuracy/mlperf_log_accuracy.json").read_bytes()
    found = re.search(r"^hash=([0-9a-f]{64})$", text, re.MULTILINE)
    assert found is not None
    assert found[1] == hashlib.sha256(whole).hexdigest()
