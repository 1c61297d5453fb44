"""What messages bring for a table's requests, a compiled loop each.

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
PAGE_BITS = 6
_IN_PAGE = (1 << PAGE_BITS) - 1
_ABORT, _ERROR = int(FinishReason.ABORT), int(FinishReason.ERROR)

Bools = NDArray[np.bool_]
F64 = NDArray[np.float64]


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


@compiled(i64s, bools, u8s, f64, f64s, f64s, i32s, i64s, _charges, _outstanding)
def settle(
    slots_R: Indices,
    has_token_R: Bools,
    finish_R: U8,
    now_s: float,
    submitted_s: F64,
    first_token_s: F64,
    prompt_lens: I32,
    num_prompt_tokens_K: Indices,
    charges: Charges,
    outstanding_K: Outstanding,
) -> tuple[Indices, Indices, U8, Indices, F64, F64, F64, int, int]:
    """Note first and last tokens, and take what ended from its replica.

    Returns: the slots whose first token came, those that ended and why, of these the ones that were answered; TTFT,
    end-to-end time and TPOT of those that have one; and how many were aborted and failed.
    """
    replica, prompt_charge, _, num_emitted, _ = charges
    _, prompt_tokens_K, _ = outstanding_K
    n = len(slots_R)
    first, done, answered = np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n, np.int64)
    done_finish = np.empty(n, np.uint8)
    ttft_s, e2e_s, tpot_s = np.empty(n), np.empty(n), np.empty(n)
    num_first = num_done = num_answered = num_tpot = num_aborted = num_failed = 0
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
        if finish_R[row] == 0:
            continue
        done[num_done], done_finish[num_done] = slot, finish_R[row]
        num_done += 1
        if finish_R[row] == _ABORT:
            num_aborted += 1
        elif finish_R[row] == _ERROR:
            num_failed += 1
        else:
            answered[num_answered], e2e_s[num_answered] = slot, now_s - submitted_s[slot]
            num_answered += 1
            if num_emitted[slot] > 1:
                tpot_s[num_tpot] = (now_s - first_token_s[slot]) / (num_emitted[slot] - 1)
                num_tpot += 1
        _leave(slot, charges, outstanding_K)
    ended = done[:num_done], done_finish[:num_done], answered[:num_answered]
    times = ttft_s[:num_first], e2e_s[:num_answered], tpot_s[:num_tpot]
    return first[:num_first], *ended, *times, num_aborted, num_failed
