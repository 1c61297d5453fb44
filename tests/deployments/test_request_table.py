import numpy as np
import pytest
from nfold.deployments.request_table import Request, RequestTable
from nfold.models.engine.protocol import SamplingParams


def new_request(stream: bool = False) -> Request:
    return Request("m", np.array([1], np.int32), SamplingParams(1000), lambda chunk: None, stream, 0.0)


def book(table: RequestTable, rows: list[tuple[int, int, int]]) -> tuple[list[int], int]:
    """(wire id, token, finish) rows."""
    ids, tokens, finish = zip(*rows, strict=True)
    looked_at, num_tokens = table.book(
        np.array(ids, np.uint64), np.array(tokens, np.int32), np.array(finish, np.uint8)
    )
    return looked_at.tolist(), num_tokens


@pytest.fixture
def table() -> RequestTable:
    return RequestTable(num_slots=2, num_columns=2)


def test_looks_at_first_last_and_streamed_rows_only(table: RequestTable) -> None:
    quiet, streamed = new_request(), new_request(stream=True)
    for request in (quiet, streamed):
        table.add(request)
    steps = [
        book(table, [(quiet.wire_id, token, finish), (streamed.wire_id, token, 0)])
        for token, finish in ((5, 0), (6, 0), (7, 2))
    ]

    assert steps == [([0, 1], 2), ([1], 2), ([0, 1], 2)]
    assert table.emitted(quiet).tolist() == [5, 6, 7]


def test_unknown_and_outdated_rows_match_nothing(table: RequestTable) -> None:
    request, gone = new_request(stream=True), new_request(stream=True)
    table.add(request)
    table.add(gone)
    old_id = request.wire_id
    book(table, [(old_id, 5, 0)])
    table.begin_attempt(request)
    gone_id = gone.wire_id
    table.remove(gone)

    looked_at, num_tokens = book(
        table, [(old_id, 9, 0), (gone_id, 9, 2), ((1 << 40) - 1, 9, 0), (request.wire_id, 6, 0)]
    )

    assert (looked_at, num_tokens) == ([3], 1)
    assert table.emitted(request).tolist() == [5, 6]
    assert request.num_emitted_before == 1


def test_the_callers_id_survives_a_new_attempt(table: RequestTable) -> None:
    request = new_request()
    table.add(request)
    request_id = request.request_id
    table.begin_attempt(request)

    assert table.find(request_id) is request
    assert table.attempt(request_id) is None
    assert table.attempt(request.wire_id) is request


def test_several_tokens_of_one_request_in_one_step(table: RequestTable) -> None:
    one, other = new_request(stream=True), new_request()
    table.add(one)
    table.add(other)

    looked_at, num_tokens = book(
        table, [(one.wire_id, 5, 0), (other.wire_id, 50, 0), (one.wire_id, 6, 0), (one.wire_id, 7, 2)]
    )

    assert (looked_at, num_tokens) == ([0, 1, 2, 3], 4)
    assert table.emitted(one).tolist() == [5, 6, 7]
    assert table.emitted(other).tolist() == [50]


def test_a_row_without_a_token_adds_none(table: RequestTable) -> None:
    request = new_request()
    table.add(request)

    assert book(table, [(request.wire_id, -1, 4)]) == ([0], 0)
    assert table.num_emitted(request) == 0


def test_grows(table: RequestTable) -> None:
    requests = [new_request() for _ in range(9)]
    for request in requests:
        table.add(request)
    for token in range(20):
        book(table, [(request.wire_id, token + i, 0) for i, request in enumerate(requests)])

    assert len(table) == 9
    assert len({request.wire_id for request in requests}) == 9
    for i, request in enumerate(requests):
        assert table.emitted(request).tolist() == list(range(i, i + 20))


def test_slots_are_reused(table: RequestTable) -> None:
    ids = set()
    for _ in range(10):
        request = new_request()
        table.add(request)
        ids.add(request.request_id)
        table.remove(request)
        assert not table.holds(request)

    assert len(ids) == 10
    assert len(table) == 0
