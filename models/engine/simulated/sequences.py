"""Requests as one int64 matrix, a column each, a row per property: moving any number of them is one operation."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..protocol import I32, U8, U64, FinishReason, SubmitBatch
from .answers import ends_of, hash_prompts, place_weights

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

NONE: Sequences = np.zeros((NUM_ROWS, 0), np.int64)


def sequences_of(batches: Sequence[SubmitBatch], max_model_len: int) -> tuple[Sequences, U64]:
    """The requests of some batches that an engine can serve, and the ids of those that it never can."""
    request_ids, prompt_lens, prompt_ids, max_tokens, seeds, ignore_eos = (
        np.concatenate([getattr(batch, name) for batch in batches])
        for name in ("request_ids", "prompt_lens", "prompt_ids", "max_tokens", "seed", "ignore_eos")
    )
    served = (prompt_lens >= 1) & (prompt_lens < max_model_len) & (max_tokens >= 1)
    sequences = build_sequences(
        ids=request_ids,
        prompt_lens=prompt_lens,
        hashes=hash_prompts(prompt_ids, prompt_lens, place_weights(max_model_len)),
        max_tokens=max_tokens,
        seeds=seeds,
        ignore_eos=ignore_eos,
        max_model_len=max_model_len,
    )
    if served.all():
        return sequences, np.zeros(0, np.uint64)
    return sequences[:, served], request_ids[~served]


def known_sequences(prompt_lens: I32, answer_lens: I32, max_model_len: int) -> Sequences:
    """Requests by their lengths alone, for virtual time: id i is row i, and nobody reads what they answer."""
    count = len(prompt_lens)
    return build_sequences(
        ids=np.arange(count, dtype=np.uint64),
        prompt_lens=prompt_lens,
        hashes=np.zeros(count, np.uint64),
        max_tokens=answer_lens,
        seeds=np.zeros(count, np.uint64),
        ignore_eos=np.ones(count, np.uint8),
        max_model_len=max_model_len,
    )


def begin_again(sequences: Sequences, num_emitted: NDArray[np.int64]) -> Sequences:
    """The same requests for another engine, with what they have emitted as part of their prompts."""
    again = sequences.copy()
    again[NUM_PROMPT] += num_emitted
    again[NUM_TOKENS] = again[NUM_PROMPT]
    again[NUM_COMPUTED] = again[NUM_ONCE_COMPUTED] = 0
    return again


def build_sequences(
    *, ids: U64, prompt_lens: I32, hashes: U64, max_tokens: I32, seeds: U64, ignore_eos: U8, max_model_len: int
) -> Sequences:
    """Requests of which nothing is computed yet; all arguments [N] but the last."""
    sequences = np.zeros((NUM_ROWS, len(ids)), np.int64)
    sequences[ID] = ids.view(np.int64)
    sequences[SEED] = seeds.view(np.int64)
    sequences[HASH] = hashes.view(np.int64)
    sequences[NUM_PROMPT] = sequences[NUM_TOKENS] = prompt_lens
    limits = np.minimum(sequences[NUM_PROMPT] + max_tokens, max_model_len)
    ends = ends_of(seeds)
    stops = (ends > prompt_lens) & (ends <= limits) & (ignore_eos == 0)
    sequences[END] = np.where(stops, ends, limits)
    sequences[FINISH] = np.where(stops, FinishReason.STOP, FinishReason.LENGTH)
    return sequences
