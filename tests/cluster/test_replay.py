"""Policies in virtual time on simulated accelerators: who is never worse than whom."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from nfold.cluster.load_result import Answer
from nfold.cluster.recording import Recording, generated
from nfold.cluster.replay import FleetReplica
from nfold.cluster.replay import replay as run
from nfold.cluster.replay_policies import (
    Random,
    RoundRobin,
    WeighedByHand,
    earliest_finish,
    finite_batch,
    least_outstanding,
)
from nfold.cluster.replay_result import ReplayResult
from nfold.models.engine.protocol import FinishReason
from nfold.models.engine.simulated.lengths import OPENORCA
from nfold.models.engine.simulated.profile import load_profile

ACCELERATORS = ("MI300X", "MI325X", "MI355X")


def node(accelerator: str, scenario: str, count: int = 8, **settings: float) -> list[FleetReplica]:
    return [FleetReplica(load_profile(f"{accelerator}--llama-2-70b"), scenario, **settings) for _ in range(count)]


def fleet(name: str, scenario: str) -> list[FleetReplica]:
    if name == "homogeneous":
        return node("MI355X", scenario)
    if name == "one slow":
        return [*node("MI355X", scenario, 1, slowness=1.5), *node("MI355X", scenario, 7)]
    return [replica for accelerator in ACCELERATORS for replica in node(accelerator, scenario)]


def requests_for(replicas: Sequence[FleetReplica], count: int, load: float = 0.9) -> Recording:
    """Poisson at this share of what the replicas' published results add up to; Offline all at once."""
    scenario = replicas[0].scenario
    figures = [replica.profile.scenario(scenario).figures["tokens_per_s"].value for replica in replicas]
    sum_of_rates = sum((rate or 0.0) / one.slowness for rate, one in zip(figures, replicas, strict=True))
    rate = None if scenario == "offline" else load * sum_of_rates / OPENORCA.answer.mean
    return generated(OPENORCA, count, rate, seed=0)


def assert_not_worse(ours: ReplayResult, theirs: ReplayResult, factor: float) -> None:
    assert ours.makespan_s <= theirs.makespan_s * factor
    assert ours.latency_s(99) <= theirs.latency_s(99) * factor
    assert goodput(ours) * factor >= goodput(theirs)


def goodput(result: ReplayResult) -> float:
    """Within MLPerf's Server limits."""
    return result.goodput(ttft_s=2.0, tpot_s=0.2)


def assert_complete(result: ReplayResult) -> None:
    assert (result.end_s >= result.first_s).all()
    assert (result.first_s > result.recording.arrivals_s).all()
    assert result.replica.min() >= 0


@pytest.mark.parametrize("name", ["homogeneous", "mixed", "one slow"])
def test_a_hundred_thousand_requests_never_worse_than_least_outstanding(name: str) -> None:
    replicas = fleet(name, "server")
    recording = requests_for(replicas, 100_000)
    ours, theirs = (run(recording, replicas, policy) for policy in (earliest_finish, least_outstanding))

    assert_complete(ours)
    assert_not_worse(ours, theirs, 1.005)


@pytest.mark.parametrize("name", ["mixed", "one slow"])
def test_unequal_replicas_need_no_weights(name: str) -> None:
    """Clearly better than policies that do not know speeds, in all three figures."""
    replicas = fleet(name, "server")
    recording = requests_for(replicas, 10_000)
    ours = run(recording, replicas, earliest_finish)

    for policy in (least_outstanding, RoundRobin(), Random(seed=0)):
        theirs = run(recording, replicas, policy)
        assert_not_worse(ours, theirs, 1.0)
        assert ours.makespan_s < 0.97 * theirs.makespan_s


def test_measured_costs_beat_weights_set_by_published_speed() -> None:
    """At the sum of the published rates, where published runs weighed pools by hand."""
    replicas = fleet("mixed", "server")
    recording = requests_for(replicas, 20_000, load=1.0)
    speeds = tuple(one.profile.scenario("server").figures["tokens_per_s"].value or 0.0 for one in replicas)
    ours, theirs = (run(recording, replicas, policy) for policy in (earliest_finish, WeighedByHand(speeds)))

    assert_complete(ours)
    assert_not_worse(ours, theirs, 1.0)
    assert ours.latency_s(50) < 0.95 * theirs.latency_s(50)


def test_a_far_pool_gets_less_while_there_is_little_to_do() -> None:
    near, far = node("MI355X", "server", 2), node("MI355X", "server", 2, delay_s=0.5)
    result = run(requests_for([*near, *far], 400, load=0.05), [*near, *far], earliest_finish)

    served = np.bincount(result.replica, minlength=4)
    assert served[:2].sum() > 1.5 * served[2:].sum()


def small_fleet(name: str) -> list[FleetReplica]:
    """A third of the mixed one, with a third of the slots, so that the batch is many times what is in flight."""
    replicas = fleet(name, "offline")
    picked = replicas if name != "mixed" else [*replicas[:3], *replicas[8:11], *replicas[16:18]]
    return [replace(one, max_in_flight=512) for one in picked]


@pytest.mark.parametrize("name", ["homogeneous", "mixed", "one slow"])
def test_a_finite_batch_ends_everywhere_within_one_request(name: str) -> None:
    replicas = small_fleet(name)
    recording = requests_for(replicas, 15_000)
    ours, theirs = (run(recording, replicas, policy) for policy in (finite_batch, least_outstanding))

    assert_complete(ours)
    assert ours.makespan_s <= theirs.makespan_s * 1.005
    assert np.ptp(ours.last_end_s) <= ours.request_s.max()
    if name != "homogeneous":
        assert ours.makespan_s < 0.97 * theirs.makespan_s
        assert np.ptp(ours.last_end_s) < 0.7 * np.ptp(theirs.last_end_s)


def test_three_generations_bring_together_what_they_bring_alone() -> None:
    """Work for five minutes by published rates, an answer at a full batch taking up to three: all is ramp and tail.
    No length is known before."""

    def tokens_per_s(replicas: Sequence[FleetReplica], seed: int) -> float:
        figures = [replica.profile.scenario("offline") for replica in replicas]
        rate = sum((each.figures["tokens_per_s"].value or 0.0) / each.run.tokens_per_sample for each in figures)
        return run(generated(OPENORCA, round(300 * rate), None, seed=seed), replicas, finite_batch).tokens_per_s

    pools = [node(accelerator, "offline", 2) for accelerator in ACCELERATORS]
    alone = sum(tokens_per_s(pool, seed) for seed, pool in enumerate(pools))
    assert tokens_per_s([replica for pool in pools for replica in pool], seed=100) > 0.98 * alone


def test_no_policy_binds_more_than_there_is_room_for() -> None:
    """With room for one, a replica's requests follow each other."""
    replicas = node("MI355X", "server", 2, max_in_flight=1)
    for policy in (earliest_finish, finite_batch, least_outstanding, RoundRobin(), Random(0)):
        result = run(generated(OPENORCA, 12, None, seed=1), replicas, policy)
        for replica in range(2):
            mine = np.argsort(result.end_s)
            mine = mine[result.replica[mine] == replica]
            assert (result.first_s[mine][1:] > result.end_s[mine][:-1]).all()


def test_requests_of_a_replica_that_dies_go_on_elsewhere() -> None:
    replicas = node("MI355X", "server", 3)
    replicas[1] = replace(replicas[1], until_s=20.0)
    replicas[2] = replace(replicas[2], from_s=10.0)
    result = run(requests_for(replicas, 1500, load=0.6), replicas, earliest_finish)

    assert_complete(result)
    assert result.last_end_s[1] <= 20.0
    assert result.samples[-1].num_continued_tokens > 0


def test_a_recording_is_kept(tmp_path: Path) -> None:
    recording = generated(OPENORCA, 1000, 50.0, seed=3)
    path = tmp_path / "recording.npz"
    recording.save(path)
    kept = Recording.load(path)

    assert kept.arrivals_s == pytest.approx(recording.arrivals_s, abs=1e-6)
    assert kept.prompt_lens.tolist() == recording.prompt_lens.tolist()
    assert kept.answer_lens.tolist() == recording.answer_lens.tolist()
    assert kept.source == "generated: Poisson, 50/s, seed 3"
    assert path.stat().st_size < 8 * len(recording) + 2000


def test_a_live_run_is_recorded() -> None:
    answers = [
        Answer(1, due_s=102.5, finish=FinishReason.LENGTH, token_ids=[1, 2, 3]),
        Answer(0, due_s=102.0, finish=FinishReason.STOP, token_ids=[4]),
        Answer(0, due_s=101.0, finish=FinishReason.ERROR),
    ]
    recording = Recording.of_answers(answers, prompt_lens=[7, 9], source="a run")

    assert recording.arrivals_s.tolist() == [0.0, 0.5]
    assert recording.prompt_lens.tolist() == [7, 9]
    assert recording.answer_lens.tolist() == [1, 3]
