"""The settings of one engine: as wished, and as resolved once after the model is loaded."""

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from ..errors import ConfigError
from ..quantization.choice import KvCacheDtypeName, QuantizationName

_log = logging.getLogger(__name__)

_CPU_KV_CACHE_BYTES = 1 << 30
_GPU_KV_CACHE_SHARE = 0.9


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """What the user wishes; None and `auto` leave the choice to `resolve`.

    Attributes:
        model_dir: a Hugging Face directory.
        dtype: `auto` takes the checkpoint's, or float32 for bfloat16 on a CPU that only emulates it.
        quantization: of the linear layers; `auto` takes the checkpoint's, `fp8` and `mxfp4` round others' weights.
        kv_cache_dtype: `fp8` halves the cache; `auto` takes it where the checkpoint has its scales, else `dtype`.
        max_model_len: most tokens of prompt + answer; None takes the model's, less where the KV cache holds less.
        max_num_seqs: most requests in one step.
        max_num_batched_tokens: the token budget of one step.
        block_size: tokens per KV block.
        kv_cache_bytes: per rank; None takes 1 GiB on CPU and 90 % of what is free after loading on a GPU.
        prefix_cache: reuse KV blocks of equal prompt beginnings.
        overlap: launch a step before the one before it is read, so that the device need not wait for the host; None
            does so where a device computes by itself, which a CPU does not.
    """

    model_dir: Path
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    quantization: QuantizationName = "auto"
    kv_cache_dtype: KvCacheDtypeName = "auto"
    max_model_len: int | None = None
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    block_size: int = 16
    kv_cache_bytes: int | None = None
    prefix_cache: bool = True
    overlap: bool | None = None

    def resolve(
        self,
        *,
        model_max_len: int,
        kv_bytes_per_token: int,
        free_bytes: int | None,
        dtype: str,
        device: str,
        quantization: str = "none",
        kv_cache_dtype: str | None = None,
    ) -> "ResolvedSettings":
        """Make every choice, once; logs the automatic ones.

        Args:
            model_max_len: longest sequence that the model was made for, tokens.
            kv_bytes_per_token: keys and values of one token on one rank, all layers.
            free_bytes: free memory of the rank with the least; None on CPU.
            dtype: of what is not quantised.
            device: what the model runs on, for provenance.
            quantization: of the loaded weights.
            kv_cache_dtype: as torch names it; None: `dtype`.

        Raises:
            ConfigError: a count is below 1, or max_model_len exceeds the model or the KV cache.
        """
        for field in ("max_num_seqs", "max_num_batched_tokens", "block_size", "max_model_len", "kv_cache_bytes"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ConfigError(field, value, "must be at least 1")
        kv_cache_bytes = self._choose_kv_cache_bytes(free_bytes)
        num_kv_blocks = kv_cache_bytes // (kv_bytes_per_token * self.block_size)
        max_model_len = self._choose_max_model_len(model_max_len, num_kv_blocks, kv_bytes_per_token)
        if not self.prefix_cache:  # more blocks than running requests can hold would only lie there
            num_kv_blocks = min(num_kv_blocks, self.max_num_seqs * -(-max_model_len // self.block_size))
        resolved = ResolvedSettings(
            model_dir=self.model_dir,
            dtype=dtype,
            quantization=quantization,
            kv_cache_dtype=kv_cache_dtype or dtype,
            max_model_len=max_model_len,
            max_num_seqs=min(self.max_num_seqs, self.max_num_batched_tokens),
            max_num_batched_tokens=self.max_num_batched_tokens,
            block_size=self.block_size,
            num_kv_blocks=num_kv_blocks,
            kv_cache_bytes=num_kv_blocks * kv_bytes_per_token * self.block_size,
            prefix_cache=self.prefix_cache,
            overlap=device != "cpu" if self.overlap is None else self.overlap,
            device=device,
        )
        _log.info("engine settings: %s", ", ".join(f"{name} {value}" for name, value in resolved.as_dict().items()))
        return resolved

    def _choose_kv_cache_bytes(self, free_bytes: int | None) -> int:
        if self.kv_cache_bytes is not None:
            return self.kv_cache_bytes
        if free_bytes is None:
            _log.info("kv_cache_bytes: 1 GiB, the default on CPU")
            return _CPU_KV_CACHE_BYTES
        _log.info("kv_cache_bytes: 90 %% of the %.1f GiB free after loading", free_bytes / 2**30)
        return int(free_bytes * _GPU_KV_CACHE_SHARE)

    def _choose_max_model_len(self, model_max_len: int, num_kv_blocks: int, kv_bytes_per_token: int) -> int:
        num_kv_tokens = num_kv_blocks * self.block_size
        if num_kv_tokens < 2:
            needed = self.block_size * kv_bytes_per_token
            raise ConfigError(
                "kv_cache_bytes", self.kv_cache_bytes, f"must hold a block; one takes {needed} bytes per rank"
            )
        if self.max_model_len is None:
            if num_kv_tokens < model_max_len:
                _log.warning("max_model_len: %d, all that the KV cache holds; the model allows %d",
                             num_kv_tokens, model_max_len)  # fmt: skip
            return min(model_max_len, num_kv_tokens)
        if self.max_model_len > model_max_len:
            raise ConfigError("max_model_len", self.max_model_len, f"must not exceed the model's {model_max_len}")
        if self.max_model_len > num_kv_tokens:
            needed = -(-self.max_model_len // self.block_size) * self.block_size * kv_bytes_per_token
            expected = (
                f"the KV cache holds {num_kv_tokens} tokens; lower it or set kv_cache_bytes to at least {needed}"
            )
            raise ConfigError("max_model_len", self.max_model_len, expected)
        return self.max_model_len


@dataclass(frozen=True, kw_only=True)
class ResolvedSettings:
    """What the engine runs with, equal on every rank. A request of max_model_len tokens fits the KV cache."""

    model_dir: Path
    dtype: str
    quantization: str
    kv_cache_dtype: str
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int
    num_kv_blocks: int
    kv_cache_bytes: int
    prefix_cache: bool
    overlap: bool
    device: str

    def as_dict(self) -> dict[str, str | int | float | bool]:
        """For provenance, as `EngineInfo.settings` wants it."""
        return asdict(self) | {"model_dir": str(self.model_dir)}
