"""Which tokens each step computes: one budget, no phases. Pure and deterministic, so every rank decides the same.

A running request wants `num_tokens - num_computed_tokens` tokens: its prompt at first, one while it decodes, all it
has after a preemption, but never its very last one. Each step shares the token budget out to running requests,
single tokens first and then by arrival, and gives what is left to waiting ones, which start as they arrived.

The next step may be scheduled while one is under way: its tokens are counted before they are known (`LateTokens`).
"""

from collections import OrderedDict
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from .admission import AnswerShare, Outlook
from .block_pool import ROOT_HASH, BlockPool, chain_hash
from .protocol import I32
from .request import Request
from .settings import ResolvedSettings
from .slots import I64, LateTokens, SlotTable


@dataclass(frozen=True, slots=True)
class Schedule:
    """What one step computes. Sequences with a single new token come first (see `AttentionInputs`).

    Attributes:
        slots: int64 [S], the rows of the SlotTable that take part.
        num_new_tokens: int64 [S], tokens to compute from `num_computed_tokens` on.
        samples: bool [S], true where the last known token is among them, so that a new one comes out.
        num_decodes: the first so many have one new token each.
        num_prefill_tokens, num_decode_tokens, num_recomputed_tokens, num_running, num_without_room,
            num_deferred: see `StepRecord`.
        admitted: requests that got their slot in this step.
    """

    slots: I64
    num_new_tokens: I64
    samples: NDArray[np.bool_]
    num_decodes: int
    num_prefill_tokens: int
    num_decode_tokens: int
    num_recomputed_tokens: int
    num_running: int
    num_without_room: int
    num_deferred: int
    admitted: list[Request]


@dataclass(slots=True)
class SchedulerTotals:
    """Counts since start, as `EngineStats` names them."""

    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_prompt_tokens: int = 0
    recomputed_tokens: int = 0
    preemptions: int = 0


class Scheduler:
    """Owns the requests, the slots and the blocks. Knows nothing of tensors."""

    def __init__(self, settings: ResolvedSettings) -> None:
        self.table = SlotTable(settings.max_num_seqs, settings.max_model_len, settings.block_size)
        self.pool = BlockPool(settings.num_kv_blocks)
        self.totals = SchedulerTotals()
        self._max_num_batched_tokens = settings.max_num_batched_tokens
        self._prefix_cache = settings.prefix_cache
        self._waiting: OrderedDict[int, Request] = OrderedDict()  # in the order of arrival
        self._running: dict[int, Request] = {}  # in the order of arrival, all of them before those that wait
        self._running_slots: I64 = np.zeros(0, np.int64)
        self._free_slots = list(range(settings.max_num_seqs))[::-1]
        self._answer_share = AnswerShare()

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def submit(self, requests: list[Request]) -> None:
        """Queue requests that `read_requests` accepted."""
        for request in requests:
            request_id = request.request_id
            assert request_id not in self._waiting, f"request {request_id} is in flight already"
            assert request_id not in self._running, f"request {request_id} is in flight already"
            self._waiting[request_id] = request

    def abort(self, request_id: int) -> None:
        """Forget a request and free its blocks; nothing happens for an unknown id."""
        if self._waiting.pop(request_id, None) is None:
            request = self._running.pop(request_id, None)
            if request is not None:
                self._vacate(request)
                self._list_running()

    def schedule(self, *, may_preempt: bool = True) -> Schedule | None:
        """Choose the tokens of the next step and give them blocks; None when that would take a preemption that may
        not be. `begin` must follow.

        While tokens are late nobody can be preempted: what a request has is not known then.
        """
        shares = self._schedule_running(may_preempt)
        if shares is None:
            return None
        slots, num_new = shares
        admitted: list[Request] = []
        num_deferred = 0
        if self._waiting and self._free_slots:
            admitted, num_first, num_deferred = self._admit(self._max_num_batched_tokens - int(num_new.sum()))
            if admitted:
                slots = np.concatenate((slots, np.array([request.slot for request in admitted], np.int64)))
                num_new = np.concatenate((num_new, num_first))
                self._list_running()
        several = num_new > 1
        num_decodes = len(several) - int(np.count_nonzero(several))
        if several.any():
            order = np.argsort(several, kind="stable")
            slots, num_new = slots[order], num_new[order]
        return self._account(slots, num_new, num_decodes, admitted, num_deferred)

    def begin(self, schedule: Schedule) -> LateTokens:
        """The step is under way: the scheduled tokens count as computed, and the sequences that `samples` marks
        each get a token, which `commit` brings."""
        self.table.num_computed_tokens[schedule.slots] += schedule.num_new_tokens
        return self.table.expect_tokens(schedule.slots[schedule.samples])

    def commit(self, late: LateTokens, token_ids_R: I32, ended_R: NDArray[np.bool_]) -> None:
        """The tokens of a step have come, steps in their order; only those that are `still_wanted`. `ended_R` is
        true where that token is a request's last."""
        table = self.table
        table.put_tokens(late, token_ids_R)
        self.totals.output_tokens += len(token_ids_R)
        if ended_R.any():
            ends = zip(late.request_ids[ended_R].tolist(), late.positions[ended_R].tolist(), strict=True)
            for request_id, position in ends:
                request = self._running.pop(request_id)
                num_answered = position + 1 - request.num_prompt_tokens
                self._answer_share.saw_end(num_answered, request.max_num_tokens - request.num_prompt_tokens)
                self._vacate(request)
            self._list_running()

    # Running requests

    def _schedule_running(self, may_preempt: bool) -> tuple[I64, I64] | None:
        """Slots and their shares of the budget; they get the blocks for them, which may take preemptions."""
        table = self.table
        while True:
            slots = self._running_slots
            num_computed = table.num_computed_tokens[slots]
            num_worth_it = np.minimum(table.num_tokens[slots], table.max_num_tokens[slots] - 1)
            num_new = share_budget(num_worth_it - num_computed, self._max_num_batched_tokens)
            num_blocks = table.blocks_for(num_computed + num_new) - table.num_blocks[slots]
            growing = num_blocks > 0
            if int(num_blocks[growing].sum()) <= self.pool.num_free:
                break
            if not may_preempt:
                return None
            self._preempt_latest()
        for slot, count in zip(slots[growing].tolist(), num_blocks[growing].tolist(), strict=True):
            table.add_blocks(slot, self.pool.allocate(count))
        taking_part = num_new > 0
        return slots[taking_part], num_new[taking_part]

    def _preempt_latest(self) -> None:
        """Take the blocks of the request that arrived last; it waits in front of all that arrived after it."""
        assert len(self._running) > 1, "the settings promise that one request of max_model_len fits"
        request_id, request = self._running.popitem()
        table, slot = self.table, request.slot
        assert not table.num_late[slot], "a request whose tokens are not all known cannot wait"
        request.token_ids = table.token_ids_SL[slot, : table.num_tokens[slot]].copy()
        request.num_seen_tokens = int(table.num_seen_tokens[slot])
        self._vacate(request)
        self._list_running()
        self._waiting[request_id] = request
        self._waiting.move_to_end(request_id, last=False)
        self.totals.preemptions += 1
        self._answer_share.saw_preemption()

    def _vacate(self, request: Request) -> None:
        self.pool.release(self.table.take_blocks(request.slot))
        self.table.tenures[request.slot] += 1
        self._free_slots.append(request.slot)
        request.slot = -1

    def _list_running(self) -> None:
        self._running_slots = np.array([request.slot for request in self._running.values()], np.int64)

    # Admission

    def _admit(self, budget: int) -> tuple[list[Request], I64, int]:
        """Start waiting requests while budget, slots and blocks last.

        Returns them, their first shares of the budget, and how many more a larger one would have started.
        """
        admitted: list[Request] = []
        num_first: list[int] = []
        outlook = Outlook(self.table, self._running_slots, self._answer_share.value, self.pool.num_free)
        while self._waiting and self._free_slots and budget > 0:
            request_id, request = next(iter(self._waiting.items()))
            num_tokens, cached_ids = len(request.token_ids), self._find_cached_blocks(request)
            num_held = len(cached_ids) - self.pool.count_free(cached_ids)
            if not outlook.admits(num_tokens, request.max_num_tokens, num_held):
                break
            num_new = min(num_tokens - len(cached_ids) * self.table.block_size, budget)
            self._start(request, cached_ids, num_new)
            del self._waiting[request_id]
            self._running[request_id] = request
            admitted.append(request)
            num_first.append(num_new)
            budget -= num_new
        num_deferred = 0
        if budget <= 0:
            for request in islice(self._waiting.values(), len(self._free_slots)):
                if not outlook.admits(len(request.token_ids), request.max_num_tokens, 0):
                    break
                num_deferred += 1
        return admitted, np.array(num_first, np.int64), num_deferred

    def _start(self, request: Request, cached_ids: list[int], num_new: int) -> None:
        """Give the request a slot, the blocks found in the prefix cache and those for its first tokens."""
        table, slot = self.table, self._free_slots.pop()
        num_tokens, num_cached = len(request.token_ids), len(cached_ids) * table.block_size
        request.slot = slot
        table.request_ids[slot] = request.request_id
        table.tenures[slot] += 1
        table.num_late[slot] = 0
        table.token_ids_SL[slot, :num_tokens] = request.token_ids
        table.num_prompt_tokens[slot] = request.num_prompt_tokens
        table.num_tokens[slot] = num_tokens
        table.max_num_tokens[slot] = request.max_num_tokens
        table.num_computed_tokens[slot] = num_cached
        table.num_shared_blocks[slot] = table.num_hashed_blocks[slot] = len(cached_ids)
        num_found = max(0, min(num_cached, request.num_prompt_tokens) - request.num_seen_tokens)
        self.totals.prompt_tokens += num_found
        self.totals.cached_prompt_tokens += num_found
        table.num_seen_tokens[slot] = max(request.num_seen_tokens, num_cached)
        self.pool.acquire(cached_ids)
        num_fresh = self._blocks_for(num_cached + num_new) - len(cached_ids)
        table.add_blocks(slot, cached_ids + self.pool.allocate(num_fresh))
        if self._prefix_cache:
            self._register_full_blocks(request, num_cached + num_new)

    def _blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.table.block_size)

    # Prefix cache

    def _find_cached_blocks(self, request: Request) -> list[int]:
        """Known blocks of the request's beginning. The last token is never among them: the step must bring its
        logits."""
        if not self._prefix_cache:
            return []
        num_usable = (len(request.token_ids) - 1) // self.table.block_size
        self._extend_hashes(request, request.token_ids, num_usable)
        return self.pool.match(request.block_hashes[:num_usable])

    def _register_full_blocks(self, request: Request, num_computed: int) -> None:
        """Make the blocks that this step fills findable. A request admitted in this same step may share them
        already: each layer writes all keys and values of a step before any of its attention reads."""
        table, slot = self.table, request.slot
        num_full = num_computed // table.block_size
        self._extend_hashes(request, table.token_ids_SL[slot], num_full)
        for index in range(int(table.num_hashed_blocks[slot]), num_full):
            self.pool.register(int(table.block_tables_SB[slot, index]), request.block_hashes[index])
        table.num_hashed_blocks[slot] = num_full

    def _extend_hashes(self, request: Request, token_ids: I32, count: int) -> None:
        size, hashes = self.table.block_size, request.block_hashes
        for index in range(len(hashes), count):
            previous = hashes[-1] if hashes else ROOT_HASH
            hashes.append(chain_hash(previous, token_ids[index * size : (index + 1) * size]))

    # Accounts

    def _account(
        self, slots: I64, num_new: I64, num_decodes: int, admitted: list[Request], num_deferred: int
    ) -> Schedule:
        """Count what the step computes, and mark it as seen."""
        table = self.table
        start = table.num_computed_tokens[slots]
        end = start + num_new
        num_prompt, num_seen = table.num_prompt_tokens[slots], table.num_seen_tokens[slots]
        num_prefill = np.maximum(np.minimum(end, num_prompt) - start, 0)
        num_again = np.maximum(np.minimum(end, num_seen) - start, 0)
        num_new_prompt = np.maximum(np.minimum(end, num_prompt) - np.maximum(start, num_seen), 0)
        table.num_seen_tokens[slots] = np.maximum(num_seen, end)
        num_recomputed = int(num_again.sum())
        self.totals.prompt_tokens += int(num_new_prompt.sum())
        self.totals.recomputed_tokens += num_recomputed
        if self._prefix_cache:
            known = np.minimum(end, table.num_tokens[slots] - table.num_late[slots])
            filling = known // table.block_size > table.num_hashed_blocks[slots]
            for slot, num_computed in zip(slots[filling].tolist(), known[filling].tolist(), strict=True):
                self._register_full_blocks(self._running[int(table.request_ids[slot])], num_computed)
        return Schedule(
            slots=slots,
            num_new_tokens=num_new,
            samples=end == table.num_tokens[slots],
            num_decodes=num_decodes,
            num_prefill_tokens=int(num_prefill.sum()),
            num_decode_tokens=int(num_new.sum() - num_prefill.sum()),
            num_recomputed_tokens=num_recomputed,
            num_running=len(self._running),
            num_without_room=len(self._waiting) - num_deferred,
            num_deferred=num_deferred,
            admitted=admitted,
        )


def share_budget(num_wanted: I64, budget: int) -> I64:
    """Tokens for each request, at most what it wants and in sum at most `budget`: single tokens first, so that
    no long prompt holds up an answer, then in the given order."""
    if len(num_wanted) <= budget and not (num_wanted > 1).any():
        return num_wanted
    order = np.argsort(num_wanted > 1, kind="stable")
    wanted = num_wanted[order]
    given = np.empty_like(num_wanted)
    given[order] = np.clip(budget - (np.cumsum(wanted) - wanted), 0, wanted)
    return given
