"""A scheduler with a toy model on numpy arrays: the next token is a function of all tokens before it.

The toy KV cache holds, for each token, a digest of the sequence up to it. Reading back anything else means that a
block was shared, reused or left unwritten by mistake.
"""

import zlib
from pathlib import Path

import numpy as np
import torch
from nfold.models.engine.batch_builder import build_batch
from nfold.models.engine.protocol import SamplingParams
from nfold.models.engine.request import Request
from nfold.models.engine.scheduler import Schedule, Scheduler
from nfold.models.engine.settings import ResolvedSettings

VOCAB = 50


def make_settings(
    *,
    max_model_len: int = 64,
    max_num_seqs: int = 4,
    max_num_batched_tokens: int = 16,
    block_size: int = 4,
    num_kv_blocks: int = 64,
    prefix_cache: bool = False,
) -> ResolvedSettings:
    return ResolvedSettings(
        model_dir=Path("toy"),
        dtype="float32",
        quantization="none",
        kv_cache_dtype="float32",
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        block_size=block_size,
        num_kv_blocks=num_kv_blocks,
        kv_cache_bytes=0,
        prefix_cache=prefix_cache,
        device="cpu",
    )


def make_request(request_id: int, prompt: list[int], max_tokens: int) -> Request:
    sampling = SamplingParams(max_tokens=max_tokens)
    return Request(request_id, np.array(prompt, np.int32), len(prompt), len(prompt) + max_tokens, sampling)


def digest(tokens: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(tokens, np.int32).tobytes())


def toy_answer(prompt: list[int], max_tokens: int) -> list[int]:
    """What the toy model answers, computed without any scheduling."""
    tokens = list(prompt)
    for _ in range(max_tokens):
        tokens.append(digest(np.array(tokens)) % VOCAB)
    return tokens[len(prompt) :]


class ToyEngine:
    """Runs a scheduler step by step and checks, on each, what must always hold."""

    def __init__(self, settings: ResolvedSettings) -> None:
        self.settings = settings
        self.scheduler = Scheduler(settings)
        self.answers: dict[int, list[int]] = {}
        self.ended: set[int] = set()
        self.steps: list[Schedule] = []
        self._kv = np.full(settings.num_kv_blocks * settings.block_size, -1, np.int64)

    def submit(self, *requests: Request) -> None:
        self.scheduler.submit(list(requests))
        self.answers |= {request.request_id: [] for request in requests}

    def has_work(self) -> bool:
        return bool(self.scheduler.num_running or self.scheduler.num_waiting)

    def run(self, max_steps: int = 10_000) -> None:
        for _ in range(max_steps):
            if not self.has_work():
                return
            self.step()
        raise AssertionError(f"not done after {max_steps} steps")

    def step(self) -> Schedule:
        table = self.scheduler.table
        schedule = self.scheduler.schedule()
        self.steps.append(schedule)
        self._check_limits(schedule)
        self._check_blocks()
        self._write_and_read(schedule)
        slots = schedule.slots[schedule.samples]
        tokens = [digest(table.token_ids_SL[slot, : table.num_tokens[slot]]) % VOCAB for slot in slots]
        ended = table.num_tokens[slots] + 1 >= table.max_num_tokens[slots]
        for request_id, token, end in zip(table.request_ids[slots].tolist(), tokens, ended, strict=True):
            self.answers[request_id].append(token)
            if end:
                self.ended.add(request_id)
        self.scheduler.commit(schedule, np.array(tokens, np.int32), ended)
        return schedule

    def _check_limits(self, schedule: Schedule) -> None:
        assert len(schedule.slots) > 0, "a step without progress"
        assert schedule.num_new_tokens.min() > 0
        assert schedule.num_new_tokens.sum() <= self.settings.max_num_batched_tokens
        assert len(schedule.slots) == len(set(schedule.slots.tolist())) <= self.settings.max_num_seqs
        assert (schedule.num_new_tokens[: schedule.num_decodes] == 1).all()
        assert (schedule.num_new_tokens[schedule.num_decodes :] > 1).all()
        assert schedule.num_prefill_tokens + schedule.num_decode_tokens == schedule.num_new_tokens.sum()

    def _check_blocks(self) -> None:
        """Each block's references are the block tables that list it; the free list is the rest."""
        table, pool = self.scheduler.table, self.scheduler.pool
        uses = np.zeros(pool.num_blocks, np.int64)
        for slot in range(self.settings.max_num_seqs):
            row = table.block_tables_SB[slot]
            owned = row[: table.num_blocks[slot]]
            assert len(set(owned.tolist())) == len(owned), "a block twice in one table"
            assert not row[table.num_blocks[slot] :].any(), "not padded with 0"
            uses[owned] += 1
        assert uses.tolist() == pool._references
        assert set(np.flatnonzero(uses == 0).tolist()) == set(pool._free)
        if not self.settings.prefix_cache:
            assert uses.max() <= 1, "a block owned twice"

    def _write_and_read(self, schedule: Schedule) -> None:
        table, size = self.scheduler.table, self.settings.block_size
        batch = build_batch(table, schedule, torch.device("cpu"))
        inputs = batch.attention
        starts = inputs.query_start.tolist()
        assert inputs.num_decodes == schedule.num_decodes
        for row, slot in enumerate(schedule.slots):
            tokens = slice(starts[row], starts[row + 1])
            positions = batch.positions_T[tokens].numpy()
            assert batch.token_ids_T[tokens].tolist() == table.token_ids_SL[slot, positions].tolist()
            digests = [digest(table.token_ids_SL[slot, : position + 1]) for position in positions]
            self._kv[inputs.slot_mapping_T[tokens].numpy()] = digests
        for row, slot in enumerate(schedule.slots):
            context = inputs.host_context_lens[row]
            assert (
                context
                == int(inputs.context_lens_S[row])
                == table.num_computed_tokens[slot] + inputs.query_lens[row]
            )
            blocks = inputs.block_tables_SB[row].numpy().astype(np.int64)
            read = self._kv.reshape(-1, size)[blocks].ravel()[:context]
            expected = [digest(table.token_ids_SL[slot, : position + 1]) for position in range(context)]
            assert read.tolist() == expected, f"slot {slot} reads keys of other tokens"
        if not schedule.samples.any():
            assert batch.last is None
            return
        last = range(len(schedule.slots)) if batch.last is None else batch.last.rows_R.tolist()
        ends = [end - 1 for end in starts[1:]]
        assert list(last) == [end for end, samples in zip(ends, schedule.samples, strict=True) if samples]
