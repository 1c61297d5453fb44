"""What becomes of requests: order, limits, KV cache, abort, rejection, the same answers every time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nfold.models.engine.protocol import Engine, FinishReason, SamplingParams, SubmitBatch
from nfold.models.engine.simulated.answers import seeds_with_ends
from nfold.models.engine.simulated.engine import SimulatedEngine
from nfold.models.errors import ConfigError
from simulated import FakeClock, answers_of, make_batch, make_engine, make_profile, run_out


def test_it_is_an_engine_and_says_that_it_is_simulated() -> None:
    engine = make_engine(FakeClock())
    assert isinstance(engine, Engine)
    assert engine.info.engine == "simulated"
    assert engine.info.settings["simulated"] is True
    assert engine.info.settings["profile"] == "TEST--test"
    assert engine.info.max_num_seqs == 8


def test_every_request_gets_its_tokens_once() -> None:
    engine = make_engine(FakeClock())
    engine.submit(make_batch(range(30), prompt_len=20, max_tokens=9))
    steps = run_out(engine)
    answers = answers_of(steps)
    assert sorted(answers) == list(range(30))
    assert {len(answer) for answer in answers.values()} == {9}
    ended = np.concatenate([outputs.request_ids[outputs.finish != 0] for outputs in steps])
    reasons = np.concatenate([outputs.finish[outputs.finish != 0] for outputs in steps])
    assert sorted(ended.tolist()) == list(range(30))
    assert set(reasons.tolist()) == {FinishReason.LENGTH}


def test_token_budget_and_slots_are_kept_and_prompts_are_chunked() -> None:
    engine = make_engine(FakeClock())
    engine.submit(make_batch(range(12), prompt_len=50, max_tokens=3))
    first = engine.step()
    assert first.step.num_prefill_tokens == 64
    assert first.request_ids.tolist() == [0]
    second = engine.step()
    assert (second.step.num_prefill_tokens, second.step.num_decode_tokens) == (63, 1)
    assert second.request_ids.tolist() == [0, 1]
    for _ in range(30):
        assert engine.stats().num_running <= 8
        step = engine.step().step
        assert step.num_prefill_tokens + step.num_decode_tokens <= 64


def test_without_room_is_told_from_without_budget() -> None:
    """Prompts of 50, eight slots, 64 tokens a step."""
    engine = make_engine(FakeClock())
    engine.submit(make_batch(range(12), prompt_len=50, max_tokens=30))
    counts: list[tuple[int, int, int]] = []
    for _ in range(7):
        step = engine.step().step
        counts.append((step.num_running, step.num_without_room, step.num_deferred))
    assert counts == [(2, 4, 6), (3, 4, 5), (4, 4, 4), (5, 4, 3), (7, 4, 1), (8, 4, 0), (8, 4, 0)]


def test_first_come_first_served() -> None:
    engine = make_engine(FakeClock(), make_profile(max_num_seqs=1))
    engine.submit(make_batch([5, 3]))
    engine.submit(make_batch([9, 1]))
    assert list(answers_of(run_out(engine))) == [5, 3, 9, 1]


def test_prefill_waits_for_its_turn() -> None:
    engine = make_engine(FakeClock(), make_profile(prefill_every_steps=4, prefill_always_below=2))
    engine.submit(make_batch([1, 2], max_tokens=50))
    engine.step()
    engine.submit(make_batch([3], max_tokens=50))
    prefills = [engine.step().step.num_prefill_tokens for _ in range(6)]
    assert sorted(prefills) == [0, 0, 0, 0, 0, 10]
    assert prefills[0] == 0
    engine.abort(np.array([1, 2], np.uint64))
    engine.submit(make_batch([4], max_tokens=50))
    assert engine.step().step.num_prefill_tokens == 10, "below the floor prompts do not wait"


@settings(max_examples=30)
@given(
    st.integers(300, 600), st.lists(st.tuples(st.integers(1, 120), st.integers(1, 100)), min_size=1, max_size=30)
)
def test_the_kv_cache_is_never_overfilled_and_nothing_is_lost(
    capacity: int, requests: list[tuple[int, int]]
) -> None:
    clock = FakeClock()
    engine = make_engine(clock, make_profile(capacity))
    for request_id, (prompt_len, max_tokens) in enumerate(requests):
        engine.submit(make_batch([request_id], prompt_len=prompt_len, max_tokens=max_tokens))
    answers: dict[int, int] = {}
    recomputed = 0
    while engine.has_work():
        outputs = engine.step()
        recomputed += outputs.step.num_recomputed_tokens
        assert engine._scheduler.num_kv_tokens <= capacity
        for request_id in outputs.request_ids.tolist():
            answers[request_id] = answers.get(request_id, 0) + 1
    assert answers == {row: max_tokens for row, (_, max_tokens) in enumerate(requests)}
    stats = engine.stats()
    assert stats.total_recomputed_tokens == recomputed
    assert (recomputed > 0) == (stats.total_preemptions > 0)
    assert engine._scheduler.num_kv_tokens == 0


def test_preemption_changes_no_token_and_counts_what_is_computed_again() -> None:
    roomy, tight = (make_engine(FakeClock(), make_profile(capacity)) for capacity in (10_000, 300))
    for engine in (roomy, tight):
        engine.submit(make_batch(range(8), prompt_len=30, max_tokens=60))
    expected, found = answers_of(run_out(roomy)), answers_of(run_out(tight))
    assert found == expected
    assert roomy.stats().total_preemptions == 0
    assert tight.stats().total_preemptions > 0
    assert tight.stats().total_recomputed_tokens > 0 == roomy.stats().total_recomputed_tokens


def test_what_can_never_fit_gives_an_error_row_and_the_others_go_on() -> None:
    engine = make_engine(FakeClock())
    engine.submit(make_batch([1, 2], prompt_len=256))
    engine.submit(make_batch([3], prompt_len=5, max_tokens=2))
    engine.submit(make_batch([4], max_tokens=0))
    engine.submit(SubmitBatch.build([5], [[]], [SamplingParams(max_tokens=4)]))
    outputs = engine.step()
    rows = dict(zip(outputs.request_ids.tolist(), zip(outputs.token_ids, outputs.finish, strict=True), strict=True))
    assert {request_id for request_id, (token, finish) in rows.items() if finish == FinishReason.ERROR} == {
        1,
        2,
        4,
        5,
    }
    assert all(rows[request_id][0] == -1 for request_id in (1, 2, 4, 5))
    assert rows[3][0] >= 0
    assert len(engine.step()) == 1
    assert not engine.has_work()


def test_a_rejection_alone_is_told_at_once() -> None:
    clock = FakeClock(50.0)
    engine = make_engine(clock)
    engine.submit(make_batch([7], prompt_len=300))
    assert engine.has_work()
    assert engine.next_step_at() == 50.0
    assert engine.step().finish.tolist() == [FinishReason.ERROR]
    assert not engine.has_work()
    assert clock.sleeps == []


def test_an_answer_ends_at_the_models_context() -> None:
    engine = make_engine(FakeClock())
    engine.submit(make_batch([1], prompt_len=250, max_tokens=100))
    steps = run_out(engine)
    assert len(answers_of(steps)[1]) == 6
    assert steps[-1].finish.tolist() == [FinishReason.LENGTH]


@pytest.mark.parametrize("running_step", [False, True])
def test_aborted_requests_give_no_rows_and_free_their_room(running_step: bool) -> None:
    engine = make_engine(FakeClock())
    engine.submit(make_batch(range(12), max_tokens=20))
    engine.step()
    if running_step:
        engine.next_step_at()
    engine.abort(np.array([0, 3, 11, 999], np.uint64))
    assert (engine.stats().num_running, engine.stats().num_waiting) == ((6, 3) if running_step else (5, 4))
    answers = answers_of(run_out(engine))
    assert sorted(answers) == [1, 2, 4, 5, 6, 7, 8, 9, 10]
    assert engine._scheduler.num_kv_tokens == 0


def test_all_aborted_leaves_no_work() -> None:
    engine = make_engine(FakeClock())
    engine.submit(make_batch(range(12), max_tokens=20))
    engine.submit(make_batch([50], prompt_len=300))
    engine.step()
    engine.submit(make_batch([51], prompt_len=300))
    engine.abort(np.array([*range(12), 51], np.uint64))
    assert not engine.has_work()
    assert engine.stats().num_kv_blocks_used == 0


def test_the_same_requests_give_the_same_tokens_whatever_the_batch() -> None:
    alone, crowded = make_engine(FakeClock()), make_engine(FakeClock())
    alone.submit(make_batch([7], max_tokens=30, seeds=[5]))
    crowded.submit(make_batch(range(20), max_tokens=30, seeds=[5] * 20))
    answers = answers_of(run_out(crowded))
    assert answers_of(run_out(alone))[7] == answers[7]
    assert len({tuple(answer) for answer in answers.values()}) == 20, "prompts make answers differ"
    assert all(3 <= token < 1000 for answer in answers.values() for token in answer)


def test_a_continued_answer_goes_on_with_the_same_tokens() -> None:
    prompt = list(range(10))
    noise, prompt_lens, answer_lens = np.array([3], np.uint64), np.array([10], np.int32), np.array([25], np.int32)
    seed = int(seeds_with_ends(noise, prompt_lens, answer_lens)[0])
    whole, rest = make_engine(FakeClock()), make_engine(FakeClock())
    whole.submit(make_submission(prompt, 100, seed))
    answer = answers_of(run_out(whole))[1]
    assert len(answer) == 25
    rest.submit(make_submission(prompt + answer[:11], 89, seed))
    steps = run_out(rest)
    assert answers_of(steps)[1] == answer[11:]
    assert steps[-1].finish.tolist() == [FinishReason.STOP]
    lossy = make_engine(FakeClock())
    lossy.submit(make_submission(prompt + answer[:10], 90, seed))
    assert answers_of(run_out(lossy))[1][:3] != answer[11:14], "a lost token shows"


def make_submission(prompt: list[int], max_tokens: int, seed: int) -> SubmitBatch:
    return SubmitBatch.build([1], [prompt], [SamplingParams(max_tokens=max_tokens, seed=seed)])


def test_max_tokens_and_ignore_eos_go_before_the_answers_own_end() -> None:
    lens = np.array([10], np.int32), np.array([20], np.int32)
    seed = int(seeds_with_ends(np.array([1], np.uint64), *lens)[0])
    for max_tokens, ignore_eos, count, reason in (
        (100, False, 20, FinishReason.STOP),
        (20, False, 20, FinishReason.STOP),
        (19, False, 19, FinishReason.LENGTH),
        (40, True, 40, FinishReason.LENGTH),
    ):
        engine = make_engine(FakeClock())
        engine.submit(make_batch([1], max_tokens=max_tokens, seeds=[seed], ignore_eos=ignore_eos))
        steps = run_out(engine)
        assert len(answers_of(steps)[1]) == count
        assert steps[-1].finish.tolist() == [reason]


def test_settings_that_cannot_work_are_named() -> None:
    with pytest.raises(ConfigError, match="max_model_len: got 256"):
        SimulatedEngine(make_profile(kv_capacity_tokens=200))
    with pytest.raises(ConfigError, match="scenario: got 'night'"):
        SimulatedEngine(make_profile(), "night")
    with pytest.raises(ConfigError, match="vocab_size: got 2"):
        SimulatedEngine(make_profile(), vocab_size=2)
