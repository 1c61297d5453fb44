"""A scheduler with a toy model on numpy arrays: the next token is a function of all tokens before it.

The toy KV cache holds, for each token, a digest of the sequence up to it. Reading back anything else means that a
block was shared, reused or left unwritten by mistake.
"""

import zlib
from pathlib import Path

import numpy as np
import torch
from nfold.kernels import ops
from nfold.models.engine.batch_builder import Batch, build_batch
from nfold.models.engine.device_state import DeviceState
from nfold.models.engine.protocol import I32, SamplingParams
from nfold.models.engine.request import Request
from nfold.models.engine.sampling_state import SamplingState
from nfold.models.engine.scheduler import Schedule, Scheduler
from nfold.models.engine.settings import ResolvedSettings
from nfold.models.engine.slots import I64, LateTokens

VOCAB = 50
CPU = torch.device("cpu")


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
        overlap=False,
        device="cpu",
    )


def make_request(request_id: int, prompt: list[int], max_tokens: int) -> Request:
    sampling = SamplingParams(
        max_tokens,
        temperature=request_id / 4,
        top_k=request_id % 7,
        top_p=1 / (1 + request_id),
        seed=3 * request_id,
    )
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
    """Runs a scheduler step by step and checks, on each, what must always hold.

    Args:
        overlap: a step's tokens are told once the next step has begun.
    """

    def __init__(self, settings: ResolvedSettings, *, overlap: bool = False) -> None:
        self.settings = settings
        self._overlap = overlap
        self._under_way: tuple[LateTokens, I32] | None = None
        self.scheduler = Scheduler(settings)
        self._sampling = SamplingState(settings.max_num_seqs, VOCAB, ())
        self._state = DeviceState(self.scheduler.table, self._sampling, settings.num_kv_blocks, CPU)
        self.answers: dict[int, list[int]] = {}
        self.ended: set[int] = set()
        self.steps: list[Schedule] = []
        self._kv = np.full(settings.num_kv_blocks * settings.block_size, -1, np.int64)

    def submit(self, *requests: Request) -> None:
        self.scheduler.submit(list(requests))
        self.answers |= {request.request_id: [] for request in requests}

    def has_work(self) -> bool:
        return bool(self.scheduler.num_running or self.scheduler.num_waiting or self._under_way)

    def run(self, max_steps: int = 10_000) -> None:
        for _ in range(max_steps):
            if not self.has_work():
                return
            self.step_if_possible()
        raise AssertionError(f"not done after {max_steps} steps")

    def step(self) -> Schedule:
        schedule = self.step_if_possible()
        assert schedule is not None
        return schedule

    def step_if_possible(self) -> Schedule | None:
        """What it began; None when nothing could begin before the step under way has landed."""
        before, self._under_way = self._under_way, None
        begun = self._begin(before)
        if before is not None:
            self._land(*before)
        if begun is None:
            return None
        schedule, *under_way = begun
        if self._overlap:
            self._under_way = (under_way[0], under_way[1])
        else:
            self._land(*under_way)
        return schedule

    def _begin(self, before: tuple[LateTokens, I32] | None) -> tuple[Schedule, LateTokens, I32] | None:
        table = self.scheduler.table
        schedule = self.scheduler.schedule(may_preempt=before is None)
        if schedule is None or (before is not None and len(schedule.slots) == 0):
            return None
        self.steps.append(schedule)
        for request in schedule.admitted:
            self._sampling.set(request)
        self._check_limits(schedule)
        self._check_blocks()
        tokens_SL = table.token_ids_SL.copy()
        if before is not None:
            wanted = table.still_wanted(before[0])
            tokens_SL[before[0].slots[wanted], before[0].positions[wanted]] = before[1][wanted]
        self._state.update(schedule)
        batch = build_batch(table, schedule, CPU, self._state)
        self._write_and_read(schedule, batch, tokens_SL)
        slots = schedule.slots[schedule.samples]
        if len(slots) == len(schedule.slots) == schedule.num_decodes:
            self._check_decode_inputs(batch, slots, tokens_SL)
        tokens = [digest(tokens_SL[slot, : table.num_tokens[slot]]) % VOCAB for slot in slots]
        positions_R = torch.from_numpy(table.num_tokens[slots])
        self._state.advance(torch.from_numpy(slots), torch.tensor(tokens, dtype=torch.int64), positions_R)
        return schedule, self.scheduler.begin(schedule), np.array(tokens, np.int32)

    def _land(self, late: LateTokens, tokens: I32) -> None:
        table = self.scheduler.table
        wanted = table.still_wanted(late)
        late, tokens = late.only(wanted), tokens[wanted]
        ended = late.positions + 1 >= table.max_num_tokens[late.slots]
        for request_id, token, end in zip(late.request_ids.tolist(), tokens.tolist(), ended, strict=True):
            self.answers[request_id].append(token)
            if end:
                self.ended.add(request_id)
        self.scheduler.commit(late, tokens, ended)

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

    def _check_decode_inputs(self, batch: Batch, slots: I64, tokens_SL: I32) -> None:
        """What a step reads on the device is what the host would send, where all decode."""
        R, size, padding = len(slots), self.settings.block_size, self.settings.max_num_seqs
        inputs = ops.decode_inputs(self._state.running, torch.tensor([*slots, padding, padding]), size)
        attention, sampling = batch.attention, self._sampling
        positions_R = batch.positions_T.numpy()
        for got, wanted in (
            (inputs.token_ids_R, tokens_SL[slots, positions_R]),
            (inputs.positions_R, positions_R),
            (inputs.new_positions_R, positions_R + 1),
            (inputs.slot_mapping_R, attention.slot_mapping_T),
            (inputs.context_lens_R, attention.context_lens_S),
            (inputs.seeds_R, sampling.seed[slots]),
            (inputs.top_k_R, sampling.top_k[slots]),
            (inputs.temperature_R, sampling.temperature[slots]),
            (inputs.top_p_R, sampling.top_p[slots]),
        ):
            np.testing.assert_array_equal(got[:R], wanted)
        assert inputs.slot_mapping_R[R:].tolist() == [self.settings.num_kv_blocks * size] * 2
        assert inputs.context_lens_R[R:].tolist() == [1, 1]
        for row, context in enumerate(attention.host_context_lens):
            used = -(-context // size)
            wanted = self.scheduler.table.block_tables_SB[slots[row], :used]
            assert inputs.block_tables_RB[row, :used].tolist() == wanted.tolist()

    def _write_and_read(self, schedule: Schedule, batch: Batch, tokens_SL: I32) -> None:
        """`tokens_SL` are the table's with those that are late."""
        table, size = self.scheduler.table, self.settings.block_size
        inputs = batch.attention
        starts = inputs.query_start.tolist()
        assert inputs.num_decodes == schedule.num_decodes
        for row, slot in enumerate(schedule.slots):
            tokens = slice(starts[row], starts[row + 1])
            positions = batch.positions_T[tokens].numpy()
            assert batch.token_ids_T[tokens].tolist() == table.token_ids_SL[slot, positions].tolist()
            digests = [digest(tokens_SL[slot, : position + 1]) for position in positions]
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
            expected = [digest(tokens_SL[slot, : position + 1]) for position in range(context)]
            assert read.tolist() == expected, f"slot {slot} reads keys of other tokens"
        if not schedule.samples.any():
            assert batch.last is None
            return
        last = range(len(schedule.slots)) if batch.last is None else batch.last.rows_R.tolist()
        ends = [end - 1 for end in starts[1:]]
        assert list(last) == [end for end, samples in zip(ends, schedule.samples, strict=True) if samples]
