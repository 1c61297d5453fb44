"""The requests of a router, a row of arrays each: what a message brings for many is booked at once.

    wire id  =  generation << 20  |  slot

Each attempt at a replica has a generation of its own, so rows of an attempt that was given up match nothing.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..models.engine.protocol import I32, NO_LOGPROBS, U8, U64, SamplingParams, SubmitBatch
from . import table_rows
from .index_pool import IndexPool, Indices
from .request_loops import FREE, NOWHERE, SLOT_BITS, SLOT_MASK, begin, book, free, match, renew
from .sinks import NO_BULK_SINK, BulkSink, BulkSinks, Request, Sink
from .table_rows import SAMPLING
from .token_pages import TokenPages
from .wire_loops import ID_MASK

MAX_REQUESTS = 1 << SLOT_BITS
_FILL = {"replica": NOWHERE, "sink": NO_BULK_SINK, "wire_ids": FREE, "request_ids": FREE}
_NO_IDS = np.zeros(0, np.int32)

F64 = NDArray[np.float64]


class Booked(NamedTuple):
    """What one step's rows brought.

    Attributes:
        rows: those that someone must look at (first of an attempt, last, streamed), in order.
        slots: of these rows.
        num_tokens: taken in, of all rows.
    """

    rows: Indices
    slots: Indices
    num_tokens: int


class RequestTable:
    """Slots for requests. Columns are by slot and may be read and, where said, written by their users.

    Attributes:
        wire_ids: of the present attempt; of nobody when the slot is free.
        request_ids: what the caller knows the request by: the wire id of its first attempt.
        model: the model's number.
        replica: the number of the replica that it is bound to, NOWHERE while queued. (written)
        sink: the bulk sink's number, or NO_BULK_SINK for an ordinary request, which `ordinary` holds.
        tags: what the bulk sink knows it by.
        charge: output tokens that were added to its replica's load for it, as expected. (written)
        prompt_charge: prompt tokens that were, until the attempt's first row takes them off. (written)
        submitted_s, first_token_s: when; NaN before the first token. (written)
        num_attempts: replicas lost under it. (written)
        num_emitted_before: tokens emitted when the present attempt began.
        num_emitted: tokens emitted so far, over all attempts.
    """

    def __init__(self, num_slots: int = 16384) -> None:
        n = num_slots
        self.wire_ids: U64 = np.arange(n, dtype=np.uint64) | FREE
        self.request_ids: U64 = np.full(n, FREE)
        self.model: I32 = np.zeros(n, np.int32)
        self.replica: I32 = np.full(n, NOWHERE, np.int32)
        self.sink: I32 = np.full(n, NO_BULK_SINK, np.int32)
        self.tags: Indices = np.zeros(n, np.int64)
        self.charge: F64 = np.zeros(n, np.float64)
        self.prompt_charge: Indices = np.zeros(n, np.int64)
        self.submitted_s: F64 = np.zeros(n, np.float64)
        self.first_token_s: F64 = np.zeros(n, np.float64)
        self.num_attempts: I32 = np.zeros(n, np.int32)
        self.num_emitted_before: Indices = np.zeros(n, np.int64)
        self.prompt_lens: I32 = np.zeros(n, np.int32)
        self.max_tokens: I32 = np.zeros(n, np.int32)
        self.ignore_eos: U8 = np.zeros(n, np.uint8)
        self._sampling: NDArray[np.void] = np.zeros(n, SAMPLING)
        # `look` says that the next row needs a look: always when `every_row`, else on an attempt's first.
        self._every_row: NDArray[np.bool_] = np.zeros(n, np.bool_)
        self._look: NDArray[np.bool_] = np.zeros(n, np.bool_)
        self._prompts: list[I32 | None] = [None] * n
        self._stop_ids: dict[int, I32] = {}
        self.ordinary: dict[int, Request] = {}
        self.bulk_sinks = BulkSinks()
        self._pages = TokenPages(n)
        self._slots = IndexPool(n)

    def __len__(self) -> int:
        return self._slots.num_taken

    @property
    def num_emitted(self) -> Indices:
        return self._pages.counts

    @property
    def num_pages_used(self) -> int:
        return self._pages.num_pages_used

    def add(self, batch: SubmitBatch, model: int, now_s: float, prompt_starts: Indices | None = None) -> Indices:
        """Give requests without stop ids slots and ids; those of `batch` do not count, and its arrays must not
        change afterwards. With `prompt_starts` each prompt is a slice of its `prompt_ids` from there on."""
        count = len(batch)
        while self._slots.num_free < count:
            self._grow()
        slots = self._slots.take(count)
        begin(
            *(slots, model, now_s, self.wire_ids, self.request_ids, self._look, self.model),
            *(self.submitted_s, self.first_token_s, self.num_attempts, self.num_emitted_before),
        )
        table_rows.put(
            slots,
            batch.prompt_lens,
            batch.max_tokens,
            batch.temperature,
            batch.top_k,
            batch.top_p,
            batch.seed,
            batch.ignore_eos,
            batch.num_logprobs,
            batch.stop_lens,
            *self._asked(),
        )
        lens = batch.prompt_lens
        starts = lens.cumsum(dtype=np.int64) - lens if prompt_starts is None else prompt_starts
        for slot, start, end in zip(slots.tolist(), starts.tolist(), (starts + lens).tolist(), strict=True):
            self._prompts[slot] = batch.prompt_ids[start:end]
        return slots

    def add_ordinary(
        self, prompt: I32, params: SamplingParams, sink: Sink, stream: bool, model: int, now_s: float
    ) -> int:
        """Give one request, whose news go to its own sink, a slot and an id. The prompt must not change afterwards.

        Not by arrays of one item: those cost several times as much, most of all where caches are cold.
        """
        if self._slots.num_free == 0:
            self._grow()
        slot = self._slots.take_one()
        request_id = (int(self.wire_ids[slot]) + (1 << SLOT_BITS)) & int(ID_MASK)
        self.wire_ids[slot] = self.request_ids[slot] = request_id
        self.model[slot] = model
        self.submitted_s[slot], self.first_token_s[slot] = now_s, math.nan
        self.num_attempts[slot] = self.num_emitted_before[slot] = 0
        self.prompt_lens[slot], self.max_tokens[slot] = len(prompt), params.max_tokens
        self.ignore_eos[slot] = params.ignore_eos
        self._sampling[slot] = (
            *(params.seed, params.temperature, params.top_k, params.top_p),
            *(len(params.stop_token_ids), params.num_logprobs),
        )
        self._prompts[slot] = prompt
        if params.stop_token_ids:
            self._stop_ids[slot] = np.array(params.stop_token_ids, np.int32)
        num_top = None if params.num_logprobs == NO_LOGPROBS else params.num_logprobs
        self.ordinary[slot] = Request(request_id, sink, stream, len(prompt), num_top)
        self._look[slot] = True
        self._every_row[slot] = stream or num_top is not None
        return slot

    def set_bulk(self, slots: Indices, tags: Indices, sink: BulkSink) -> None:
        """Their news go to one sink."""
        self.sink[slots] = self.bulk_sinks.add(sink, len(slots))
        self.tags[slots] = tags
        self._every_row[slots] = False

    def begin_attempt(self, slots: Indices) -> None:
        """New wire ids: rows under the old ones match nothing from here on."""
        renew(slots, self.wire_ids, self._look)
        self.num_emitted_before[slots] = self.num_emitted[slots]

    def remove(self, slots: Indices) -> None:
        """Free slots, which differ. Rows under their wire ids match nothing from here on."""
        pages = self._pages.arrays(0)
        sinks, num_free = free(
            *(slots, self.wire_ids, self.request_ids, self.sink, self.replica),
            *(pages.counts, pages.cursor, pages.previous, pages.free, pages.num_free),
        )
        self._pages.pages_left(num_free)
        self.bulk_sinks.remove(sinks)
        for slot in slots.tolist():
            self._prompts[slot] = None
            self.ordinary.pop(slot, None)
            self._stop_ids.pop(slot, None)
        self._slots.give(slots)

    def match(self, wire_ids: U64) -> tuple[Indices, NDArray[np.bool_]]:
        """The slots of wire ids, and which of these are of a present attempt."""
        return match(wire_ids, self.wire_ids)

    def charges(self) -> tuple[I32, Indices, F64, Indices, Indices]:
        """The columns that say what each request still has outstanding at its replica, for `request_loops`."""
        return self.replica, self.prompt_charge, self.charge, self.num_emitted, self.num_emitted_before

    def find(self, request_ids: U64) -> Indices:
        """The slots of those that there are, by the callers' ids."""
        slots = (request_ids & SLOT_MASK).astype(np.int64)
        return np.unique(slots[self.request_ids.take(slots, mode="clip") == request_ids])

    def request_ids_of(self, sink: BulkSink) -> list[int]:
        """All that a bulk sink has here."""
        number = self.bulk_sinks.number_of(sink)
        return [] if number is None else self.request_ids[self.sink == number].tolist()

    def at_replica(self, replica: int) -> Indices:
        """All that are bound to a replica, oldest first."""
        slots = np.flatnonzero(self.replica == replica)
        return slots[np.argsort(self.submitted_s[slots], kind="stable")]

    def emitted(self, slot: int, start: int = 0) -> I32:
        """Its tokens from the given one on."""
        return self._pages.of(slot, start)

    def prompts(self, slots: Indices) -> I32:
        """As submitted, one behind the other."""
        return np.concatenate([self._prompts[slot] for slot in slots.tolist()])

    def batch(self, slots: Indices) -> SubmitBatch:
        """As a replica takes them. One that had begun elsewhere goes on from prompt + emitted tokens."""
        prompt_lens, asked, num_more = table_rows.take(slots, self.num_emitted, *self._asked())
        prompts, stop_ids = [self._prompts[slot] for slot in slots.tolist()], _NO_IDS
        if num_more:
            for row in np.flatnonzero(self.num_emitted[slots]).tolist():
                prompts[row] = np.concatenate([prompts[row], self.emitted(int(slots[row]))])
            stop_ids = np.concatenate([self._stop_ids.get(slot, _NO_IDS) for slot in slots.tolist()])
        return SubmitBatch(self.wire_ids[slots], prompt_lens, np.concatenate(prompts), *asked, stop_ids)

    def book(self, wire_ids: U64, token_ids: I32, finish: U8) -> Booked:
        """Take one step's rows in."""
        pages = self._pages.arrays(len(wire_ids))
        columns = self.wire_ids, self._look, self._every_row
        rows, slots, num_tokens, num_free = book(wire_ids, token_ids, finish, *columns, *pages)
        self._pages.pages_left(num_free)
        return Booked(rows, slots, num_tokens)

    def _asked(self) -> tuple[I32, I32, U8, NDArray[np.void]]:
        """The columns that hold what was asked for, for `table_rows`."""
        return self.prompt_lens, self.max_tokens, self.ignore_eos, self._sampling

    def _grow(self) -> None:
        old = len(self.wire_ids)
        if old >= MAX_REQUESTS:
            raise AssertionError("a router's queues are bounded far below its slots")
        for name, column in list(vars(self).items()):
            if isinstance(column, np.ndarray):
                more = np.zeros_like(column) if name not in _FILL else np.full_like(column, _FILL[name])
                setattr(self, name, np.concatenate([column, more]))
        self.wire_ids[old:] |= np.arange(old, 2 * old, dtype=np.uint64)
        self._prompts += [None] * old
        self._pages.grow(2 * old)
        self._slots.grow(2 * old)
