"""Which replica has seen a prompt's beginning: its KV blocks may still be there, and save the prefill.

    prompt     |  16 tokens  |  16 tokens  |  16 tokens  | rest
    keys       h(1)          h(1, 2)       h(1, 2, 3)              a chain: an equal key means an equal beginning

A bounded map from keys to replicas, of sets of four with the least recently used replaced. It only remembers where
prompts went, not what caches hold: a guess that saves something or nothing. `assign` weighs it against the load.
"""

import numpy as np
from numpy.typing import NDArray

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]

BLOCK_TOKENS = 16
_NUM_WAYS = 4
_NONE = np.uint64(0)
_ODD = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xBF58476D1CE4E5B9)
_SHIFT = np.uint64(29)


class PrefixMap:
    """Remembers which replica prompts were given to.

    Args:
        num_keys: most keys remembered; a power of 2, from 4.
        num_blocks: of the beginning of a prompt that are told apart.
    """

    def __init__(self, num_keys: int = 1 << 16, num_blocks: int = 8) -> None:
        assert num_keys >= _NUM_WAYS
        assert num_keys & (num_keys - 1) == 0
        self._num_blocks = num_blocks
        self._num_sets = num_keys // _NUM_WAYS
        self._keys = np.zeros((self._num_sets, _NUM_WAYS), np.uint64)
        self._replicas = np.full((self._num_sets, _NUM_WAYS), -1, np.int64)
        self._used_at = np.zeros((self._num_sets, _NUM_WAYS), np.int64)
        self._now = 0
        self._weights = _mixed(np.arange(1, BLOCK_TOKENS + 1, dtype=np.uint64) * _ODD) | np.uint64(1)

    def keys(self, prompt_ids: I32, prompt_lens: I32) -> U64:
        """[N, num_blocks] chained keys of prompts laid end to end; 0 where a prompt has no such whole block."""
        starts = np.cumsum(prompt_lens, dtype=np.int64) - prompt_lens
        within = np.arange(self._num_blocks * BLOCK_TOKENS)
        places = np.minimum(starts[:, None] + within, max(len(prompt_ids) - 1, 0))
        tokens = prompt_ids[places].astype(np.uint64) if len(prompt_ids) else np.zeros(places.shape, np.uint64)
        blocks = tokens.reshape(len(prompt_lens), self._num_blocks, BLOCK_TOKENS)
        hashes = (_mixed((blocks + np.uint64(1)) * self._weights)).sum(axis=2, dtype=np.uint64)
        keys = np.zeros((len(prompt_lens), self._num_blocks), np.uint64)
        chain = np.zeros(len(prompt_lens), np.uint64)
        for block in range(self._num_blocks):
            chain = _mixed(chain * _ODD + hashes[:, block] + _ODD)
            keys[:, block] = chain | np.uint64(1)
        whole = np.arange(1, self._num_blocks + 1) * BLOCK_TOKENS <= prompt_lens[:, None]
        keys[~whole] = _NONE
        return keys

    def match(self, keys: U64) -> tuple[I64, I64]:
        """[N] the replica with the longest known beginning, -1 for none; and [N] tokens of that beginning."""
        sets = self._sets(keys)
        hits = (self._keys[sets] == keys[..., None]) & (self._replicas[sets] >= 0) & (keys != _NONE)[..., None]
        found = hits.any(axis=2)
        last = self._num_blocks - 1 - found[:, ::-1].argmax(axis=1)
        rows = np.arange(len(keys))
        way = hits[rows, last].argmax(axis=1)
        any_found = found.any(axis=1)
        replicas = np.where(any_found, self._replicas[sets[rows, last], way], -1)
        return replicas, np.where(any_found, (last + 1) * BLOCK_TOKENS, 0)

    def note(self, keys: U64, replicas: I64) -> None:
        """These prompts go to these replicas (0 and up), [N]; of one key's, the last counts."""
        flat = keys.ravel()
        owners = np.repeat(replicas, keys.shape[1])
        # The first of each key when read from the end.
        unique, from_end = np.unique(flat[::-1], return_index=True)
        owners = owners[::-1][from_end]
        left = np.flatnonzero(unique != _NONE)
        self._now += 1
        while len(left):  # one key per set at a time: each may replace another
            sets = self._sets(unique[left])
            _, first = np.unique(sets, return_index=True)
            self._put(sets[first], unique[left[first]], owners[left[first]])
            left = np.delete(left, first)

    def forget(self, replica: int) -> None:
        """The replica is lost or began anew: its cache is empty."""
        self._replicas[self._replicas == replica] = -1

    def _put(self, sets: I64, keys: U64, replicas: I64) -> None:
        same = self._keys[sets] == keys[:, None]
        way = np.where(same.any(axis=1), same.argmax(axis=1), self._used_at[sets].argmin(axis=1))
        self._keys[sets, way] = keys
        self._replicas[sets, way] = replicas
        self._used_at[sets, way] = self._now

    def _sets(self, keys: U64) -> I64:
        return (_mixed(keys) & np.uint64(self._num_sets - 1)).astype(np.int64)


def _mixed(values: U64) -> U64:
    values = (values ^ (values >> _SHIFT)) * _MIX
    return values ^ (values >> _SHIFT)
