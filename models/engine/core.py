"""What every rank of an engine does alike: take commands, and compute steps.

Legend: S sequences of a step, R those of them that get a new token, V vocabulary.
"""

import time
from dataclasses import dataclass

import numpy as np
import torch

from ..causal_lm import CausalLM
from ..kv_cache import KvCache
from .batch_builder import build_batch
from .protocol import I32, U8, U64, EngineStats, FinishReason, StepOutputs, StepRecord, SubmitBatch
from .request import read_requests
from .sampler import Logprobs, compute_logprobs, sample
from .sampling_state import SamplingState
from .scheduler import Schedule, Scheduler
from .settings import ResolvedSettings
from .tp_messages import TokenChecksum


@dataclass(frozen=True, slots=True)
class _NewTokens:
    """The rows of a step, before those of requests that ended without a token."""

    request_ids_R: U64
    token_ids_R: I32
    finish_R: U8
    logprobs: Logprobs

    @classmethod
    def none(cls) -> "_NewTokens":
        return cls(np.zeros(0, np.uint64), np.zeros(0, np.int32), np.zeros(0, np.uint8), Logprobs.none(0))


class EngineCore:
    """One rank's scheduler, model and KV cache. Equal commands and steps in equal order give equal tokens.

    Args:
        reports_logprobs: false on ranks whose outputs nobody reads.
    """

    def __init__(self, model: CausalLM, settings: ResolvedSettings, *, reports_logprobs: bool = True) -> None:
        self.checksum = TokenChecksum()
        self.num_steps = 0
        self._model = model
        self._settings = settings
        self._reports_logprobs = reports_logprobs
        self._kv = KvCache(
            settings.num_kv_blocks,
            settings.block_size,
            model.num_layers,
            model.num_kv_heads,
            model.head_dim,
            model.dtype,
            model.device,
        )
        self._scheduler = Scheduler(settings)
        self._sampling = SamplingState(settings.max_num_seqs, model.config.vocab_size, model.config.eos_token_ids)
        self._rejected: list[int] = []
        self._total_step_s = 0.0

    def has_work(self) -> bool:
        return bool(self._scheduler.num_running or self._scheduler.num_waiting or self._rejected)

    def submit(self, batch: SubmitBatch) -> None:
        requests, rejected = read_requests(
            batch, max_model_len=self._settings.max_model_len, vocab_size=self._model.config.vocab_size
        )
        self._scheduler.submit(requests)
        self._rejected += rejected

    def abort(self, request_ids: U64) -> None:
        gone: set[int] = set(request_ids.tolist())
        for request_id in request_ids.tolist():
            self._scheduler.abort(request_id)
        self._rejected = [request_id for request_id in self._rejected if request_id not in gone]

    def step(self, start_s: float) -> StepOutputs:
        """Compute one step. `start_s` is when it began, on time.perf_counter's clock."""
        schedule = self._scheduler.schedule()
        for request in schedule.admitted:
            self._sampling.set(request)
        new = self._compute(schedule) if len(schedule.slots) else _NewTokens.none()
        rejected, self._rejected = self._rejected, []
        step_s = time.perf_counter() - start_s
        self.num_steps += 1
        self._total_step_s += step_s
        record = StepRecord(
            step_s=step_s,
            num_prefill_tokens=schedule.num_prefill_tokens,
            num_decode_tokens=schedule.num_decode_tokens,
            num_recomputed_tokens=schedule.num_recomputed_tokens,
        )
        return _join_outputs(new, rejected, record)

    @torch.inference_mode()
    def _compute(self, schedule: Schedule) -> _NewTokens:
        table = self._scheduler.table
        batch = build_batch(table, schedule, self._model.device)
        hidden_TD = self._model.forward(batch.token_ids_T, batch.positions_T, self._kv, batch.attention)
        slots_R = schedule.slots[schedule.samples]
        if len(slots_R) == 0:
            self._scheduler.commit(schedule, np.zeros(0, np.int32), np.zeros(0, np.bool_))
            return _NewTokens.none()
        hidden_RD = hidden_TD if batch.last_rows_R is None else hidden_TD[batch.last_rows_R]
        logits_RV = self._model.logits(hidden_RD)
        token_ids_R = sample(logits_RV, self._sampling, slots_R, table.num_tokens[slots_R])
        self.checksum.add(token_ids_R)
        num_logprobs_R = self._sampling.num_logprobs[slots_R]
        new = _NewTokens(
            request_ids_R=table.request_ids[slots_R],
            token_ids_R=token_ids_R,
            finish_R=self._sampling.finish_reasons(slots_R, token_ids_R, table),
            logprobs=compute_logprobs(logits_RV, token_ids_R, num_logprobs_R)
            if self._reports_logprobs
            else Logprobs.none(len(slots_R)),
        )
        self._scheduler.commit(schedule, token_ids_R, new.finish_R != FinishReason.NONE)
        return new

    def stats(self) -> EngineStats:
        scheduler, totals = self._scheduler, self._scheduler.totals
        return EngineStats(
            num_running=scheduler.num_running,
            num_waiting=scheduler.num_waiting,
            num_kv_blocks=scheduler.pool.num_blocks,
            num_kv_blocks_used=scheduler.pool.num_blocks - scheduler.pool.num_free,
            total_steps=self.num_steps,
            total_prompt_tokens=totals.prompt_tokens,
            total_output_tokens=totals.output_tokens,
            total_cached_prompt_tokens=totals.cached_prompt_tokens,
            total_recomputed_tokens=totals.recomputed_tokens,
            total_preemptions=totals.preemptions,
            total_step_s=self._total_step_s,
        )


def _join_outputs(new: _NewTokens, rejected: list[int], record: StepRecord) -> StepOutputs:
    """The step's rows: new tokens first, then the requests that can never be served."""
    logprobs = new.logprobs
    if rejected:
        count, K = len(rejected), logprobs.top_RK.shape[1]
        none_RK = np.full((count, K), np.nan, np.float32)
        return StepOutputs(
            request_ids=np.concatenate((new.request_ids_R, np.array(rejected, np.uint64))),
            token_ids=np.concatenate((new.token_ids_R, np.full(count, -1, np.int32))),
            finish=np.concatenate((new.finish_R, np.full(count, FinishReason.ERROR, np.uint8))),
            logprobs=np.concatenate(
                (logprobs.chosen_R, none_RK[:, 0] if K else np.full(count, np.nan, np.float32))
            ),
            top_ids=np.concatenate((logprobs.top_ids_RK, np.full((count, K), -1, np.int32))),
            top_logprobs=np.concatenate((logprobs.top_RK, none_RK)),
            step=record,
        )
    return StepOutputs(
        request_ids=new.request_ids_R,
        token_ids=new.token_ids_R,
        finish=new.finish_R,
        logprobs=logprobs.chosen_R,
        top_ids=logprobs.top_ids_RK,
        top_logprobs=logprobs.top_RK,
        step=record,
    )
