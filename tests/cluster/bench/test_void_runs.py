"""Requests that fail, through the real LoadGen, router and figures: engines refuse what is too long for them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from nfold.cluster.bench.client import ClientJob, run_client
from nfold.cluster.bench.figures import run_figures
from nfold.cluster.bench.loadgen_log import read_log
from nfold.cluster.bench.made_sets import random_set
from nfold.cluster.bench.record import RunFigures
from nfold.cluster.bench.rules import rules_of
from nfold.cluster.bench.samples import SampleSet, joined
from nfold.cluster.bench.scenarios import Scenario
from nfold.cluster.bench.settings import Asked, run_settings
from nfold.cluster.bench.show import render_record
from nfold.cluster.roofline import ReplicaSize, empty_replicas
from rich.console import Console
from run_records import make_record

SIZE = ReplicaSize("m", max_num_seqs=64, max_model_len=256)
NUM_SAMPLES = 300


def samples_with(num_too_long: int) -> SampleSet:
    """So many of them have a prompt that no engine here can take."""
    samples = random_set(16, 16, NUM_SAMPLES, 127, SIZE.max_model_len, simulated=True)
    prompts = [samples.prompt(row) for row in range(NUM_SAMPLES)]
    for row in range(num_too_long):
        prompts[row * (NUM_SAMPLES // num_too_long)] = np.ones(2 * SIZE.max_model_len, np.int32)
    tokens, starts, lens = joined(prompts)
    return replace(samples, tokens=tokens, starts=starts, prompt_lens=lens)


def figures_of(samples: SampleSet, scenario: Scenario, directory: Path) -> RunFigures:
    asked = Asked(target_qps=600, min_duration_s=0.4, min_queries=64)
    settings = run_settings(rules_of("free"), scenario, len(samples), asked=asked)
    with empty_replicas([SIZE] * 2) as replicas:
        job = ClientJob(
            model="m",
            replicas=tuple(replicas),
            nodes={replica.replica_id: replica.replica_id for replica in replicas},
            samples=samples,
            settings=settings,
            log_dir=directory,
        )
        result = run_client(job)
    # The client's own share is of no interest here: it may be busy on a machine that tests share.
    return run_figures(read_log(directory), replace(result, busy_share=0.0, delayed_share=0.0), None, None, "run-1")


@pytest.mark.parametrize("scenario", [Scenario.SERVER, Scenario.OFFLINE])
def test_a_run_with_one_percent_failed_requests_is_void(tmp_path: Path, scenario: Scenario) -> None:
    figures = figures_of(samples_with(NUM_SAMPLES // 100), scenario, tmp_path / "run-1")
    assert figures.num_failed == figures.num_queries // 100
    [reason] = figures.void
    assert f"{figures.num_failed} of {figures.num_queries} requests failed (1.00%, at most 0.1%)" in reason
    assert figures.num_short == 0
    assert not figures.counts
    assert not figures.valid, "LoadGen hears of no tokens, which it calls an error"


def test_a_void_run_is_told_wherever_its_record_is_shown(tmp_path: Path) -> None:
    void = figures_of(samples_with(NUM_SAMPLES // 100), Scenario.SERVER, tmp_path / "run-1")
    record = make_record()
    points = [record.points[0], record.points[1].model_copy(update={"runs": [void]})]
    shown = Console(width=200, record=True)
    shown.print(render_record(record.model_copy(update={"points": points})))
    text = shown.export_text()
    assert "1 of 2 runs are INVALID or void" in text
    assert "0 of 1 count" in text


def test_the_same_run_without_failures_is_not(tmp_path: Path) -> None:
    figures = figures_of(samples_with(0), Scenario.SERVER, tmp_path / "run-1")
    assert (figures.num_failed, figures.void) == (0, [])
