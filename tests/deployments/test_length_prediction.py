import numpy as np
import pytest
from nfold.deployments.length_prediction import PRIOR_TOKENS, LengthPrediction
from numpy.typing import NDArray

NO_LIMIT = 1 << 20
ANSWERS = np.rint(np.random.default_rng(0).lognormal(5.5, 0.6, 4000)).astype(np.int64)
PROMPTS = np.rint(np.random.default_rng(1).lognormal(5.4, 0.8, 4000)).astype(np.int64)


def seen(prompts: NDArray[np.int64], answers: NDArray[np.int64]) -> LengthPrediction:
    prediction = LengthPrediction()
    prediction.observe(prompts, answers)
    return prediction


def expected(prediction: LengthPrediction, prompt_len: int, max_tokens: int = NO_LIMIT) -> float:
    return float(prediction.expected(np.array([prompt_len]), np.array([max_tokens]))[0])


def remaining(prediction: LengthPrediction, emitted: int, max_tokens: int = NO_LIMIT) -> float:
    return float(prediction.remaining(np.array([100]), np.array([emitted]), np.array([max_tokens]))[0])


def test_before_any_answer() -> None:
    assert expected(LengthPrediction(), 100) == pytest.approx(PRIOR_TOKENS, rel=0.01)
    assert expected(LengthPrediction(), 100, 16) == pytest.approx(16, rel=0.05)
    assert remaining(LengthPrediction(), 1000) == pytest.approx(PRIOR_TOKENS, rel=0.1)


def test_the_mean_of_what_was_seen_from_the_first_answer_on() -> None:
    assert expected(seen(np.array([50]), np.array([20])), 50) == pytest.approx(20, rel=0.6)
    assert expected(seen(PROMPTS, ANSWERS), 50) == pytest.approx(ANSWERS.mean(), rel=0.002)


@pytest.mark.parametrize("max_tokens", [1, 7, 100, 256, 1000])
def test_expected_is_the_mean_of_answers_cut_at_the_limit(max_tokens: int) -> None:
    exact = np.minimum(ANSWERS, max_tokens).mean()
    assert expected(seen(PROMPTS, ANSWERS), 50, max_tokens) == pytest.approx(exact, rel=0.005)


@pytest.mark.parametrize("emitted", [1, 50, 244, 500, 900])
def test_remaining_is_the_mean_of_those_that_came_as_far(emitted: int) -> None:
    exact = (ANSWERS[emitted < ANSWERS] - emitted).mean()
    assert remaining(seen(PROMPTS, ANSWERS), emitted) == pytest.approx(exact, rel=0.03)


@pytest.mark.parametrize(("emitted", "limit", "most"), [(90, 100, 10), (100, 100, 1), (5000, 5003, 3)])
def test_remaining_keeps_the_limit(emitted: int, limit: int, most: float) -> None:
    assert 1.0 <= remaining(seen(PROMPTS, ANSWERS), emitted, limit) <= most


def test_past_the_longest_seen_some_are_still_expected() -> None:
    assert remaining(seen(PROMPTS, np.full(4000, 30)), 5000) == pytest.approx(PRIOR_TOKENS, rel=0.2)


def test_prompts_count_where_they_tell() -> None:
    """Answers half as long as their prompts, against answers that have nothing to do with them."""
    telling = seen(PROMPTS, np.maximum(PROMPTS // 2, 1))
    assert expected(telling, 100) == pytest.approx(48, rel=0.1)
    assert expected(telling, 800) == pytest.approx(350, rel=0.1)

    blind = seen(PROMPTS, ANSWERS)
    assert expected(blind, 100) == pytest.approx(expected(blind, 800), rel=0.03)


def test_what_was_seen_long_ago_counts_less() -> None:
    prediction = seen(PROMPTS, ANSWERS)
    for _ in range(20):
        prediction.observe(PROMPTS[:1000], np.full(1000, 40))
    assert expected(prediction, 50) == pytest.approx(40, rel=0.05)


def test_the_longest_of_many() -> None:
    prediction = seen(PROMPTS, ANSWERS)
    assert prediction.longest_of(1.0, NO_LIMIT) == pytest.approx(0.0, abs=1e-6)
    assert prediction.longest_of(100.0, NO_LIMIT) == pytest.approx(np.percentile(ANSWERS, 99), rel=0.05)
    assert prediction.longest_of(100.0, 50) == 50.0


def test_answers_that_began_together_are_foreseen_while_most_still_run() -> None:
    """Only the shortest have ended: by these alone answers would be half as long as they are."""
    prediction, blind = LengthPrediction(), LengthPrediction()
    emitted = 0
    for now in range(10, 260, 10):
        ended = (emitted < ANSWERS) & (now >= ANSWERS)
        for each in (prediction, blind):
            each.observe(PROMPTS[ended], ANSWERS[ended])
        runs = now < ANSWERS
        prediction.watch(PROMPTS[runs], np.full(runs.sum(), now))
        emitted = now

    assert (emitted < ANSWERS).mean() == pytest.approx(0.5, abs=0.1)
    assert remaining(blind, 100) < 0.5 * (ANSWERS[ANSWERS > 100] - 100).mean()
    exact = np.minimum(ANSWERS[ANSWERS > 100], emitted) - 100
    assert remaining(prediction, 100, emitted) == pytest.approx(exact.mean(), rel=0.03)
    alive = (emitted < ANSWERS).mean()
    assert prediction.longest_of(1.0 / alive, NO_LIMIT) == pytest.approx(emitted, rel=0.03)


def test_watched_answers_count_once_when_they_have_ended() -> None:
    """Those that come one by one, watched in between, are as those that were only seen to end."""
    prediction = LengthPrediction()
    for begin in range(0, 2000, 100):
        answers, prompts = ANSWERS[begin : begin + 100], PROMPTS[begin : begin + 100]
        for emitted in (0, 40, 200):
            runs = answers > emitted
            prediction.watch(prompts[runs], np.full(runs.sum(), emitted))
        prediction.observe(prompts, answers)
        prediction.watch(prompts[:0], answers[:0])

    for emitted in (0, 100, 300):
        exact = (ANSWERS[:2000][ANSWERS[:2000] > emitted] - emitted).mean()
        assert remaining(prediction, emitted) == pytest.approx(exact, rel=0.08)


def test_no_requests() -> None:
    none = np.zeros(0, np.int64)
    prediction = seen(none, none)
    assert len(prediction.expected(none, none)) == 0
