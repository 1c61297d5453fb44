"""Arrays of requests: arrivals, lengths that routers cannot see, and beginnings in the midst of work."""

import numpy as np
import pytest
from control_plane_requests import Prompts, Requests, backlog, poisson
from nfold.models.engine.simulated.lengths import OPENORCA
from nfold.models.engine.simulated.loops import end_of
from nfold.models.engine.simulated.profile import StepTimeProfile, load_profile


@pytest.fixture
def profile() -> StepTimeProfile:
    return load_profile("MI355X--llama-2-70b")


def answers_in_seeds(requests: Requests) -> np.ndarray:
    return np.array([end_of(seed) for seed in requests.seeds]) - requests.prompt_lens


def test_poisson_has_the_rate_and_the_data_sets_lengths(profile: StepTimeProfile) -> None:
    requests = poisson(profile, 200.0, 100.0, seed=1)
    assert len(requests) == pytest.approx(20_000, rel=0.03)
    assert (np.diff(requests.due_s) >= 0).all()
    assert requests.due_s[-1] < 100.0
    gaps_s = np.diff(requests.due_s)
    assert gaps_s.std() == pytest.approx(gaps_s.mean(), rel=0.05)  # as exponential gaps have
    assert requests.prompt_lens.mean() == pytest.approx(OPENORCA.prompt.mean, rel=0.02)
    assert requests.offered_tokens_per_s(0.0, 100.0) == pytest.approx(200 * OPENORCA.answer.mean, rel=0.03)


def test_the_router_sees_max_tokens_and_the_seed_hides_the_answer(profile: StepTimeProfile) -> None:
    requests = backlog(profile, 1000)
    assert (answers_in_seeds(requests) == requests.answer_lens).all()
    assert set(requests.max_tokens.tolist()) == {OPENORCA.answer.high}
    assert (requests.due_s == 0).all()


def test_short_answers_are_all_alike(profile: StepTimeProfile) -> None:
    requests = poisson(profile, 500.0, 2.0, answer_tokens=8)
    assert set(requests.answer_lens.tolist()) == {8}
    assert set(requests.max_tokens.tolist()) == {8}
    assert len(set(requests.prompt_lens.tolist())) > 50


def test_a_warm_start_is_what_littles_law_says(profile: StepTimeProfile) -> None:
    """In flight at the ramp's end: rate x answer x time per token."""
    rate, tpot_s, ramp_s = 50.0, 0.1, 20.0
    requests = poisson(profile, rate, 60.0, warm_tpot_s=tpot_s, ramp_s=ramp_s, seed=2)
    due = requests.due_s <= ramp_s
    ends_s = requests.due_s[due] + requests.answer_lens[due] * tpot_s
    in_flight = int((ends_s > ramp_s).sum())
    assert in_flight == pytest.approx(rate * OPENORCA.answer.mean * tpot_s, rel=0.05)
    # What goes on from an answer half given has the rest of it still to come.
    assert (requests.prompt_lens + requests.answer_lens <= profile.max_model_len).all()
    assert (requests.answer_lens >= 1).all()


def test_warm_requests_of_a_backlog_are_partly_given(profile: StepTimeProfile) -> None:
    requests = backlog(profile, 6000, num_warm=3000, seed=3)
    warm, fresh = requests.answer_lens[:3000], requests.answer_lens[3000:]
    lens = fresh.astype(np.float64)
    expected = (lens**2).mean() / (2 * lens.mean())  # the rest of an answer met at a random moment
    assert warm.mean() == pytest.approx(expected, rel=0.06)
    assert requests.prompt_lens[:3000].mean() > requests.prompt_lens[3000:].mean() + 100


def test_prompts_follow_each_other_and_differ_in_each_round() -> None:
    prompts = Prompts(1000)
    first = prompts.take(10)
    assert not np.array_equal(first, prompts.take(10))
    seen = {first.tobytes()}
    for _ in range(5):  # more than the pool has
        for _ in range(8):
            prompts.take(1 << 18)
        piece = prompts.take(10).tobytes()
        assert piece not in seen
        seen.add(piece)
