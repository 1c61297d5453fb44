import numpy as np
import pytest
from nfold.models.engine.scheduler import share_budget
from scheduling import ToyEngine, make_request, make_settings, toy_answer


@pytest.mark.parametrize(
    ("wanted", "budget", "given"),
    [
        ([1, 1, 1], 8, [1, 1, 1]),
        ([1, 1, 1], 2, [1, 1, 0]),
        ([9, 1, 9, 1], 6, [4, 1, 0, 1]),
        ([3, 1, 9], 8, [3, 1, 4]),
        ([], 8, []),
    ],
)
def test_single_tokens_come_first_then_arrival(wanted: list[int], budget: int, given: list[int]) -> None:
    assert share_budget(np.array(wanted, np.int64), budget).tolist() == given


def test_a_long_prompt_is_computed_beside_running_answers() -> None:
    engine = ToyEngine(make_settings(max_num_batched_tokens=8))
    engine.submit(make_request(0, [1, 2, 3], 20))
    engine.step()
    engine.submit(make_request(1, list(range(20)), 5))
    shares = [engine.step().num_new_tokens.tolist() for _ in range(4)]
    assert shares == [[1, 7], [1, 7], [1, 6], [1, 1]]
    engine.run()
    assert engine.answers == {0: toy_answer([1, 2, 3], 20), 1: toy_answer(list(range(20)), 5)}


def test_no_more_than_max_num_seqs_run() -> None:
    engine = ToyEngine(make_settings(max_num_seqs=2))
    engine.submit(*(make_request(index, [index], 3) for index in range(5)))
    engine.step()
    assert (engine.scheduler.num_running, engine.scheduler.num_waiting) == (2, 3)
    engine.run()
    assert engine.ended == set(range(5))


@pytest.mark.parametrize(
    ("limits", "num_deferred"),
    [
        ({"max_num_seqs": 2}, 0),  # no slots
        ({"num_kv_blocks": 16}, 0),  # no blocks: two of the answers need eight each
        ({"max_num_batched_tokens": 16}, 3),  # a budget for two prompts, room for all
        ({"max_num_batched_tokens": 16, "max_num_seqs": 3}, 1),
        ({"max_num_batched_tokens": 16, "num_kv_blocks": 24}, 1),
    ],
)
def test_without_room_is_told_from_without_budget(limits: dict[str, int], num_deferred: int) -> None:
    engine = ToyEngine(make_settings(**{"max_num_seqs": 8, "max_num_batched_tokens": 64} | limits))
    engine.submit(*(make_request(index, [index] * 8, 48) for index in range(5)))
    step = engine.step()
    assert (step.num_running, step.num_deferred, step.num_without_room) == (2, num_deferred, 3 - num_deferred)


def test_the_latest_arrived_is_preempted_and_its_answer_goes_on() -> None:
    engine = ToyEngine(make_settings(num_kv_blocks=16, max_num_seqs=4))
    engine.submit(*(make_request(index, [index] * 8, 40) for index in range(4)))
    first_to_end: list[int] = []
    while engine.has_work():
        engine.step()
        first_to_end += sorted(engine.ended - set(first_to_end))
    totals = engine.scheduler.totals
    assert first_to_end == [0, 1, 2, 3]
    assert totals.preemptions > 0
    assert totals.recomputed_tokens > 0
    assert totals.prompt_tokens == 4 * 8
    assert totals.output_tokens == 4 * 40
    assert engine.answers == {index: toy_answer([index] * 8, 40) for index in range(4)}
    computed = sum(int(step.num_new_tokens.sum()) for step in engine.steps)
    assert computed - totals.recomputed_tokens == 4 * (8 + 40 - 1)
    assert sum(step.num_recomputed_tokens for step in engine.steps) == totals.recomputed_tokens


def test_a_full_cache_neither_thrashes_nor_stands_empty() -> None:
    """Answers of 1 to 100 tokens, of which about eight fit at their full length and twice as many on average."""
    engine = ToyEngine(
        make_settings(num_kv_blocks=224, max_num_seqs=64, max_num_batched_tokens=64, max_model_len=120)
    )
    lengths = np.random.default_rng(0).integers(1, 100, 150).tolist()
    engine.submit(*(make_request(index, [index % 50] * 12, length) for index, length in enumerate(lengths)))
    engine.run()
    assert engine.scheduler.totals.recomputed_tokens < 0.05 * (150 * 12 + sum(lengths))
    busy = [len(step.slots) for step in engine.steps[: len(engine.steps) * 3 // 4]]
    assert np.mean(busy) > 14


def test_a_prompt_starts_only_when_its_blocks_are_free_now() -> None:
    """Those that run are about to end, so later there will be room; but not yet."""
    engine = ToyEngine(make_settings(block_size=16, num_kv_blocks=16, max_num_seqs=20, max_num_batched_tokens=512))
    engine.submit(*(make_request(index, [index] * 15, 2) for index in range(14)))
    engine.submit(make_request(14, [14] * 60, 2))
    engine.step()
    assert engine.scheduler.num_running == 14
    engine.run()
    assert engine.answers[14] == toy_answer([14] * 60, 2)


def test_equal_beginnings_are_computed_once() -> None:
    engine = ToyEngine(make_settings(prefix_cache=True, max_num_batched_tokens=64))
    shared = list(range(16))
    engine.submit(make_request(0, [*shared, 20], 4), make_request(1, [*shared, 21], 4))
    schedule = engine.step()
    assert sorted(schedule.num_new_tokens.tolist()) == [1, 17]  # the second shares blocks of the same step
    engine.run()
    engine.submit(make_request(2, shared, 4))
    assert engine.step().num_new_tokens.tolist() == [4]  # the last block again: its last token must be computed
    engine.run()
    totals = engine.scheduler.totals
    assert totals.cached_prompt_tokens == 16 + 12
    assert totals.prompt_tokens == 17 + 17 + 16
    assert totals.recomputed_tokens == 0
    assert engine.answers[2] == toy_answer(shared, 4)


def test_an_answer_is_found_as_the_beginning_of_the_next_prompt() -> None:
    engine = ToyEngine(make_settings(prefix_cache=True))
    engine.submit(make_request(0, [1, 2, 3], 14))
    engine.run()
    turn = [1, 2, 3, *engine.answers[0], 7]
    engine.submit(make_request(1, turn, 2))
    engine.run()
    assert engine.scheduler.totals.cached_prompt_tokens == 16
    assert engine.answers[1] == toy_answer(turn, 2)


def test_without_prefix_cache_nothing_is_shared() -> None:
    engine = ToyEngine(make_settings(prefix_cache=False))
    engine.submit(make_request(0, list(range(16)), 2))
    engine.run()
    engine.submit(make_request(1, list(range(16)), 2))
    assert engine.step().num_new_tokens.tolist() == [16]
    assert engine.scheduler.totals.cached_prompt_tokens == 0


def test_abort_frees_blocks_and_slot_at_once() -> None:
    engine = ToyEngine(make_settings(max_num_seqs=1))
    scheduler = engine.scheduler
    engine.submit(make_request(0, [1] * 8, 9), make_request(1, [2] * 8, 2))
    engine.step()
    assert scheduler.pool.num_free == 64 - 2
    scheduler.abort(0)
    assert (scheduler.num_running, scheduler.num_waiting, scheduler.pool.num_free) == (0, 1, 64)
    scheduler.abort(1)
    scheduler.abort(99)
    assert not engine.has_work()
    engine.submit(make_request(0, [3] * 8, 2))
    engine.run()
    assert engine.answers[0] == toy_answer([3] * 8, 2)


def test_a_request_of_max_model_len_runs_alone_in_the_whole_cache() -> None:
    engine = ToyEngine(make_settings(num_kv_blocks=16, max_model_len=64))
    engine.submit(make_request(0, [1] * 30, 34), make_request(1, [2] * 30, 34))
    engine.run()
    assert engine.answers == {0: toy_answer([1] * 30, 34), 1: toy_answer([2] * 30, 34)}
