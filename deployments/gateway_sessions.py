"""What a replica remembers of each router that talks to it, and the ids that keep their requests apart.

    engine's request id  =  session slot << 40  |  router's request id

A slot is never given twice, so rows of a session that ended are known by their slot and go nowhere.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from ..models.engine.protocol import U64, StepOutputs
from .wire import REQUEST_ID_BITS

_SLOT_SHIFT = np.uint64(REQUEST_ID_BITS)
_ID_MASK = np.uint64((1 << REQUEST_ID_BITS) - 1)


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
        ids = outputs.request_ids
        first, last = int(ids.min()) >> REQUEST_ID_BITS, int(ids.max()) >> REQUEST_ID_BITS
        row_slots = ids >> _SLOT_SHIFT if first < last else ids
        slots = [first] if first == last else np.unique(row_slots).tolist()
        parts: list[tuple[GatewaySession, StepOutputs]] = []
        for slot in slots:
            session = self._by_slot.get(slot)
            if session is None:
                continue
            rows = outputs if len(slots) == 1 else _rows(outputs, np.flatnonzero(row_slots == slot))
            session.in_flight.end(rows.request_ids[np.flatnonzero(rows.finish)])
            parts.append((session, replace(rows, request_ids=rows.request_ids & _ID_MASK)))
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
