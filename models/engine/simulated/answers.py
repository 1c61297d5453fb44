"""What a simulated engine answers: token ids without a model, and where an answer ends.

Each new token is a function of the seed and of all tokens before it, through a hash that grows token by token. So a
stream that continues on another engine from prompt + emitted tokens goes on with the same ids if, and only if, no
token was lost, doubled or changed on the way. Stop ids and sampling settings change nothing.

There are no weights that could end an answer, so the request's seed may carry the end, which the router cannot see:

    63      48 47        20 19         0
    | marker  |   noise    |    end    |    end: tokens of prompt + answer
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from ..protocol import I32, U64

I64 = NDArray[np.int64]

_MARKER = np.uint64(0x51D0)
_MARKER_SHIFT = np.uint64(48)
_END_BITS = 20
_END_MASK = np.uint64((1 << _END_BITS) - 1)

# Real vocabularies keep begin, end and padding there.
NUM_RESERVED_IDS = 3

_MIX = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_HALF = np.uint64(32)
_SHIFT = np.uint64(29)


def seeds_with_ends(noise: U64, prompt_lens: I32, answer_lens: I32) -> U64:
    """Seeds of requests that end by themselves after `answer_lens` tokens, unless max_tokens or ignore_eos forbid.

    Args:
        noise: [N] below 2**28; makes answers differ.
        prompt_lens: [N] tokens of the prompts.
        answer_lens: [N] tokens of the answers, at least 1.
    """
    ends = prompt_lens.astype(np.uint64) + answer_lens.astype(np.uint64)
    assert int(noise.max(initial=0)) < 1 << (48 - _END_BITS)
    assert int(ends.max(initial=0)) <= int(_END_MASK)
    return (_MARKER << _MARKER_SHIFT) | (noise << np.uint64(_END_BITS)) | ends


def ends_of(seeds: U64) -> I64:
    """[N] tokens of prompt + answer at which each answer ends by itself; 0 where the seed carries none."""
    return np.where(seeds >> _MARKER_SHIFT == _MARKER, seeds & _END_MASK, 0).astype(np.int64)


@cache
def place_weights(max_model_len: int) -> U64:
    """[max_model_len + 1] what a token at each position adds to the hash is its id times this."""
    return np.cumprod(np.full(max_model_len + 1, _MIX[0]), dtype=np.uint64)


def hash_prompts(prompt_ids: I32, prompt_lens: I32, weights: U64) -> U64:
    """[N] sum of id x weight over each prompt; meaningless for prompts that are empty or longer than `weights`.

    Args:
        prompt_ids: [P] concatenated.
        prompt_lens: [N].
        weights: from `place_weights`.
    """
    starts = np.cumsum(prompt_lens, dtype=np.int64) - prompt_lens
    places = np.arange(len(prompt_ids)) - np.repeat(starts, prompt_lens)
    terms = prompt_ids.astype(np.uint64) * weights.take(places, mode="clip")
    return np.add.reduceat(np.append(terms, np.uint64(0)), starts)


def next_token_ids(seeds: U64, hashes: U64, vocab_size: int) -> U64:
    """[N] ids in `NUM_RESERVED_IDS` .. vocab_size - 1, by seeds [N] and hashes of all tokens so far [N]."""
    bits = seeds * _MIX[2] + hashes
    bits = (bits ^ (bits >> _SHIFT)) * _MIX[1]
    bits = (bits ^ (bits >> _SHIFT)) * _MIX[2] >> _HALF
    return (bits * np.uint64(vocab_size - NUM_RESERVED_IDS) >> _HALF) + np.uint64(NUM_RESERVED_IDS)
