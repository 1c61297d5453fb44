"""The driver on a real router and simulated engines in threads: what became of each request."""

import threading

import numpy as np
import pytest
from control_plane_cpu import CpuMeter
from control_plane_drive import Drive, run_to_end, run_windows, saturated_tokens_per_s
from control_plane_requests import Prompts, Requests
from nfold.models.engine.simulated.answers import seeds_with_ends
from nfold.models.engine.simulated.engine import SimulatedEngine
from service_rig import Rig
from simulated import make_profile


def make_requests(count: int, over_s: float = 0.0) -> Requests:
    prompt_lens = np.full(count, 6, np.int32)
    answer_lens = (np.arange(count) % 3 + 2).astype(np.int32)
    return Requests(
        due_s=np.linspace(0.0, over_s, count),
        prompt_lens=prompt_lens,
        answer_lens=answer_lens,
        max_tokens=np.full(count, 30, np.int32),
        seeds=seeds_with_ends(np.arange(count, dtype=np.uint64), prompt_lens, answer_lens),
    )


class Engine(SimulatedEngine):
    """With the gate that the rig opens when it ends; it holds nothing up here."""

    def __init__(self) -> None:
        super().__init__(make_profile(), "server")
        self.gate = threading.Event()


def replicas_of(rig: Rig, count: int):
    return [rig.replica(f"r{number}", Engine()) for number in range(count)]


def test_every_request_ends_with_the_answer_that_its_seed_holds() -> None:
    told: list[str] = []
    with Rig() as rig:
        router = rig.router(*replicas_of(rig, 2))
        drive = Drive(router, "m", make_requests(40), Prompts(1000), max_open=12)
        [samples] = run_to_end([drive], told.append, timeout_s=20.0)
    assert drive.ended
    assert drive.num_failed == 0
    assert (drive.num_tokens == drive.requests.answer_lens).all()
    assert drive.tokens_so_far() == drive.requests.answer_lens.sum()
    assert (drive.first_s <= drive.end_s).all()
    assert samples[-1, 1] == drive.requests.answer_lens.sum()
    assert drive.finite_tokens_per_s() == pytest.approx(drive.requests.answer_lens.sum() / drive.end_s.max())


def test_no_more_are_open_than_allowed() -> None:
    with Rig() as rig:
        router = rig.router(*replicas_of(rig, 1))
        drive = Drive(router, "m", make_requests(30), Prompts(1000), max_open=4)
        drive.start()
        most_open = 0
        while not drive.ended:
            drive.turn()
            most_open = max(most_open, drive.num_submitted - drive.num_ended)
    assert most_open == 4


def test_a_backlog_is_queued_as_a_whole_before_any_of_it_is_sent() -> None:
    with Rig() as rig:
        router = rig.router(*replicas_of(rig, 1))
        drive = Drive(router, "m", make_requests(30), Prompts(1000), max_open=20)
        drive.queue_backlog()
        assert drive.num_submitted == 20
        [model] = router.snapshot().models
        assert (model.num_queued, model.num_in_flight) == (20, 0)
        run_to_end([drive], lambda line: None, timeout_s=20.0)
    assert drive.ended


def test_a_window_counts_what_came_within_it() -> None:
    with Rig() as rig:
        router = rig.router(*replicas_of(rig, 1))
        requests = make_requests(30, over_s=0.3)
        drive = Drive(router, "m", requests, Prompts(1000))
        [window] = run_windows([drive], CpuMeter([]), 0.1, 0.2, lambda line: None)
    assert window.begin.at_s >= 0.1
    assert window.end.at_s >= 0.3
    assert 0 < window.num_tokens <= requests.answer_lens.sum()
    assert window.tokens_per_s == pytest.approx(window.num_tokens / window.seconds)
    assert window.cpu.router > 0
    assert not drive.waits_for_first(0.1, 0.3)
    assert len(drive.ttft_s(0.1, 0.3)) == ((requests.due_s >= 0.1) & (requests.due_s < 0.3)).sum()
    assert (drive.ttft_s(0.1, 0.3) > 0).all()


def test_side_by_side_each_has_its_own_router_and_requests() -> None:
    with Rig() as rig:
        one, two = replicas_of(rig, 2)
        drives = [
            Drive(rig.router(replica, router_id=name), "m", make_requests(10), Prompts(1000))
            for name, replica in (("a", one), ("b", two))
        ]
        run_to_end(drives, lambda line: None, timeout_s=20.0)
    assert all(drive.ended for drive in drives)


def test_the_saturated_rate_leaves_ramp_and_tail_out() -> None:
    seconds = np.arange(11.0)
    tokens = np.array([0, 1, 2, 20, 40, 60, 80, 97, 98, 99, 100.0])
    assert saturated_tokens_per_s(np.stack([seconds, tokens], axis=1)) == pytest.approx(20.0)
