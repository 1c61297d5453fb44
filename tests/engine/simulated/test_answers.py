"""Where simulated answers end and what they consist of."""

import numpy as np
from nfold.models.engine.simulated.answers import place_weights, seeds_with_ends
from nfold.models.engine.simulated.loops import NUM_RESERVED_IDS, end_of, hash_prompts, next_token_id


def test_a_seed_carries_the_end_and_the_noise() -> None:
    noise = np.array([0, 1, (1 << 28) - 1], np.uint64)
    seeds = seeds_with_ends(noise, np.array([10, 20, 1000], np.int32), np.array([1, 5, 1024], np.int32))
    assert [end_of(seed) for seed in seeds] == [11, 25, 2024]
    assert len(set(seeds.tolist())) == 3


def test_seeds_of_users_carry_no_end() -> None:
    assert [end_of(np.uint64(seed)) for seed in (0, 1, 1234, 2**31, 2**63 - 1)] == [0] * 5


def test_hashing_a_whole_prompt_equals_growing_token_by_token() -> None:
    weights = place_weights(64)
    prompts = [[5], [7, 8, 9], list(range(60))]
    lens = np.array([len(prompt) for prompt in prompts], np.int32)
    hashes = hash_prompts(np.concatenate([np.array(prompt, np.int32) for prompt in prompts]), lens, weights)
    for prompt, found in zip(prompts, hashes.tolist(), strict=True):
        grown = 0
        for place, token in enumerate(prompt):
            grown = (grown + token * int(weights[place])) % 2**64
        assert found == grown


def test_order_and_place_of_tokens_matter() -> None:
    lens = np.array([3, 3, 2, 4], np.int32)
    ids = np.array([1, 2, 3, 2, 1, 3, 1, 2, 1, 2, 3, 0], np.int32)
    hashes = hash_prompts(ids, lens, place_weights(8)).tolist()
    assert len({*hashes[:3]}) == 3


def test_ids_fill_the_vocabulary_and_leave_out_reserved_ones() -> None:
    seed, vocab_size = np.uint64(0), np.uint64(100)
    ids = [int(next_token_id(seed, np.uint64(so_far), vocab_size)) for so_far in range(20_000)]
    counts = np.bincount(ids, minlength=100)
    assert counts[:NUM_RESERVED_IDS].sum() == 0
    assert counts[NUM_RESERVED_IDS:].min() > 100
