"""What a replica remembers of requests in flight, against a plain set."""

import numpy as np
from nfold.deployments.gateway_sessions import GatewaySessions, RequestsInFlight
from nfold.models.engine.protocol import StepOutputs, StepRecord


def ids(*values: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    return np.array(values, np.uint64)


def outputs(request_ids: list[int], finish: list[int]) -> StepOutputs:
    count = len(request_ids)
    return StepOutputs(
        request_ids=ids(*request_ids),
        token_ids=np.arange(count, dtype=np.int32),
        finish=np.array(finish, np.uint8),
        logprobs=np.full(count, np.nan, np.float32),
        top_ids=np.zeros((count, 0), np.int32),
        top_logprobs=np.zeros((count, 0), np.float32),
        step=StepRecord(0.1, 0, count, 0),
    )


def test_an_id_in_flight_is_refused_and_nothing_is_taken_in() -> None:
    flight = RequestsInFlight()
    assert flight.add(ids(5, 7))
    assert not flight.add(ids(8, 7))
    assert len(flight) == 2
    flight.end(ids(7))
    assert flight.add(ids(8, 7))
    assert flight.ids().tolist() == [5, 7, 8]


def test_unknown_ids_are_forgotten_without_harm() -> None:
    flight = RequestsInFlight()
    flight.end(ids(1))
    flight.add(ids(1, 2))
    flight.end(ids(2, 3))
    flight.end(ids(2))
    assert len(flight) == 1
    assert flight.ids().tolist() == [1]


def test_rows_go_to_their_sessions_and_those_of_closed_ones_nowhere() -> None:
    sessions = GatewaySessions()
    one, two, gone = (sessions.open(peer, 0.0) for peer in (b"1", b"2", b"3"))
    for session in (one, two, gone):
        assert session.in_flight.add(session.engine_ids(ids(10, 11)))
    sessions.close(gone)
    rows = [int(session.engine_ids(ids(request))[0]) for request in (10, 11) for session in (two, gone, one)]
    parts = sessions.split(outputs(rows, [0, 0, 1, 0, 0, 0]))
    assert [(session.peer, part.request_ids.tolist(), part.finish.tolist()) for session, part in parts] == [
        (b"1", [10, 11], [1, 0]),
        (b"2", [10, 11], [0, 0]),
    ]
    assert sessions.num_in_flight() == 3
    assert [part.token_ids.tolist() for _, part in parts] == [[2, 5], [0, 3]]


def test_one_sessions_rows_are_not_copied() -> None:
    sessions = GatewaySessions()
    session = sessions.open(b"1", 0.0)
    step = outputs(session.engine_ids(ids(3, 4)).tolist(), [0, 0])
    [(_, part)] = sessions.split(step)
    assert part.token_ids is step.token_ids
    assert part.request_ids.tolist() == [3, 4]
    assert sessions.split(outputs([], [])) == []
