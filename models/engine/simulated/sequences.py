"""Requests as one table: moving any number of them is one operation."""

import numpy as np
from numpy.typing import NDArray

from ..protocol import I32, U64, SubmitBatch
from .answers import place_weights
from .loops import NUM_COMPUTED, NUM_ONCE_COMPUTED, NUM_PROMPT, NUM_TOKENS, Sequences, build_sequences, hash_prompts


def sequences_of(batch: SubmitBatch, max_model_len: int) -> tuple[Sequences, U64]:
    """The requests that an engine can serve, and the ids of those that it never can."""
    return build_sequences(
        batch.request_ids,
        batch.prompt_lens,
        hash_prompts(batch.prompt_ids, batch.prompt_lens, place_weights(max_model_len)),
        batch.max_tokens,
        batch.seed,
        batch.ignore_eos,
        max_model_len,
    )


def known_sequences(prompt_lens: I32, answer_lens: I32, max_model_len: int) -> Sequences:
    """Requests by their lengths alone, for virtual time: id i is row i, and nobody reads what they answer."""
    ids = np.arange(len(prompt_lens), dtype=np.uint64)
    nothing, ignore_eos = np.zeros_like(ids), np.ones(len(ids), np.uint8)
    sequences, rejected = build_sequences(
        ids, prompt_lens, nothing, answer_lens, nothing, ignore_eos, max_model_len
    )
    assert len(rejected) == 0, "an engine can serve all of them"
    return sequences


def begin_again(sequences: Sequences, num_emitted: NDArray[np.int64]) -> Sequences:
    """The same requests for another engine, with what they have emitted as part of their prompts."""
    again = sequences.copy()
    again[NUM_PROMPT] += num_emitted
    again[NUM_TOKENS] = again[NUM_PROMPT]
    again[NUM_COMPUTED] = again[NUM_ONCE_COMPUTED] = 0
    return again
