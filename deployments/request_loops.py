"""What a table's requests go through, from begin to free, a compiled loop each.

Columns are by slot, `_R` arrays by row, `_K` by replica.
"""

import numpy as np
from numpy.typing import NDArray

from ..models.compiled import (
    bools,
    compiled,
    f64,
    f64s,
    i32s,
    i32s_in,
    i64,
    i64s,
    tuples,
    u8s,
    u8s_in,
    u64s,
    u64s_in,
)
from ..models.engine.protocol import I32, U8, U64, FinishReason
from .index_pool import Indices

SLOT_BITS = 20
SLOT_MASK = np.uint64((1 << SLOT_BITS) - 1)
NOWHERE = -1
_NO_SINK = -1  # as NO_BULK_SINK
PAGE_BITS = 6
_IN_PAGE = (1 << PAGE_BITS) - 1
_ABORT, _ERROR = int(FinishReason.ABORT), int(FinishReason.ERROR)

_ONE_GENERATION = np.uint64(1 << SLOT_BITS)
_ID_MASK = np.uint64((1 << 40) - 1)  # as in `wire_loops`
# In the ids of free slots, above all ids: nothing matches them.
FREE = np.uint64(1 << 63)

Bools = NDArray[np.bool_]
F64 = NDArray[np.float64]


@compiled(i64s, i64, f64, u64s, u64s, bools, i32s, f64s, f64s, i32s, i64s)
def begin(
    slots_R: Indices,
    number: int,
    now_s: float,
    wire_ids: U64,
    request_ids: U64,
    look: Bools,
    model: I32,
    submitted_s: F64,
    first_token_s: F64,
    num_attempts: I32,
    num_emitted_before: Indices,
) -> None:
    """A model's requests come now."""
    for slot in slots_R:
        wire_ids[slot] = request_ids[slot] = (wire_ids[slot] + _ONE_GENERATION) & _ID_MASK
        look[slot] = True
        model[slot], submitted_s[slot], first_token_s[slot] = number, now_s, np.nan
        num_attempts[slot] = num_emitted_before[slot] = 0


@compiled(u64s_in, u64s)
def match(wire_ids_R: U64, wire_ids: U64) -> tuple[Indices, Bools]:
    """The slots of wire ids, and which of these are of a present attempt."""
    slots, valid = np.empty(len(wire_ids_R), np.int64), np.empty(len(wire_ids_R), np.bool_)
    for row in range(len(wire_ids_R)):
        slot = np.int64(wire_ids_R[row] & SLOT_MASK)
        slots[row], valid[row] = slot, slot < len(wire_ids) and wire_ids[slot] == wire_ids_R[row]
    return slots, valid


@compiled(i64s, i32s, i64s, i32s, u8s)
def expect(
    slots_R: Indices, prompt_lens: I32, num_emitted: Indices, max_tokens: I32, ignore_eos: U8
) -> tuple[Indices, F64, Indices]:
    """Of requests to be sent: prompt tokens, with what was emitted; the most output tokens that may come yet; and
    the rows of those that may end sooner."""
    n = len(slots_R)
    prompt_tokens, output_tokens, open_ended = np.empty(n, np.int64), np.empty(n), np.empty(n, np.int64)
    num_open = 0
    for row in range(n):
        slot = slots_R[row]
        prompt_tokens[row] = prompt_lens[slot] + num_emitted[slot]
        output_tokens[row] = max(max_tokens[slot] - num_emitted[slot], 1)
        if ignore_eos[slot] == 0:
            open_ended[num_open] = row
            num_open += 1
    return prompt_tokens, output_tokens, open_ended[:num_open]


@compiled(i64s, u64s, bools)
def renew(slots_R: Indices, wire_ids: U64, look: Bools) -> None:
    """New wire ids, for a new attempt."""
    for slot in slots_R:
        wire_ids[slot] = (wire_ids[slot] + _ONE_GENERATION) & _ID_MASK
        look[slot] = True


@compiled(i64s, u64s, u64s, i32s, i32s, i64s, i64s, i64s, i64s, i64)
def free(
    slots_R: Indices,
    wire_ids: U64,
    request_ids: U64,
    sink: I32,
    replica: I32,
    counts: Indices,
    cursor: Indices,
    previous: Indices,
    free_pages: Indices,
    num_free_pages: int,
) -> tuple[I32, int]:
    """Slots, which differ, are nobody's now, and their pages are free. Returns their sinks, and free pages left."""
    sinks_R = np.empty(len(slots_R), np.int32)
    for row in range(len(slots_R)):
        slot = slots_R[row]
        wire_ids[slot] = (wire_ids[slot] + _ONE_GENERATION) & _ID_MASK | FREE
        request_ids[slot] = FREE
        sinks_R[row] = sink[slot]
        sink[slot], replica[slot] = _NO_SINK, NOWHERE
        page = (cursor[slot] - 1) >> PAGE_BITS if counts[slot] > 0 else -1
        while page >= 0:
            free_pages[num_free_pages] = page
            num_free_pages += 1
            page = previous[page]
        counts[slot] = cursor[slot] = 0
    return sinks_R, num_free_pages


@compiled(u64s_in, i32s_in, u8s_in, u64s, bools, bools, i64s, i64s, i64s, i32s, i64s, i64)
def book(
    wire_ids_R: U64,
    token_ids_R: I32,
    finish_R: U8,
    wire_ids: U64,
    look: Bools,
    every_row: Bools,
    counts: Indices,
    cursor: Indices,
    previous: Indices,
    tokens: I32,
    free: Indices,
    num_free: int,
) -> tuple[Indices, Indices, int, int]:
    """Append the tokens of known requests to their pages (`token_pages`); negative ids are none.

    Returns: the rows that someone must look at, their slots, how many tokens there were, and free pages left.
    """
    rows, slots = np.empty(len(wire_ids_R), np.int64), np.empty(len(wire_ids_R), np.int64)
    num_rows = num_tokens = 0
    for row in range(len(wire_ids_R)):
        slot = np.int64(wire_ids_R[row] & SLOT_MASK)
        if slot >= len(wire_ids) or wire_ids[slot] != wire_ids_R[row]:
            continue
        if token_ids_R[row] >= 0:
            at = cursor[slot]
            if at & _IN_PAGE == 0:
                num_free -= 1
                previous[free[num_free]] = (at - 1) >> PAGE_BITS
                at = free[num_free] << PAGE_BITS
            tokens[at] = token_ids_R[row]
            cursor[slot] = at + 1
            counts[slot] += 1
            num_tokens += 1
        if look[slot] or finish_R[row] != 0:
            look[slot] = every_row[slot]
            rows[num_rows], slots[num_rows] = row, slot
            num_rows += 1
    return rows[:num_rows], slots[:num_rows], num_tokens, num_free


# What `RequestTable.charges` and `ReplicaLoads.outstanding` give.
Charges = tuple[I32, Indices, F64, Indices, Indices]
Outstanding = tuple[Indices, F64, F64]
_charges, _outstanding = tuples(i32s, i64s, f64s, i64s, i64s), tuples(i64s, f64s, f64s)


@compiled(i64, _charges, _outstanding)
def _leave(slot: int, charges: Charges, outstanding_K: Outstanding) -> None:
    """A request is no longer at its replica, and what it did not need is no longer outstanding there."""
    replica, prompt_charge, charge, num_emitted, num_emitted_before = charges
    num_in_flight_K, prompt_tokens_K, output_tokens_K = outstanding_K
    k = replica[slot]
    replica[slot] = NOWHERE
    num_in_flight_K[k] -= 1
    prompt_tokens_K[k] -= prompt_charge[slot]
    output_tokens_K[k] -= charge[slot] - (num_emitted[slot] - num_emitted_before[slot])
    if num_in_flight_K[k] == 0:  # with the last request goes what rounding left over
        prompt_tokens_K[k] = output_tokens_K[k] = 0.0


@compiled(i64s, _charges, _outstanding)
def release(slots_R: Indices, charges: Charges, outstanding_K: Outstanding) -> None:
    """These, which differ, leave the replicas that they are bound to."""
    for slot in slots_R:
        _leave(slot, charges, outstanding_K)


@compiled(i64s, bools, u8s, f64, f64s, f64s, i32s, u8s, i64s, _charges, _outstanding)
def settle(
    slots_R: Indices,
    has_token_R: Bools,
    finish_R: U8,
    now_s: float,
    submitted_s: F64,
    first_token_s: F64,
    prompt_lens: I32,
    ignore_eos: U8,
    num_prompt_tokens_K: Indices,
    charges: Charges,
    outstanding_K: Outstanding,
) -> tuple[Indices, Indices, U8, Indices, F64, F64, F64, int, int, int]:
    """Note first and last tokens, and take what ended from its replica.

    Returns: the slots whose first token came, those that ended and why, of these the answers that could end by
    themselves; TTFT, end-to-end time and TPOT of those that have one; prompt tokens of those whose first token
    came; and how many were aborted and failed.
    """
    replica, prompt_charge, _, num_emitted, _ = charges
    _, prompt_tokens_K, _ = outstanding_K
    n = len(slots_R)
    first, done, open_ended = np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n, np.int64)
    done_finish = np.empty(n, np.uint8)
    ttft_s, e2e_s, tpot_s = np.empty(n), np.empty(n), np.empty(n)
    num_first = num_done = num_answered = num_open = num_tpot = num_prompt_tokens = num_aborted = num_failed = 0
    for row in range(n):
        slot = slots_R[row]
        k = replica[slot]
        if k == NOWHERE:  # an earlier row was its last
            continue
        prompt_tokens_K[k] -= prompt_charge[slot]
        prompt_charge[slot] = 0
        if has_token_R[row] and np.isnan(first_token_s[slot]):
            first_token_s[slot] = now_s
            first[num_first], ttft_s[num_first] = slot, now_s - submitted_s[slot]
            num_first += 1
            num_prompt_tokens_K[k] += prompt_lens[slot]
            num_prompt_tokens += int(prompt_lens[slot])
        if finish_R[row] == 0:
            continue
        done[num_done], done_finish[num_done] = slot, finish_R[row]
        num_done += 1
        if finish_R[row] == _ABORT:
            num_aborted += 1
        elif finish_R[row] == _ERROR:
            num_failed += 1
        else:
            e2e_s[num_answered] = now_s - submitted_s[slot]
            num_answered += 1
            if ignore_eos[slot] == 0:
                open_ended[num_open] = slot
                num_open += 1
            if num_emitted[slot] > 1:
                tpot_s[num_tpot] = (now_s - first_token_s[slot]) / (num_emitted[slot] - 1)
                num_tpot += 1
        _leave(slot, charges, outstanding_K)
    ended = done[:num_done], done_finish[:num_done], open_ended[:num_open]
    times = ttft_s[:num_first], e2e_s[:num_answered], tpot_s[:num_tpot]
    return first[:num_first], *ended, *times, num_prompt_tokens, num_aborted, num_failed
