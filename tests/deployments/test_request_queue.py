from collections import deque

import numpy as np
from nfold.deployments.request_queue import RequestQueue
from nfold.deployments.request_table import RequestTable
from nfold.models.engine.protocol import SamplingParams, SubmitBatch

Slots = np.ndarray[tuple[int], np.dtype[np.int64]]


def add(table: RequestTable, count: int) -> Slots:
    return table.add(SubmitBatch.build(range(count), [[1]] * count, [SamplingParams(1)] * count), 0, 0.0)


def test_first_come_first_served_and_who_left_is_skipped() -> None:
    table = RequestTable()
    queue = RequestQueue(table)
    slots = add(table, 6)
    queue.push(slots)
    queue.left(2)
    table.remove(slots[[0, 3]])

    assert queue.first(3).tolist() == slots[[1, 2, 4]].tolist()
    queue.pop(1)
    again = add(table, 1)
    queue.push_first(again)

    assert len(queue) == 4
    assert queue.all().tolist() == [*again, *slots[[2, 4, 5]]]


def test_against_a_deque() -> None:
    """Random pushes at both ends, pops and departures."""
    random = np.random.default_rng(0)
    table = RequestTable()
    queue = RequestQueue(table)
    expected: deque[int] = deque()
    for _ in range(2000):
        count = int(random.integers(0, 40))
        match int(random.integers(0, 4)):
            case 0:
                slots = add(table, count)
                queue.push(slots)
                expected.extend(slots.tolist())
            case 1:
                slots = add(table, count)
                queue.push_first(slots)
                expected.extendleft(slots.tolist()[::-1])
            case 2:
                slots = queue.first(count)
                assert slots.tolist() == [expected.popleft() for _ in range(min(count, len(expected)))]
                queue.pop(len(slots))
                table.remove(slots)
            case _:
                gone = random.permutation(np.array(expected, np.int64))[:count]
                queue.left(len(gone))
                table.remove(gone)
                expected = deque(slot for slot in expected if slot not in set(gone.tolist()))
        assert len(queue) == len(expected)

    assert queue.all().tolist() == list(expected)
