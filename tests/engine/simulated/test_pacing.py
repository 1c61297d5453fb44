"""When steps are due: by the curve, without drift, without blocking who asks."""

import numpy as np
import pytest
from simulated import FakeClock, make_batch, make_engine, make_profile, run_out


def test_a_step_takes_what_the_curve_says() -> None:
    clock = FakeClock(100.0)
    engine = make_engine(clock)
    engine.submit(make_batch([1, 2], prompt_len=10, max_tokens=2))
    first = engine.step()
    assert first.step.step_s == pytest.approx(0.01 + 20 * 0.001 + 20e-6)
    second = engine.step()
    assert second.step.step_s == pytest.approx(0.01 + 2 * 0.0001 + 22e-6)
    assert clock.now_s == pytest.approx(100.0 + first.step.step_s + second.step.step_s)
    assert (first.step.num_prefill_tokens, first.step.num_decode_tokens) == (20, 0)
    assert (second.step.num_prefill_tokens, second.step.num_decode_tokens) == (0, 2)


def test_asking_for_the_deadline_does_not_wait() -> None:
    clock = FakeClock(100.0)
    engine = make_engine(clock)
    assert engine.next_step_at() is None
    engine.submit(make_batch([1]))
    due_s = engine.next_step_at()
    assert due_s == pytest.approx(100.0 + 0.01 + 10 * 0.001 + 10e-6)
    assert engine.next_step_at() == due_s
    assert clock.sleeps == []
    clock.now_s = due_s
    assert engine.step().request_ids.tolist() == [1]
    assert clock.sleeps == []


def test_what_comes_while_a_step_runs_joins_the_next() -> None:
    clock = FakeClock()
    engine = make_engine(clock)
    engine.submit(make_batch([1]))
    engine.next_step_at()
    engine.submit(make_batch([2]))
    assert engine.step().request_ids.tolist() == [1]
    assert engine.step().request_ids.tolist() == [1, 2]


def test_with_async_scheduling_it_joins_one_step_later() -> None:
    clock = FakeClock()
    engine = make_engine(clock, make_profile(async_scheduling=True))
    engine.submit(make_batch([1]))
    engine.next_step_at()
    engine.submit(make_batch([2]))
    assert [engine.step().request_ids.tolist() for _ in range(3)] == [[1], [1], [1, 2]]


def test_a_host_that_comes_late_shifts_nothing() -> None:
    punctual, late = FakeClock(), FakeClock()
    engines = [make_engine(punctual), make_engine(late)]
    for engine in engines:
        engine.submit(make_batch([1], max_tokens=50))
    for _ in range(50):
        engines[0].step()
        due_s = engines[1].next_step_at()
        assert due_s is not None
        late.now_s = max(late.now_s, due_s + 0.004)
        engines[1].step()
    assert late.now_s == pytest.approx(punctual.now_s + 0.004)


def test_a_sleep_that_wakes_early_is_continued() -> None:
    clock = FakeClock(0.0)

    def short_sleep(duration_s: float) -> None:
        clock.sleep(max(duration_s / 2, 1e-6))

    engine = make_engine(clock)
    engine._sleep = short_sleep
    engine.submit(make_batch([1]))
    due_s = engine.next_step_at()
    engine.step()
    assert due_s is not None
    assert clock.now_s >= due_s


def test_idle_time_is_not_caught_up() -> None:
    clock = FakeClock(100.0)
    engine = make_engine(clock)
    engine.submit(make_batch([1], max_tokens=1))
    run_out(engine)
    clock.now_s = 200.0
    engine.submit(make_batch([2], max_tokens=1))
    assert engine.next_step_at() == pytest.approx(200.0 + 0.01 + 0.01 + 10e-6)


def test_without_work_a_step_is_empty_and_immediate() -> None:
    clock = FakeClock()
    outputs = make_engine(clock).step()
    assert len(outputs) == 0
    assert outputs.step.step_s == 0
    assert clock.sleeps == []


def test_totals_add_up() -> None:
    engine = make_engine(FakeClock())
    engine.submit(make_batch(range(20), prompt_len=30, max_tokens=7))
    steps = run_out(engine)
    stats = engine.stats()
    assert stats.total_steps == len(steps)
    assert stats.total_prompt_tokens == 20 * 30
    assert stats.total_output_tokens == 20 * 7
    assert stats.total_step_s == pytest.approx(sum(outputs.step.step_s for outputs in steps))
    assert (stats.num_running, stats.num_waiting, stats.num_kv_blocks_used) == (0, 0, 0)


def test_at_saturation_tokens_come_at_the_rate_of_the_curve() -> None:
    """8 slots always full, prompts 10, answers 40: the rate follows from the curve by hand."""
    clock = FakeClock(0.0)
    engine = make_engine(clock)
    next_id = 0
    tokens = 0
    start_s = 0.0
    for step in range(4000):
        missing = 8 - engine.stats().num_running - engine.stats().num_waiting
        if missing:
            engine.submit(make_batch(range(next_id, next_id + missing), prompt_len=10, max_tokens=40))
            next_id += missing
        outputs = engine.step()
        if step == 1000:
            start_s, tokens = clock.now_s, 0
        tokens += int(np.count_nonzero(outputs.token_ids >= 0))
    # Of an answer's 40 tokens the first comes with the prefill; context is 10 to 49 tokens, 29.5 on average.
    mean_step_s = 0.01 + 8 / 40 * 10 * 0.001 + 8 * 39 / 40 * 0.0001 + 8 * 29.5 * 1e-6
    assert tokens / (clock.now_s - start_s) == pytest.approx(8 / mean_step_s, rel=0.01)


@pytest.mark.parametrize(
    "limits", [{}, {"prefill_every_steps": 4}, {"prefill_every_steps": 3, "prefill_always_below": 8}]
)
@pytest.mark.parametrize("async_scheduling", [False, True])
def test_it_tells_when_requests_must_have_come(limits: dict[str, int], async_scheduling: bool) -> None:
    """Each comes at the last moment, or just too late, then a turn later; an asynchronous step is one further."""
    clock = FakeClock()
    engine = make_engine(clock, make_profile(async_scheduling=async_scheduling, **limits))
    engine.submit(make_batch([1], max_tokens=400))
    assert engine.next_intake() is None, "at any time"
    for request_id in range(2, 26):
        is_late = request_id % 2 == 1
        for _ in range(request_id % 5):
            engine.step()
        engine.next_step_at()
        intake = engine.next_intake()
        assert intake is not None
        at_s, every_s = intake
        while (due_s := engine.next_step_at()) is not None and due_s < at_s - 0.005:
            engine.step()
        if is_late:
            engine.step()
            engine.next_step_at()
        engine.submit(make_batch([request_id], max_tokens=1))
        while not (outputs := engine.step()).step.num_prefill_tokens:
            pass
        began_s = clock.now_s - outputs.step.step_s
        expected_s = at_s + every_s * is_late + 0.01 * async_scheduling
        assert began_s == pytest.approx(expected_s, abs=0.004)
