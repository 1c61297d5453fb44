"""The replay in virtual time against hand-made cases and against the engine itself."""

import numpy as np
import pytest
from control_plane_ideal import ideal_ttft_s, steady_tpot_s
from control_plane_requests import Requests, poisson
from nfold.models.engine.protocol import SubmitBatch
from nfold.models.engine.simulated.engine import SimulatedEngine
from nfold.models.engine.simulated.profile import StepTimeProfile, load_profile


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def profile() -> StepTimeProfile:
    return load_profile("MI355X--llama-2-70b")


def requests_at(due_s: list[float], prompt_len: int = 100, answer_len: int = 4) -> Requests:
    count = len(due_s)
    return Requests(
        due_s=np.array(due_s),
        prompt_lens=np.full(count, prompt_len, np.int32),
        answer_lens=np.full(count, answer_len, np.int32),
        max_tokens=np.full(count, 64, np.int32),
        seeds=np.zeros(count, np.uint64),
    )


def test_one_request_takes_one_step(profile: StepTimeProfile) -> None:
    [ttft_s] = ideal_ttft_s([(profile, "server")], requests_at([1.0]), 0.0, 2.0)
    assert ttft_s == pytest.approx(profile.curve.step_s(100, 0, 100))


def test_two_requests_go_to_two_engines(profile: StepTimeProfile) -> None:
    both = ideal_ttft_s([(profile, "server")] * 2, requests_at([1.0, 1.001]), 0.0, 2.0)
    assert both == pytest.approx([profile.curve.step_s(100, 0, 100)] * 2)


def test_only_the_windows_requests_are_told(profile: StepTimeProfile) -> None:
    requests = requests_at([0.0, 1.0, 2.0, 3.0])
    assert len(ideal_ttft_s([(profile, "server")], requests, 1.0, 3.0)) == 2


def test_it_does_what_the_engine_does(profile: StepTimeProfile) -> None:
    """The same arrivals at one engine, step by step on a clock of the test."""
    requests = poisson(profile, 30.0, 3.0, seed=4)
    replayed_s = ideal_ttft_s([(profile, "server")], requests, 0.0, 3.0)
    clock = Clock()
    engine = SimulatedEngine(profile, "server", clock=clock)
    first_s = np.full(len(requests), np.nan)
    submitted = 0
    while np.isnan(first_s).any():
        due_s = engine.next_step_at()
        arrival_s = requests.due_s[submitted] if submitted < len(requests) else np.inf
        if due_s is None or arrival_s < due_s:
            clock.now_s = arrival_s
            engine.submit(one(requests, submitted))
            submitted += 1
            continue
        clock.now_s = due_s
        outputs = engine.step()
        fresh = outputs.request_ids[np.isnan(first_s[outputs.request_ids])]
        first_s[fresh] = due_s
    assert replayed_s == pytest.approx(first_s - requests.due_s, abs=1e-9)


def one(requests: Requests, row: int) -> SubmitBatch:
    part = slice(row, row + 1)
    count = np.zeros(1, np.int32)
    return SubmitBatch(
        request_ids=np.array([row], np.uint64),
        prompt_lens=requests.prompt_lens[part],
        prompt_ids=np.full(int(requests.prompt_lens[row]), 7, np.int32),
        max_tokens=requests.max_tokens[part],
        temperature=count.astype(np.float32),
        top_k=count,
        top_p=count.astype(np.float32) + 1,
        seed=requests.seeds[part],
        ignore_eos=count.astype(np.uint8),
        num_logprobs=count.astype(np.int8) - 1,
        stop_lens=count,
        stop_ids=np.zeros(0, np.int32),
    )


def test_more_load_makes_steps_longer(profile: StepTimeProfile) -> None:
    slow, fast = (steady_tpot_s(profile, "server", rate, seconds=40.0) for rate in (20.0, 2.0))
    assert fast < slow
    assert fast > profile.curve.fixed_s
