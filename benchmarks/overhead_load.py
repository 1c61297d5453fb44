"""The requests of the overhead benchmark, the same on every path."""

import numpy as np

MODEL = "bench"
NUM_REQUESTS = 500
PROMPT_TOKENS = 48


def make_prompts(vocab_size: int, seed: int = 0) -> list[np.ndarray]:
    """All of one length, so that every TTFT sample computes the same."""
    random = np.random.default_rng(seed)
    return [random.integers(10, vocab_size, PROMPT_TOKENS).astype(np.int32) for _ in range(NUM_REQUESTS)]


def output_lengths(seed: int = 0) -> list[int]:
    return np.random.default_rng(seed + 1).integers(32, 129, NUM_REQUESTS).tolist()
