"""The native engine: continuous batching over a paged KV cache, on one rank or on the ranks of a replica."""

import time
from collections.abc import Callable

import torch

from ...kernels.quantized import fp8_dtype
from ..causal_lm import CausalLM
from ..errors import EngineError
from ..kv_cache import KvCache
from ..parallel import TpGroup
from ..registry import load_model
from .core import DecodeSteps, EngineCore
from .graph import Capture, cuda_graphs
from .protocol import U64, EngineInfo, EngineStats, StepOutputs, SubmitBatch
from .settings import EngineSettings, ResolvedSettings
from .tp_leader import HEARTBEAT_S, TpLeader
from .tp_messages import Command, Message, MessageKind


class NativeEngine:
    """One rank's engine. On rank 0 it is an `Engine`; on the others `tp_loop.follow` runs it.

    With several ranks `has_work` is true also once a rank is gone, so that the next `step` raises.

    Args:
        tp: the group; the caller closes it, after the engine.
        heartbeat_s: longest silence of rank 0; must be well under the group's timeout.
    """

    def __init__(
        self, core: EngineCore, settings: ResolvedSettings, tp: TpGroup, heartbeat_s: float = HEARTBEAT_S
    ) -> None:
        self.core = core
        self.tp = tp
        self._info = EngineInfo("native", settings.max_model_len, settings.max_num_seqs, settings.as_dict())
        self._leader = TpLeader(tp, heartbeat_s) if tp.rank == 0 and tp.size > 1 else None
        self._unsent: list[Command] = []
        self._failure: EngineError | None = None

    @classmethod
    def load(
        cls,
        settings: EngineSettings,
        tp: TpGroup,
        device: torch.device,
        *,
        heartbeat_s: float = HEARTBEAT_S,
        decodes: DecodeSteps | None = None,
        graphs: Callable[[], Capture] = cuda_graphs,
    ) -> "NativeEngine":
        """Load this rank's share of the model and make its KV cache. A collective: every rank of `tp` calls it.

        Args:
            decodes: see `EngineCore`; None takes graphs on a GPU, and neither graphs nor padding on CPU.
            graphs: what captures them.

        Raises ConfigError, CheckpointError, and EngineError when another rank is gone.
        """
        dtype = None if settings.dtype == "auto" else getattr(torch, settings.dtype)
        model = load_model(
            settings.model_dir, tp=tp, device=device, dtype=dtype, quantization=settings.quantization
        )
        kv_dtype = _kv_dtype(settings, model)
        kv_bytes_per_token = KvCache.bytes_per_block(
            1, model.num_layers, model.num_kv_heads, model.head_dim, kv_dtype
        )
        resolved = settings.resolve(
            model_max_len=model.config.max_position_embeddings,
            kv_bytes_per_token=kv_bytes_per_token,
            free_bytes=_least_free_bytes(tp, device),
            dtype=str(model.dtype).removeprefix("torch."),
            device=str(device),
            quantization=model.quantization.name,
            kv_cache_dtype=str(kv_dtype).removeprefix("torch."),
        )
        core = EngineCore(
            model,
            resolved,
            reports_logprobs=tp.rank == 0,
            decodes=decodes or ("plain" if device.type == "cpu" else "graphs"),
            agrees=tp.agrees if tp.size > 1 else None,
            graphs=graphs,
        )
        return cls(core, resolved, tp, heartbeat_s)

    @property
    def info(self) -> EngineInfo:
        return self._info

    def submit(self, batch: SubmitBatch) -> None:
        self._tell(batch)

    def abort(self, request_ids: U64) -> None:
        self._tell(request_ids)

    def has_work(self) -> bool:
        return self.core.has_work() or (self._leader is not None and self._leader.failure is not None)

    def step(self) -> StepOutputs:
        start_s = time.perf_counter()
        if self._failure is not None:
            raise self._failure
        try:
            if self._leader is None:
                return self.compute_step(start_s)
            with self._leader.lead(self._announce_step()):
                return self.compute_step(start_s)
        except EngineError as error:
            self._failure = error
            raise

    def stats(self) -> EngineStats:
        return self.core.stats()

    def close(self) -> None:
        """Rank 0's sends the other ranks home. The group stays open."""
        if self._leader is not None:
            self._leader.close()
        self.core.close()

    # For every rank

    def apply(self, command: Command) -> None:
        """Queue or abort, between two steps."""
        if isinstance(command, SubmitBatch):
            self.core.submit(command)
        else:
            self.core.abort(command)

    def compute_step(self, start_s: float | None = None) -> StepOutputs:
        """This rank's share of a step. Raises EngineError when it cannot be computed."""
        try:
            return self.core.step(time.perf_counter() if start_s is None else start_s)
        except RuntimeError as error:  # what torch raises, out of memory included
            raise EngineError(f"rank {self.tp.rank} of {self.tp.size}: step failed: {error}") from error

    def _tell(self, command: Command) -> None:
        """Apply here at once and on the other ranks before the next step: between steps only the order counts."""
        self.apply(command)
        if self._leader is not None:
            self._unsent.append(command)

    def _announce_step(self) -> Message:
        commands, self._unsent = self._unsent, []
        return Message(MessageKind.STEP, self.core.num_steps, self.core.checksum.value, commands)


def _kv_dtype(settings: EngineSettings, model: CausalLM) -> torch.dtype:
    if settings.kv_cache_dtype == "fp8" or model.quantization.has_kv_scales:
        return fp8_dtype(model.device)
    return model.dtype


def _least_free_bytes(tp: TpGroup, device: torch.device) -> int | None:
    """Free memory of the rank that has the least, so that all make equal caches; None on CPU."""
    if device.type == "cpu":
        return None
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return int(tp.all_gather_last(torch.tensor([free_bytes], device=device)).min())
