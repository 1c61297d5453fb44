"""What a replica serves, as its deployment tells it."""

from dataclasses import dataclass

from ..models.engine.settings import EngineSettings
from .config import PoolConfig, ServedModelConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaSpec:
    """What a replica serves.

    Attributes:
        pool_name: the name of its Serve deployment.
        drain_timeout_s: how long an ending replica may finish what it has.
        accounts_steps: see `ServiceSettings`.
    """

    service: str
    model: ServedModelConfig
    pool: PoolConfig
    pool_name: str
    drain_timeout_s: float
    accounts_steps: bool = True

    @property
    def engine_settings(self) -> EngineSettings:
        wanted = self.model.engine
        return EngineSettings(
            model_dir=self.model.directory,
            dtype=wanted.dtype,
            quantization=wanted.quantization,
            kv_cache_dtype=wanted.kv_cache_dtype,
            max_model_len=wanted.max_model_len,
            max_num_seqs=wanted.max_num_seqs,
            max_num_batched_tokens=wanted.max_num_batched_tokens,
            block_size=wanted.block_size,
            kv_cache_bytes=wanted.kv_cache_bytes,
            prefix_cache=wanted.prefix_cache,
            overlap=wanted.overlap,
        )
