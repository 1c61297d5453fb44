"""The requests of a router, and all their tokens, in arrays: one step's rows are booked without a loop.

    wire id  =  generation << 20  |  slot

Each attempt at a replica has a generation of its own, so rows of an attempt that was given up match nothing.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..models.engine.protocol import I32, NO_LOGPROBS, U64, FinishReason, SamplingParams, StepOutputs
from .wire import REQUEST_ID_BITS

SLOT_BITS = 20
MAX_REQUESTS = 1 << SLOT_BITS
_SLOT_MASK = MAX_REQUESTS - 1
_NUM_GENERATIONS = 1 << (REQUEST_ID_BITS - SLOT_BITS)

_Rows = NDArray[np.int64]


@dataclass(slots=True)
class TokenChunk:
    """News of one request.

    Attributes:
        token_ids: new tokens, in order; each token comes once.
        finish: not NONE in the last chunk only.
        num_prompt_tokens: of the request as submitted.
        logprobs: one per token when asked for.
        top_ids, top_logprobs: per token, the alternatives asked for.
        error: what went wrong, when `finish` is ERROR.
    """

    token_ids: list[int]
    finish: FinishReason
    num_prompt_tokens: int
    logprobs: list[float] | None = None
    top_ids: list[list[int]] | None = None
    top_logprobs: list[list[float]] | None = None
    error: str = ""


Sink = Callable[[TokenChunk], None]


@dataclass(slots=True, eq=False)
class Request:
    """One request from submission to its end.

    Attributes:
        request_id: what the caller knows it by: the wire id of its first attempt.
        wire_id: of the present attempt.
        replica_id: who works on it, empty while it is queued.
        cost: prompt and expected output tokens, as reckoned when it was queued (again).
        charge: what was added to its replica's outstanding tokens for it, and not yet taken off but for the emitted
            tokens of this attempt.
        num_prompt_charged: the part of it that goes with the first row.
        num_emitted_before: tokens emitted when the present attempt began.
        num_delivered: tokens that its sink has had.
        logprobs, top_ids, top_logprobs: not yet delivered.
    """

    model: str
    prompt_ids: I32
    sampling: SamplingParams
    sink: Sink
    stream: bool
    submitted_s: float
    request_id: int = -1
    wire_id: int = -1
    slot: int = -1
    replica_id: str = ""
    cost: float = 0.0
    charge: float = 0.0
    num_prompt_charged: int = 0
    num_attempts: int = 0
    num_emitted_before: int = 0
    num_delivered: int = 0
    first_token_s: float | None = None
    logprobs: list[float] = field(default_factory=list)
    top_ids: list[list[int]] = field(default_factory=list)
    top_logprobs: list[list[float]] = field(default_factory=list)

    @property
    def wants_logprobs(self) -> bool:
        return self.sampling.num_logprobs != NO_LOGPROBS

    def keep_logprobs(self, outputs: StepOutputs, row: int) -> None:
        """Those of one token, until it is delivered."""
        num_top = self.sampling.num_logprobs
        self.logprobs.append(float(outputs.logprobs[row]))
        self.top_ids.append(outputs.top_ids[row, :num_top].tolist())
        self.top_logprobs.append(outputs.top_logprobs[row, :num_top].tolist())

    def take_logprobs(self) -> tuple[list[float], list[list[int]], list[list[float]]]:
        """Those kept, to deliver them."""
        taken = self.logprobs, self.top_ids, self.top_logprobs
        self.logprobs, self.top_ids, self.top_logprobs = [], [], []
        return taken


class RequestTable:
    """Slots for requests. `tokens[slot, :counts[slot]]` are the tokens emitted so far, over all attempts."""

    def __init__(self, num_slots: int = 256, num_columns: int = 64) -> None:
        self._requests: list[Request | None] = [None] * num_slots
        self._generations = np.zeros(num_slots, np.int64)
        self._counts = np.zeros(num_slots, np.int64)
        self._every_row = np.zeros(num_slots, np.bool_)
        self._fresh = np.zeros(num_slots, np.bool_)
        self._order = np.zeros(num_slots, np.int64)
        self._tokens = np.zeros((num_slots, num_columns), np.int32)
        self._free: deque[int] = deque(range(num_slots))

    def __len__(self) -> int:
        return len(self._requests) - len(self._free)

    def __iter__(self) -> Iterator[Request]:
        return (request for request in self._requests if request is not None)

    def add(self, request: Request) -> None:
        """Give the request a slot and its ids."""
        if not self._free:
            self._grow_slots()
        request.slot = self._free.popleft()
        self._requests[request.slot] = request
        self._counts[request.slot] = 0
        self._every_row[request.slot] = request.stream or request.wants_logprobs
        self._renew(request)
        request.request_id = request.wire_id

    def begin_attempt(self, request: Request) -> None:
        """A new wire id: rows under the old one match nothing from here on."""
        self._renew(request)
        request.num_emitted_before = int(self._counts[request.slot])

    def _renew(self, request: Request) -> None:
        slot = request.slot
        self._generations[slot] = (self._generations[slot] + 1) % _NUM_GENERATIONS
        self._fresh[slot] = True
        request.wire_id = (int(self._generations[slot]) << SLOT_BITS) | slot

    def remove(self, request: Request) -> None:
        """Free the slot. Rows under its wire id match nothing from here on."""
        self._renew(request)
        self._requests[request.slot] = None
        self._free.append(request.slot)

    def holds(self, request: Request) -> bool:
        """Whether it has not been removed."""
        return self._requests[request.slot] is request

    def find(self, request_id: int) -> Request | None:
        """By the caller's id."""
        slot = request_id & _SLOT_MASK
        request = self._requests[slot] if slot < len(self._requests) else None
        return request if request is not None and request.request_id == request_id else None

    def attempt(self, wire_id: int) -> Request | None:
        """By the id of the present attempt."""
        slot = wire_id & _SLOT_MASK
        request = self._requests[slot] if slot < len(self._requests) else None
        return request if request is not None and request.wire_id == wire_id else None

    def emitted(self, request: Request, start: int = 0) -> I32:
        """Its tokens from the given one on (a view)."""
        return self._tokens[request.slot, start : self._counts[request.slot]]

    def num_emitted(self, request: Request) -> int:
        return int(self._counts[request.slot])

    def book(self, wire_ids: U64, token_ids: I32, finish: NDArray[np.uint8]) -> tuple[_Rows, int]:
        """Take one step's rows in.

        Returns:
            The rows that someone must look at (first of an attempt, last, streamed), in order; and how many
            tokens were taken in.
        """
        ids = wire_ids.astype(np.int64)
        slots = ids & _SLOT_MASK
        known = slots < len(self._requests)
        known &= self._generations[np.where(known, slots, 0)] == ids >> SLOT_BITS
        rows = np.flatnonzero(known)
        looked_at: list[_Rows] = []
        num_tokens = 0
        while len(rows):
            first = self._first_of_each(slots[rows])
            batch, rows = rows[first], rows[~first]
            num_tokens += self._append(slots[batch], token_ids[batch])
            attention = self._every_row[slots[batch]] | self._fresh[slots[batch]] | (finish[batch] != 0)
            self._fresh[slots[batch]] = False
            looked_at.append(batch[attention])
        if len(looked_at) == 1:
            return looked_at[0], num_tokens
        return np.sort(np.concatenate(looked_at)) if looked_at else rows, num_tokens

    def _first_of_each(self, slots: _Rows) -> NDArray[np.bool_]:
        """Which items are the first of their slot: an engine may give one request several tokens in a step."""
        order = np.arange(len(slots))
        self._order[slots[::-1]] = order[::-1]  # of equal slots the last assignment stays
        return self._order[slots] == order

    def _append(self, slots: _Rows, token_ids: I32) -> int:
        """Store one token per slot; slots differ. Returns how many there were: rows without a token have -1."""
        has_token = token_ids >= 0
        if not has_token.all():
            slots, token_ids = slots[has_token], token_ids[has_token]
        columns = self._counts[slots]
        if len(columns) and int(columns.max()) >= self._tokens.shape[1]:
            self._tokens = np.concatenate([self._tokens, np.zeros_like(self._tokens)], axis=1)
        self._tokens[slots, columns] = token_ids
        self._counts[slots] = columns + 1
        return len(slots)

    def _grow_slots(self) -> None:
        old = len(self._requests)
        if old >= MAX_REQUESTS:
            raise AssertionError("a router's queues are bounded far below its slots")
        self._requests += [None] * old
        self._free.extend(range(old, 2 * old))
        self._generations = np.concatenate([self._generations, np.zeros(old, np.int64)])
        self._counts = np.concatenate([self._counts, np.zeros(old, np.int64)])
        self._order = np.concatenate([self._order, np.zeros(old, np.int64)])
        self._every_row = np.concatenate([self._every_row, np.zeros(old, np.bool_)])
        self._fresh = np.concatenate([self._fresh, np.zeros(old, np.bool_)])
        self._tokens = np.concatenate([self._tokens, np.zeros_like(self._tokens)])
