from collections.abc import Sequence

import numpy as np
import pytest
from nfold.deployments.request_table import RequestTable
from nfold.models.engine.protocol import I32, U8, SamplingParams, SubmitBatch

# What is asked for, by its names in a SubmitBatch.
ASKED = ("max_tokens", "temperature", "top_k", "top_p", "seed", "ignore_eos", "num_logprobs", "stop_lens")


class Deaf:
    """A bulk sink."""

    def progress(self, first: np.ndarray, done: np.ndarray, num_tokens: I32, finish: U8, now_s: float) -> None:  # pyright: ignore
        raise AssertionError("the table tells nobody")


def add(table: RequestTable, *streams: bool, prompt: Sequence[int] = (1,)) -> list[int]:
    """The slots of one ordinary request each."""
    ids = np.array(prompt, np.int32)
    return [table.add_ordinary(ids, SamplingParams(1000), lambda chunk: None, stream, 0, 0.0) for stream in streams]


def add_each(
    table: RequestTable, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The slots of one ordinary request each, with its own prompt and sampling."""
    each = zip(prompts, params, strict=True)
    return array(
        *(
            table.add_ordinary(np.array(ids, np.int32), asked, lambda chunk: None, False, 0, 0.0)
            for ids, asked in each
        )
    )


def ids(table: RequestTable, slots: Sequence[int]) -> list[int]:
    return table.wire_ids[list(slots)].tolist()


def array(*slots: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array(slots, np.int64)


def book(table: RequestTable, rows: list[tuple[int, int, int]]) -> tuple[list[int], int]:
    """(wire id, token, finish) rows."""
    wire_ids, tokens, finish = zip(*rows, strict=True)
    booked = table.book(np.array(wire_ids, np.uint64), np.array(tokens, np.int32), np.array(finish, np.uint8))
    assert (booked.slots & 0xFFFFF == np.array(wire_ids)[booked.rows] & 0xFFFFF).all()
    return booked.rows.tolist(), booked.num_tokens


@pytest.fixture
def table() -> RequestTable:
    return RequestTable(num_slots=2)


def test_looks_at_first_last_and_streamed_rows_only(table: RequestTable) -> None:
    slots = add(table, False, True)
    quiet, streamed = ids(table, slots)
    steps = [
        book(table, [(quiet, token, finish), (streamed, token, 0)]) for token, finish in ((5, 0), (6, 0), (7, 2))
    ]

    assert steps == [([0, 1], 2), ([1], 2), ([0, 1], 2)]
    assert table.emitted(slots[0]).tolist() == [5, 6, 7]


def test_unknown_and_outdated_rows_match_nothing(table: RequestTable) -> None:
    slot, gone = add(table, True, True)
    old_id, gone_id = ids(table, [slot, gone])
    book(table, [(old_id, 5, 0)])
    table.begin_attempt(array(slot))
    table.remove(array(gone))

    rows = [(old_id, 9, 0), (gone_id, 9, 2), ((1 << 40) - 1, 9, 0), *((id, 6, 0) for id in ids(table, [slot]))]

    assert book(table, rows) == ([3], 1)
    assert table.emitted(slot).tolist() == [5, 6]
    assert table.num_emitted_before[slot] == 1


def test_free_slots_match_nothing(table: RequestTable) -> None:
    """Not even the ids that they had or will have."""
    (slot,) = add(table, True)
    (wire_id,) = ids(table, [slot])
    table.remove(array(slot))
    generation = 1 << 20

    assert book(table, [(0, 5, 0), (1, 5, 0), (wire_id, 5, 0), (wire_id + generation, 5, 0)]) == ([], 0)
    assert table.find(np.array([0, 1, wire_id], np.uint64)).tolist() == []


def test_the_callers_id_survives_a_new_attempt(table: RequestTable) -> None:
    (slot,) = add(table, False)
    request_id = table.request_ids[[slot]]
    table.begin_attempt(array(slot))

    assert table.find(request_id).tolist() == [slot]
    assert not table.match(request_id)[1].any()
    assert table.match(table.wire_ids[[slot]])[1].all()


def test_several_tokens_of_one_request_in_one_step(table: RequestTable) -> None:
    slots = add(table, True, False)
    one, other = ids(table, slots)

    assert book(table, [(one, 5, 0), (other, 50, 0), (one, 6, 0), (one, 7, 2)]) == ([0, 1, 2, 3], 4)
    assert table.emitted(slots[0]).tolist() == [5, 6, 7]
    assert table.emitted(slots[1]).tolist() == [50]


def test_a_row_without_a_token_adds_none(table: RequestTable) -> None:
    (slot,) = add(table, False)

    assert book(table, [(wire_id, -1, 4) for wire_id in ids(table, [slot])]) == ([0], 0)
    assert table.num_emitted[slot] == 0


def test_grows(table: RequestTable) -> None:
    slots = [slot for _ in range(3) for slot in add(table, False, False, False)]
    for token in range(200):
        book(table, [(wire_id, token + i, 0) for i, wire_id in enumerate(ids(table, slots))])

    assert len(table) == 9
    assert len(set(ids(table, slots))) == 9
    for i, slot in enumerate(slots):
        assert table.emitted(slot).tolist() == list(range(i, i + 200))
        assert table.emitted(slot, 150).tolist() == list(range(i + 150, i + 200))


def test_slots_and_pages_are_reused(table: RequestTable) -> None:
    seen = set()
    for _ in range(10):
        (slot,) = add(table, False)
        seen.add(int(table.request_ids[slot]))
        for token in range(100):
            book(table, [(ids(table, [slot])[0], token, 0)])
        table.remove(array(slot))

    assert len(seen) == 10
    assert len(table) == 0
    assert table.num_pages_used == 0


def test_a_batch_goes_on_after_the_emitted_tokens(table: RequestTable) -> None:
    begun, fresh = add(table, False, False, prompt=(8, 9))
    for token in (5, 6, 7):
        book(table, [(ids(table, [begun])[0], token, 0)])
    table.begin_attempt(array(begun))

    batch = table.batch(array(fresh, begun))

    assert batch.request_ids.tolist() == ids(table, [fresh, begun])
    assert batch.prompt_lens.tolist() == [2, 5]
    assert batch.prompt_ids.tolist() == [8, 9, 8, 9, 5, 6, 7]
    assert batch.max_tokens.tolist() == [1000, 997]


def test_everything_about_sampling_travels(table: RequestTable) -> None:
    params = [
        SamplingParams(7, 0.5, 3, 0.25, 1 << 63, True, (4, 5), 2),
        SamplingParams(8),
        SamplingParams(9, stop_token_ids=(6,)),
    ]
    asked = SubmitBatch.build(range(3), [[1], [2], [3]], params)
    slots = add_each(table, [[1], [2], [3]], params)

    for order in ([0, 1, 2], [2, 0, 1]):
        batch = table.batch(slots[order])
        for name in ASKED:
            assert getattr(batch, name).tolist() == getattr(asked, name)[order].tolist(), name
            assert getattr(batch, name).dtype == getattr(asked, name).dtype
        assert batch.stop_ids.tolist() == ([4, 5, 6] if order == [0, 1, 2] else [6, 4, 5])


def test_requests_in_bulk_are_like_ordinary_ones(table: RequestTable) -> None:
    params = [SamplingParams(7, 0.5, seed=1 << 63, ignore_eos=True), SamplingParams(8)]
    prompts = [[0, 9], [1, 9]]
    ordinary = add_each(table, prompts, params)
    bulk = table.add(SubmitBatch.build(range(2), prompts, params), 0, 0.0)

    batch = table.batch(np.concatenate([ordinary, bulk]))

    assert batch.prompt_ids.tolist() == [0, 9, 1, 9] * 2
    assert len(set(batch.request_ids.tolist())) == 4
    for name in ("prompt_lens", *ASKED):
        values = getattr(batch, name).tolist()
        assert values[:2] == values[2:], name


def test_bulk_sinks_are_let_go_with_their_last_request(table: RequestTable) -> None:
    first, second = Deaf(), Deaf()
    batch = SubmitBatch.build(range(3), [[1]] * 3, [SamplingParams(5)] * 3)
    slots = table.add(batch, 0, 0.0)
    table.set_bulk(slots[:2], array(10, 11), first)
    table.set_bulk(slots[2:], array(12), second)
    numbers = table.sink[slots].tolist()

    table.remove(slots[:1])
    assert table.bulk_sinks[numbers[1]] is first
    assert table.request_ids_of(first) == table.request_ids[slots[1:2]].tolist()
    table.remove(slots[1:])

    assert table.request_ids_of(first) == table.request_ids_of(second) == []
    with pytest.raises(KeyError):
        _ = table.bulk_sinks[numbers[2]]
