"""What every rank of an engine does alike: take commands, and compute steps.

Legend: S sequences of a step, R those of them that get a new token, V vocabulary.
"""

import time
from typing import Literal

import numpy as np
import torch

from ..causal_lm import CausalLM
from ..kv_cache import KvCache
from .batch_builder import build_batch
from .graph import PaddedDecodes
from .outputs import OutputRows
from .protocol import U64, EngineStats, FinishReason, StepOutputs, StepRecord, SubmitBatch
from .request import read_requests
from .sampler import Logprobs, compute_logprobs, sample
from .sampling_state import SamplingState
from .scheduler import Schedule, Scheduler
from .settings import ResolvedSettings
from .tp_messages import TokenChecksum

DecodeSteps = Literal["plain", "padded", "graphs"]


class EngineCore:
    """One rank's scheduler, model and KV cache. Equal commands and steps in equal order give equal tokens.

    Args:
        reports_logprobs: false on ranks whose outputs nobody reads.
        decodes: how steps are computed that only decode: as all others, padded, or padded and as a GPU's graphs.
    """

    def __init__(
        self,
        model: CausalLM,
        settings: ResolvedSettings,
        *,
        reports_logprobs: bool = True,
        decodes: DecodeSteps = "plain",
    ) -> None:
        self.checksum = TokenChecksum()
        self.num_steps = 0
        self._model = model
        self._settings = settings
        self._reports_logprobs = reports_logprobs
        self._kv = KvCache(
            settings.num_kv_blocks + (decodes != "plain"),
            settings.block_size,
            model.num_layers,
            model.num_kv_heads,
            model.head_dim,
            getattr(torch, settings.kv_cache_dtype),
            model.device,
        )
        self._decodes: PaddedDecodes | None = None
        if decodes != "plain":
            self._decodes = PaddedDecodes(model, self._kv, settings, captures=decodes == "graphs")
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
        num_computed = self._scheduler.table.num_computed_tokens[schedule.slots]
        num_kv_tokens = int((num_computed + schedule.num_new_tokens).sum())
        rows = self._compute(schedule) if len(schedule.slots) else OutputRows.none()
        rejected, self._rejected = self._rejected, []
        step_s = time.perf_counter() - start_s
        self.num_steps += 1
        self._total_step_s += step_s
        record = StepRecord(
            step_s=step_s,
            num_prefill_tokens=schedule.num_prefill_tokens,
            num_decode_tokens=schedule.num_decode_tokens,
            num_recomputed_tokens=schedule.num_recomputed_tokens,
            num_kv_tokens=num_kv_tokens,
            num_running=schedule.num_running,
            num_without_room=schedule.num_without_room,
            num_deferred=schedule.num_deferred,
        )
        return StepOutputs(*rows.and_errors(rejected), step=record)

    @torch.inference_mode()
    def _compute(self, schedule: Schedule) -> OutputRows:
        table, sampling = self._scheduler.table, self._sampling
        slots_R = schedule.slots[schedule.samples]
        if self._decodes is not None and len(slots_R) == len(schedule.slots) == schedule.num_decodes:
            logits_RV, ids_R = self._decodes.run(table, sampling, slots_R)
            token_ids_R = ids_R.cpu().numpy().astype(np.int32)
        else:
            batch = build_batch(table, schedule, self._model.device)
            hidden_RD = self._model.forward(
                batch.token_ids_T, batch.positions_T, self._kv, batch.attention, batch.last
            )
            if len(slots_R) == 0:
                self._scheduler.commit(schedule, np.zeros(0, np.int32), np.zeros(0, np.bool_))
                return OutputRows.none()
            logits_RV = self._model.logits(hidden_RD)
            token_ids_R = sample(logits_RV, sampling, slots_R, table.num_tokens[slots_R])
        self.checksum.add(token_ids_R)
        finish_R = sampling.finish_reasons(slots_R, token_ids_R, table)
        request_ids_R = table.request_ids[slots_R]
        logprobs = Logprobs.none(len(slots_R))
        if self._reports_logprobs:
            logprobs = compute_logprobs(logits_RV, token_ids_R, sampling.num_logprobs[slots_R])
        self._scheduler.commit(schedule, token_ids_R, finish_R != FinishReason.NONE)
        return OutputRows(request_ids_R, token_ids_R, finish_R, *logprobs)

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
