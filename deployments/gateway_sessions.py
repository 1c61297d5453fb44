"""What a replica remembers of each router that talks to it, and the ids that keep their requests apart.

    engine's request id  =  session slot << 40  |  router's request id

A slot is never given twice, so rows of a session that ended are known by their slot and go nowhere.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from ..models.engine.protocol import U64, StepOutputs
from .wire_loops import REQUEST_ID_BITS, SLOT_SHIFT, survey


class RequestsInFlight:
    """Which requests were submitted and have not ended.

    A set: messages bring few ids each, for which one is many times faster than searching arrays of all in flight.
    """

    def __init__(self) -> None:
        self._ids: set[int] = set()

    def __len__(self) -> int:
        return len(self._ids)

    def ids(self) -> U64:
        """[N] sorted."""
        return np.array(sorted(self._ids), np.uint64)

    def add(self, ids: U64) -> bool:
        """Take these in, which differ. False, and nothing happens, when one is in flight already."""
        new: list[int] = ids.tolist()
        if not self._ids.isdisjoint(new):
            return False
        self._ids.update(new)
        return True

    def end(self, ids: U64) -> None:
        """These have ended; unknown ones are ignored."""
        self._ids.difference_update(ids.tolist())


@dataclass(slots=True, eq=False)
class GatewaySession:
    """One router's session. `in_flight` holds engine ids."""

    peer: bytes
    slot: int
    last_heard_s: float
    in_flight: RequestsInFlight = field(default_factory=RequestsInFlight)

    def engine_ids(self, request_ids: U64) -> U64:
        return request_ids | np.uint64(self.slot << REQUEST_ID_BITS)


class GatewaySessions:
    """The open sessions, by peer and by slot."""

    def __init__(self) -> None:
        self._by_peer: dict[bytes, GatewaySession] = {}
        self._by_slot: dict[int, GatewaySession] = {}
        self._next_slot = 1

    def __len__(self) -> int:
        return len(self._by_peer)

    def __iter__(self) -> Iterator[GatewaySession]:
        """A copy, so that sessions may be closed while iterating."""
        return iter(list(self._by_peer.values()))

    def open(self, peer: bytes, now_s: float) -> GatewaySession:
        session = GatewaySession(peer, self._next_slot, now_s)
        self._next_slot += 1
        self._by_peer[peer] = self._by_slot[session.slot] = session
        return session

    def get(self, peer: bytes) -> GatewaySession | None:
        return self._by_peer.get(peer)

    def close(self, session: GatewaySession) -> None:
        """Forget it. Ignored the second time."""
        if self._by_slot.pop(session.slot, None) is not None:
            del self._by_peer[session.peer]

    def num_in_flight(self) -> int:
        return sum(len(session.in_flight) for session in self._by_peer.values())

    def split(self, outputs: StepOutputs) -> list[tuple[GatewaySession, StepOutputs]]:
        """The rows of one step by session, with the routers' ids; requests that ended leave `in_flight`."""
        if len(outputs) == 0:
            return []
        router_ids, ended, first, last = survey(outputs.request_ids, outputs.finish)
        if first == last:
            session = self._by_slot.get(first)
            if session is None:
                return []
            session.in_flight.end(ended)
            return [(session, outputs.with_ids(router_ids))]
        row_slots = outputs.request_ids >> SLOT_SHIFT
        parts: list[tuple[GatewaySession, StepOutputs]] = []
        for slot in np.unique(row_slots).tolist():
            session = self._by_slot.get(slot)
            if session is not None:
                session.in_flight.end(ended[ended >> SLOT_SHIFT == slot])
                rows = np.flatnonzero(row_slots == slot)
                parts.append((session, _rows(outputs.with_ids(router_ids), rows)))
        return parts


def _rows(outputs: StepOutputs, rows: np.ndarray[tuple[int], np.dtype[np.intp]]) -> StepOutputs:
    return StepOutputs(
        request_ids=outputs.request_ids[rows],
        token_ids=outputs.token_ids[rows],
        finish=outputs.finish[rows],
        logprobs=outputs.logprobs[rows],
        top_ids=outputs.top_ids[rows],
        top_logprobs=outputs.top_logprobs[rows],
        step=outputs.step,
    )
