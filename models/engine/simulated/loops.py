"""What happens to each request of a simulated engine, a compiled loop each.

Requests are one int64 table, a column each, a row per property. Of `running` the first `num_running` columns count.
"""

import numpy as np
from numpy.typing import NDArray

from ...compiled import compiled, i32s_in, i64, i64_columns, i64_table, i64s, u8s_in, u64, u64s, u64s_in
from ..protocol import I32, U8, U64, FinishReason

I64 = NDArray[np.int64]
Sequences = NDArray[np.int64]  # [NUM_ROWS, N]

# The rows. Ids, seeds and hashes are uint64 seen as int64.
ID = 0
SEED = 1
HASH = 2  # of all known tokens, see `answers`
NUM_PROMPT = 3
NUM_TOKENS = 4  # known: prompt and answer so far
NUM_COMPUTED = 5  # of them, with KV in the cache
NUM_ONCE_COMPUTED = 6  # when it was last sent back to the queue: what lies below is recomputation
END = 7  # NUM_TOKENS at which the request ends
FINISH = 8  # FinishReason then
NUM_ROWS = 9

# A seed's parts, see `answers`.
END_BITS = 20
MARKER_SHIFT = 48
MARKER = np.uint64(0x51D0)
END_MASK = np.uint64((1 << END_BITS) - 1)
# Real vocabularies keep begin, end and padding there.
NUM_RESERVED_IDS = 3

_STOP, _LENGTH = int(FinishReason.STOP), int(FinishReason.LENGTH)
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_HALF = np.uint64(32)
_SHIFT = np.uint64(29)
_NUM_RESERVED = np.uint64(NUM_RESERVED_IDS)


@compiled(u64)
def end_of(seed: np.uint64) -> np.int64:
    """Tokens of prompt + answer at which the answer ends by itself; 0 when the seed carries none."""
    return np.int64(seed & END_MASK) if seed >> np.uint64(MARKER_SHIFT) == MARKER else np.int64(0)


@compiled(i32s_in, i32s_in, u64s)
def hash_prompts(prompt_ids: I32, prompt_lens: I32, weights: U64) -> U64:
    """[N] sum of id x weight over each prompt; 0 for those that are longer than `weights`.

    Args:
        prompt_ids: [P] concatenated.
        prompt_lens: [N].
        weights: from `place_weights`.
    """
    hashes = np.zeros(len(prompt_lens), np.uint64)
    start = 0
    for i in range(len(prompt_lens)):
        if prompt_lens[i] <= len(weights):
            for place in range(prompt_lens[i]):
                hashes[i] += np.uint64(prompt_ids[start + place]) * weights[place]
        start += prompt_lens[i]
    return hashes


@compiled(u64s_in, i32s_in, u64s_in, i32s_in, u64s_in, u8s_in, i64)
def build_sequences(
    ids: U64, prompt_lens: I32, hashes: U64, max_tokens: I32, seeds: U64, ignore_eos: U8, max_model_len: int
) -> tuple[Sequences, U64]:
    """Requests of which nothing is computed yet, and the ids of those that no engine can serve; arguments [N]."""
    sequences, rejected = np.zeros((NUM_ROWS, len(ids)), np.int64), np.empty(len(ids), np.uint64)
    num = num_rejected = 0
    for i in range(len(ids)):
        prompt_len = np.int64(prompt_lens[i])
        if not (1 <= prompt_len < max_model_len and max_tokens[i] >= 1):
            rejected[num_rejected] = ids[i]
            num_rejected += 1
            continue
        limit = min(prompt_len + max_tokens[i], max_model_len)
        end = end_of(seeds[i])
        stops = ignore_eos[i] == 0 and prompt_len < end <= limit
        sequences[ID, num], sequences[SEED, num] = np.int64(ids[i]), np.int64(seeds[i])
        sequences[HASH, num] = np.int64(hashes[i])
        sequences[NUM_PROMPT, num] = sequences[NUM_TOKENS, num] = prompt_len
        sequences[END, num] = end if stops else limit
        sequences[FINISH, num] = _STOP if stops else _LENGTH
        num += 1
    return sequences[:, :num].copy() if num_rejected else sequences, rejected[:num_rejected]


@compiled(u64, u64, u64)
def next_token_id(seed: np.uint64, hash_so_far: np.uint64, vocab_size: np.uint64) -> np.uint64:
    """An id in `NUM_RESERVED_IDS` .. vocab_size - 1."""
    bits = seed * _MIX[1] + hash_so_far
    bits = (bits ^ (bits >> _SHIFT)) * _MIX[0]
    bits = ((bits ^ (bits >> _SHIFT)) * _MIX[1]) >> _HALF
    return ((bits * (vocab_size - _NUM_RESERVED)) >> _HALF) + _NUM_RESERVED


@compiled(i64_table, i64s, i64, i64)
def continue_running(running: Sequences, given: I64, num_running: int, budget: int) -> tuple[int, int, int]:
    """Give what runs the tokens that it lacks, in order, until the step's `budget` is spent.

    Returns: of the tokens given, those of prompts, the others, and of both those that had been computed before.
    """
    prefill = decode = again = 0
    for i in range(num_running):
        computed = running[NUM_COMPUTED, i]
        given[i] = min(running[NUM_TOKENS, i] - computed, budget)
        budget -= given[i]
        if computed < running[NUM_PROMPT, i]:
            prefill += given[i]
        else:
            decode += given[i]
        again += max(0, min(running[NUM_ONCE_COMPUTED, i] - computed, given[i]))
    return prefill, decode, again


@compiled(i64_columns, i64_table, i64s, i64, i64, i64, i64)
def admit(
    waiting: Sequences, running: Sequences, given: I64, num_running: int, num_slots: int, budget: int, kv_room: int
) -> tuple[int, int, int, int, int, int]:
    """Let requests run as well, in order, while slots, the step's `budget` and the KV cache last.

    Returns: how many do; how many slots and KV cache had room for, whatever the budget, and what is left of
    `kv_room` behind these; the tokens of those that do, how many of them the step computes, and how many again.
    """
    num_admitted = num_fitting = held = total = again = 0
    for i in range(min(waiting.shape[1], num_slots)):
        num_tokens = waiting[NUM_TOKENS, i]
        if num_tokens + 1 > kv_room:  # one more, so that it can also take its first step
            break
        kv_room -= num_tokens + 1
        num_fitting += 1
        if budget > 0:
            at = num_running + num_admitted
            for row in range(NUM_ROWS):
                running[row, at] = waiting[row, i]
            given[at] = min(num_tokens, budget)
            budget -= given[at]
            held += num_tokens
            total += given[at]
            again += min(waiting[NUM_ONCE_COMPUTED, i], given[at])
            num_admitted += 1
    return num_admitted, num_fitting, kv_room, held, total, again


@compiled(i64_table, i64s, i64, u64s, u64)
def advance(
    running: Sequences, given: I64, num_running: int, weights: U64, vocab_size: np.uint64
) -> tuple[U64, I32, U8, int, int, int]:
    """Do what was given: a new token for each request that lacks none any more. What ends leaves.

    Returns: ids, tokens and FinishReasons of these; how many run on, the tokens that those hold, and how many of
    these are in the KV cache.
    """
    ids, token_ids = np.empty(num_running, np.uint64), np.empty(num_running, np.int32)
    finish = np.zeros(num_running, np.uint8)
    num_new = num_left = held = computed = 0
    for i in range(num_running):
        running[NUM_COMPUTED, i] += given[i]
        num_tokens = running[NUM_TOKENS, i]
        if running[NUM_COMPUTED, i] == num_tokens:
            so_far = np.uint64(running[HASH, i])
            token_id = next_token_id(np.uint64(running[SEED, i]), so_far, vocab_size)
            ids[num_new], token_ids[num_new] = np.uint64(running[ID, i]), token_id
            running[HASH, i] = np.int64(so_far + token_id * weights[num_tokens])
            num_tokens += 1
            running[NUM_TOKENS, i] = num_tokens
            num_new += 1
            if num_tokens == running[END, i]:
                finish[num_new - 1] = running[FINISH, i]
                continue
        if num_left < i:
            for row in range(NUM_ROWS):
                running[row, num_left] = running[row, i]
        held += num_tokens
        computed += running[NUM_COMPUTED, num_left]
        num_left += 1
    return ids[:num_new], token_ids[:num_new], finish[:num_new], num_left, held, computed
