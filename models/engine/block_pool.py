"""Which KV blocks are free, shared or worth keeping. Ids and counts only: no tensors here.

    allocate ──> in use (references > 0) ──release──> free (references = 0)
                   ^                                   │ still holds its content and its hash:
                   └──────────── acquire ──────────────┘ a later request with the same beginning takes it back

The free list is the eviction order: blocks without a hash first, then the least recently released.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from .protocol import I32

_HASH_BYTES = 16
ROOT_HASH = bytes(_HASH_BYTES)


def chain_hash(previous: bytes, token_ids: I32) -> bytes:
    """The hash of a full block: of its token ids and, through `previous`, of all tokens before it.

    `previous` is `ROOT_HASH` for the first block. Equal in every process, so ranks agree.
    """
    return hashlib.blake2b(previous + token_ids.tobytes(), digest_size=_HASH_BYTES).digest()


class BlockPool:
    """Hands out block ids 0 to num_blocks - 1 and finds full blocks again by their hash."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._references = [0] * num_blocks
        self._hashes: list[bytes | None] = [None] * num_blocks
        self._block_of_hash: dict[bytes, int] = {}
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))

    @property
    def num_free(self) -> int:
        """Blocks that `allocate` could hand out now, those with reusable content included."""
        return len(self._free)

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks, at most `num_free`, with one reference each. What they held is forgotten."""
        assert count <= len(self._free), f"{count} blocks wanted, {len(self._free)} free"
        block_ids = [self._free.popitem(last=False)[0] for _ in range(count)]
        for block_id in block_ids:
            self._references[block_id] = 1
            old = self._hashes[block_id]
            if old is not None:
                del self._block_of_hash[old]
                self._hashes[block_id] = None
        return block_ids

    def match(self, hashes: Sequence[bytes]) -> list[int]:
        """The blocks that hold the longest known beginning of a chain of hashes. Takes no reference."""
        block_ids: list[int] = []
        for block_hash in hashes:
            block_id = self._block_of_hash.get(block_hash)
            if block_id is None:
                break
            block_ids.append(block_id)
        return block_ids

    def count_free(self, block_ids: Iterable[int]) -> int:
        """How many of these blocks nobody uses: `acquire` would take that many out of `num_free`."""
        return sum(self._references[block_id] == 0 for block_id in block_ids)

    def acquire(self, block_ids: Iterable[int]) -> None:
        """Share blocks that `match` found: one more reference each."""
        for block_id in block_ids:
            if self._references[block_id] == 0:
                del self._free[block_id]
            self._references[block_id] += 1

    def release(self, block_ids: Sequence[int]) -> None:
        """Give back one reference of each block of a sequence, listed from its beginning."""
        # The end of a sequence goes into the free list first: a beginning is shared more often, evict it last.
        for block_id in reversed(block_ids):
            self._references[block_id] -= 1
            if self._references[block_id] > 0:
                continue
            assert self._references[block_id] == 0, f"block {block_id} released twice"
            self._free[block_id] = None
            if self._hashes[block_id] is None:
                self._free.move_to_end(block_id, last=False)

    def register(self, block_id: int, block_hash: bytes) -> None:
        """Make a full block findable. Where another block holds the same tokens, that one stays the known one."""
        if block_hash not in self._block_of_hash:
            self._block_of_hash[block_hash] = block_id
            self._hashes[block_id] = block_hash
