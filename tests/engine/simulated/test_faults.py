"""Injected faults change what they say, and nothing else."""

import pytest
from nfold.models.engine.simulated.faults import (
    Die,
    Fault,
    LoseSlots,
    Slow,
    Stall,
    death_s,
    faulty_slots,
    faulty_step_s,
)
from nfold.models.errors import EngineError
from simulated import FakeClock, answers_of, make_batch, make_engine, run_out


@pytest.mark.parametrize(
    ("faults", "start_s", "expected_s"),
    [
        ([], 5.0, 2.0),
        ([Slow(10)], 0.0, 2.2),
        ([Slow(10, at_s=5)], 4.9, 2.0),
        ([Slow(10, at_s=5)], 5.0, 2.2),
        ([Slow(10), Slow(50)], 0.0, 3.3),
        ([Stall(10, 4)], 7.9, 2.0),
        ([Stall(10, 4)], 9.0, 6.0),
        ([Stall(10, 4)], 11.0, 5.0),
        ([Stall(10, 4)], 14.0, 2.0),
        ([Stall(11.5, 3), Stall(10, 1)], 9.0, 6.0),
        ([Stall(10, 4), Slow(50)], 7.5, 7.0),
        ([Die(1), LoseSlots(0.5)], 5.0, 2.0),
    ],
)
def test_step_time(faults: list[Fault], start_s: float, expected_s: float) -> None:
    assert faulty_step_s(faults, start_s, 2.0) == pytest.approx(expected_s)


@pytest.mark.parametrize(
    ("faults", "start_s", "expected"),
    [
        ([], 0.0, 100),
        ([LoseSlots(0.3)], 0.0, 70),
        ([LoseSlots(0.3, at_s=5)], 4.0, 100),
        ([LoseSlots(0.5), LoseSlots(0.5, at_s=5)], 5.0, 25),
        ([LoseSlots(1.0)], 0.0, 1),
        ([Slow(50), Stall(0, 9)], 1.0, 100),
    ],
)
def test_slots(faults: list[Fault], start_s: float, expected: int) -> None:
    assert faulty_slots(faults, start_s, 100) == expected


def test_the_earliest_death_counts() -> None:
    assert death_s([Slow(5), Die(9), Die(4)]) == 4
    assert death_s([]) == float("inf")


def steps_with(*faults: Fault) -> tuple[list[float], dict[int, list[int]]]:
    """Due times since the start, and the answers, of a fixed load."""
    clock = FakeClock(1000.0)
    engine = make_engine(clock, faults=faults)
    engine.submit(make_batch(range(16), max_tokens=30))
    due_s: list[float] = []
    steps = []
    while engine.has_work():
        steps.append(engine.step())
        due_s.append(clock.now_s - 1000.0)
    return due_s, answers_of(steps)


def test_a_slow_engine_does_the_same_later() -> None:
    (healthy_s, healthy), (slow_s, slow) = steps_with(), steps_with(Slow(25))
    assert slow == healthy
    assert slow_s == pytest.approx([1.25 * due_s for due_s in healthy_s])


def test_a_stall_shifts_what_comes_after_it() -> None:
    (healthy_s, healthy), (stalled_s, stalled) = steps_with(), steps_with(Stall(0.3, 2.0))
    assert stalled == healthy
    assert stalled_s == pytest.approx([due_s if due_s <= 0.3 else due_s + 2.0 for due_s in healthy_s])


def test_an_engine_dies_on_time_and_stays_dead() -> None:
    clock = FakeClock(1000.0)
    engine = make_engine(clock, faults=[Die(0.3)])
    engine.submit(make_batch(range(16), max_tokens=30))
    with pytest.raises(EngineError, match="TEST died"):
        run_out(engine)
    assert clock.now_s == pytest.approx(1000.3)
    healthy_s, _ = steps_with()
    assert engine.stats().total_steps == sum(due_s < 0.3 for due_s in healthy_s)
    with pytest.raises(EngineError):
        engine.step()


def test_an_idle_engine_dies_too() -> None:
    clock = FakeClock(0.0)
    engine = make_engine(clock, faults=[Die(5.0)])
    assert engine.next_step_at() == 5.0
    assert len(engine.step()) == 0, "alive, and without work: nothing to wait for"
    assert clock.now_s == 0.0
    clock.now_s = 60.0
    with pytest.raises(EngineError):
        engine.step()
    engine.submit(make_batch([1]))
    assert engine.next_step_at() == 5.0
    with pytest.raises(EngineError):
        engine.step()
    assert clock.now_s == 60.0


def test_lost_slots_send_the_youngest_back_and_lose_no_answer() -> None:
    healthy_s, healthy = steps_with()
    clock = FakeClock(1000.0)
    engine = make_engine(clock, faults=[LoseSlots(0.5, at_s=0.2)])
    engine.submit(make_batch(range(16), max_tokens=30))
    running: list[int] = []
    steps = []
    while engine.has_work():
        begun_s = clock.now_s - 1000.0
        engine.next_step_at()
        running.append(engine.stats().num_running)
        assert running[-1] <= (8 if begun_s < 0.2 else 4)
        steps.append(engine.step())
    assert max(running) == 8
    assert answers_of(steps) == healthy
    assert clock.now_s - 1000.0 > healthy_s[-1]
    assert engine.stats().total_recomputed_tokens > 0
