"""The requests of a router, and all their tokens, in arrays: one step's rows are booked without a loop.

    wire id  =  generation << 20  |  slot

Each attempt at a replica has a generation of its own, so rows of an attempt that was given up match nothing.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..models.engine.protocol import I32, NO_LOGPROBS, U8, U64, FinishReason, SamplingParams, StepOutputs
from .wire import REQUEST_ID_BITS

SLOT_BITS = 20
MAX_REQUESTS = 1 << SLOT_BITS
_SLOT_MASK = MAX_REQUESTS - 1
_NUM_GENERATIONS = 1 << (REQUEST_ID_BITS - SLOT_BITS)

Rows = NDArray[np.intp]


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
    """Slots for requests. `tokens[slot, :counts[slot]]` are the tokens emitted so far, over all attempts.

    `look[slot]` says that the next row needs a look: always when `every_row[slot]`, else on an attempt's first.
    """

    def __init__(self, num_slots: int = 256, num_columns: int = 64) -> None:
        self._requests: list[Request | None] = [None] * num_slots
        self._wire_ids = np.zeros(num_slots, np.uint64)
        self._counts = np.zeros(num_slots, np.int64)
        self._every_row = np.zeros(num_slots, np.bool_)
        self._look = np.zeros(num_slots, np.bool_)
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
        generation = ((int(self._wire_ids[request.slot]) >> SLOT_BITS) + 1) % _NUM_GENERATIONS
        request.wire_id = (generation << SLOT_BITS) | request.slot
        self._wire_ids[request.slot] = request.wire_id
        self._look[request.slot] = True

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

    def book(self, wire_ids: U64, token_ids: I32, finish: U8) -> tuple[Rows, int]:
        """Take one step's rows in.

        Returns:
            The rows that someone must look at (first of an attempt, last, streamed), in order; and how many
            tokens were taken in.
        """
        slots = (wire_ids & np.uint64(_SLOT_MASK)).astype(np.int64)
        known = self._wire_ids.take(slots, mode="clip") == wire_ids
        if known.all() and self._all_differ(slots):
            return self._book(slots, token_ids, finish)
        return self._book_in_parts(np.flatnonzero(known), slots, token_ids, finish)

    def _book(self, slots: Rows, token_ids: I32, finish: U8) -> tuple[Rows, int]:
        """Rows of known requests, one each."""
        num_tokens = self._append(slots, token_ids)
        attention = self._look[slots]
        looked_at = np.flatnonzero(attention | (finish != 0))
        if len(looked_at):
            self._look[slots] = self._every_row[slots]
        return looked_at, num_tokens

    def _book_in_parts(self, rows: Rows, slots: Rows, token_ids: I32, finish: U8) -> tuple[Rows, int]:
        """The given rows; a request may have several: an engine may bring it more than one token in a step."""
        looked_at = [rows[:0]]
        num_tokens = 0
        while len(rows):
            _, first = np.unique(slots[rows], return_index=True)
            part = rows[np.sort(first)]
            attention, num_new = self._book(slots[part], token_ids[part], finish[part])
            looked_at.append(part[attention])
            num_tokens += num_new
            rows = np.delete(rows, first)
        return np.sort(np.concatenate(looked_at)), num_tokens

    def _all_differ(self, slots: Rows) -> bool:
        order = np.arange(len(slots))
        self._order[slots] = order
        return bool((self._order[slots] == order).all())

    def _append(self, slots: Rows, token_ids: I32) -> int:
        """Store one token per slot; slots differ. Returns how many there were: rows without a token have -1."""
        has_token = token_ids >= 0
        if not has_token.all():
            slots, token_ids = slots[has_token], token_ids[has_token]
        columns = self._counts[slots]
        if len(columns) and columns.max() >= self._tokens.shape[1]:
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
        self._wire_ids = np.concatenate([self._wire_ids, np.zeros(old, np.uint64)])
        self._counts = np.concatenate([self._counts, np.zeros(old, np.int64)])
        self._order = np.concatenate([self._order, np.zeros(old, np.int64)])
        self._every_row = np.concatenate([self._every_row, np.zeros(old, np.bool_)])
        self._look = np.concatenate([self._look, np.zeros(old, np.bool_)])
        self._tokens = np.concatenate([self._tokens, np.zeros_like(self._tokens)])
