"""What every rank of an engine does alike: take commands, and compute steps.

Legend: S sequences of a step, R those of them that get a new token, V vocabulary.
"""

import time
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch

from ..causal_lm import CausalLM
from ..kv_cache import KvCache
from .batch_builder import build_batch
from .device_state import DeviceState
from .graph import Capture, PaddedDecodes, cuda_graphs
from .launched_step import LaunchedStep
from .outputs import OutputRows
from .protocol import U64, EngineStats, FinishReason, StepOutputs, StepRecord, SubmitBatch
from .request import read_requests
from .sampler import LogprobsOnDevice, sample
from .sampling_state import SamplingState
from .scheduler import Schedule, Scheduler
from .settings import ResolvedSettings
from .slots import I64
from .tp_messages import TokenChecksum
from .transfer import HostCopy, to_device

DecodeSteps = Literal["plain", "padded", "graphs"]


class EngineCore:
    """One rank's scheduler, model and KV cache. Equal commands and steps in equal order give equal tokens.

    Args:
        reports_logprobs: false on ranks whose outputs nobody reads.
        decodes: how steps are computed that only decode: as all others, padded, or padded and as graphs.
        agrees: with several ranks, see `PaddedDecodes`; making cores with graphs is then a collective.
        graphs: what captures them.
    """

    def __init__(
        self,
        model: CausalLM,
        settings: ResolvedSettings,
        *,
        reports_logprobs: bool = True,
        decodes: DecodeSteps = "plain",
        agrees: Callable[[bool], bool] | None = None,
        graphs: Callable[[], Capture] = cuda_graphs,
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
        self._scheduler = Scheduler(settings)
        self._sampling = SamplingState(settings.max_num_seqs, model.config.vocab_size, model.config.eos_token_ids)
        self._state: DeviceState | None = None
        self._decodes: PaddedDecodes | None = None
        if decodes != "plain":
            self._state = DeviceState(self._scheduler.table, self._sampling, settings.num_kv_blocks, model.device)
            capture = graphs() if decodes == "graphs" else None
            self._decodes = PaddedDecodes(model, self._kv, settings, self._state, capture=capture, agrees=agrees)
        self._rejected: list[int] = []
        self._ahead: LaunchedStep | None = None
        self._ended_s = 0.0
        self._total_step_s = 0.0

    def has_work(self) -> bool:
        scheduler = self._scheduler
        return bool(scheduler.num_running or scheduler.num_waiting or self._rejected or self._ahead)

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
        """The outputs of the oldest step under way; with overlap the next one is launched before they are read.

        Args:
            start_s: when this began, on time.perf_counter's clock.
        """
        current = self._ahead or self._launch(start_s, None)
        self._ahead = self._launch(time.perf_counter(), current) if self._settings.overlap and current else None
        rows = self._land(current) if current else OutputRows.none()
        rejected, self._rejected = self._rejected, []
        self.num_steps += 1
        return StepOutputs(*rows.and_errors(rejected), step=self._account(current))

    @torch.inference_mode()
    def _launch(self, start_s: float, previous: LaunchedStep | None) -> LaunchedStep | None:
        """Have the device compute the next step; None when there is nothing to compute, or when that takes a
        preemption, which must wait until `previous` is read."""
        schedule = self._scheduler.schedule(may_preempt=previous is None)
        if schedule is None:
            return None
        for request in schedule.admitted:
            self._sampling.set(request)
        if len(schedule.slots) == 0:
            return None
        table, sampling = self._scheduler.table, self._sampling
        num_kv_tokens = int((table.num_computed_tokens[schedule.slots] + schedule.num_new_tokens).sum())
        slots_R = schedule.slots[schedule.samples]
        logits_RV, token_ids_R = self._compute(schedule, slots_R, previous)
        logprobs = None
        if self._reports_logprobs:
            logprobs = LogprobsOnDevice.where_wanted(logits_RV, token_ids_R, sampling.num_logprobs[slots_R])
        return LaunchedStep(
            schedule=schedule,
            late=self._scheduler.begin(schedule),
            token_ids_R=token_ids_R,
            start_s=start_s,
            num_kv_tokens=num_kv_tokens,
            host_ids_R=HostCopy(token_ids_R),
            logprobs=logprobs,
        )

    def _compute(
        self, schedule: Schedule, slots_R: I64, previous: LaunchedStep | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [R, V] and token ids [R]."""
        table, state, device = self._scheduler.table, self._state, self._model.device
        if state is not None:
            state.update(schedule)
        if self._decodes is not None and len(slots_R) == len(schedule.slots) == schedule.num_decodes:
            return self._decodes.run(slots_R, table.num_computed_tokens[slots_R] + 1)
        batch = build_batch(table, schedule, device, state)
        if previous is not None and (inputs := previous.late_inputs(table, schedule)) is not None:
            inputs.fill(batch.token_ids_T)
        hidden_RD = self._model.forward(batch.token_ids_T, batch.positions_T, self._kv, batch.attention, batch.last)
        if len(slots_R) == 0:
            return torch.empty(0, 0, device=device), torch.empty(0, dtype=torch.int64, device=device)
        logits_RV = self._model.logits(hidden_RD)
        positions_R = table.num_tokens[slots_R]
        token_ids_R = sample(logits_RV, self._sampling, slots_R, positions_R)
        if state is not None:
            on_device_2R = to_device(np.stack((slots_R, positions_R)), device)
            state.advance(on_device_2R[0], token_ids_R, on_device_2R[1])
        return logits_RV, token_ids_R

    def _land(self, step: LaunchedStep) -> OutputRows:
        """Read what it brought. Rows of requests that ended or were aborted meanwhile are nobody's."""
        token_ids_R, logprobs = step.read()
        late, table = step.late, self._scheduler.table
        wanted_R = table.still_wanted(late)
        if not wanted_R.all():
            late, token_ids_R, logprobs = late.only(wanted_R), token_ids_R[wanted_R], logprobs.only(wanted_R)
        self.checksum.add(token_ids_R)
        finish_R = self._sampling.finish_reasons(late, token_ids_R, table)
        self._scheduler.commit(late, token_ids_R, finish_R != FinishReason.NONE)
        return OutputRows(late.request_ids, token_ids_R, finish_R, *logprobs)

    def _account(self, step: LaunchedStep | None) -> StepRecord:
        """A step lasts from its launch, or the end of the one before, to its own end."""
        if step is None:
            return StepRecord(0.0, 0, 0, 0)
        end_s = time.perf_counter()
        step_s, self._ended_s = end_s - max(step.start_s, self._ended_s), end_s
        self._total_step_s += step_s
        schedule = step.schedule
        return StepRecord(
            step_s=step_s,
            num_prefill_tokens=schedule.num_prefill_tokens,
            num_decode_tokens=schedule.num_decode_tokens,
            num_recomputed_tokens=schedule.num_recomputed_tokens,
            num_kv_tokens=step.num_kv_tokens,
            num_running=schedule.num_running,
            num_without_room=schedule.num_without_room,
            num_deferred=schedule.num_deferred,
        )

    def close(self) -> None:
        """Nothing is computed any more. NCCL ends only when no graph holds its kernels."""
        if self._decodes is not None:
            self._decodes.drop_graphs()

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
