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

from ..protocol import I32, U64
from .loops import END_BITS, END_MASK, MARKER, MARKER_SHIFT

_FACTOR = np.uint64(0x9E3779B97F4A7C15)


def seeds_with_ends(noise: U64, prompt_lens: I32, answer_lens: I32) -> U64:
    """Seeds of requests that end by themselves after `answer_lens` tokens, unless max_tokens or ignore_eos forbid.

    Args:
        noise: [N] below 2**28; makes answers differ.
        prompt_lens: [N] tokens of the prompts.
        answer_lens: [N] tokens of the answers, at least 1.
    """
    ends = prompt_lens.astype(np.uint64) + answer_lens.astype(np.uint64)
    assert int(noise.max(initial=0)) < 1 << (MARKER_SHIFT - END_BITS)
    assert int(ends.max(initial=0)) <= int(END_MASK)
    return (MARKER << np.uint64(MARKER_SHIFT)) | (noise << np.uint64(END_BITS)) | ends


@cache
def place_weights(max_model_len: int) -> U64:
    """[max_model_len + 1] what a token at each position adds to the hash is its id times this."""
    return np.cumprod(np.full(max_model_len + 1, _FACTOR), dtype=np.uint64)
