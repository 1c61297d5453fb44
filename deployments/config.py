"""What is served: the service part of nfold's YAML, checked at the edge with pydantic."""

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..models.errors import ConfigError
from .simulated_config import SIMULATED_PREFIX, SimulatedConfig

EMBEDDED_MODEL = "embedded"
SIMULATED_MODEL = "simulated"

PositiveInt = Annotated[int, Field(ge=1)]
Port = Annotated[int, Field(ge=1, le=65535)]


class Section(BaseModel):
    """A part of the YAML: a misspelt field is an error, and nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class HttpConfig(Section):
    """Where the OpenAI API listens.

    Attributes:
        ingress: what Serve puts before the gateways: HAProxy adds 0.3 ms to a request, Serve's Python proxy over 3.
        gateways: on each machine. With two, half of a machine's streams go on when one dies; each costs memory and
            a message per engine step.
        max_body_bytes: a longer body is refused with 413.
    """

    host: str = "127.0.0.1"
    port: Port = 8000
    ingress: Literal["proxy", "haproxy"] = "haproxy"
    gateways: PositiveInt = 1
    max_body_bytes: PositiveInt = 4 << 20


class MetricsConfig(Section):
    """Where Prometheus scrapes: one endpoint for the whole service.

    Attributes:
        enabled: without, there is no endpoint and no loss ledger, and replicas do not account for their steps.
    """

    enabled: bool = True
    host: str = "127.0.0.1"
    port: Port = 9400


class EngineConfig(Section):
    """Settings of every replica's engine of one model.

    Attributes:
        engine: `native` computes; `simulated` takes the time that published results say, with their settings.
        simulated: of a simulated engine.
        dtype: `auto` takes the checkpoint's, or float32 for bfloat16 on a CPU that only emulates it.
        quantization: of the linear layers: `auto` takes the checkpoint's, `fp8` and `mxfp4` round others' weights
            while they are loaded.
        kv_cache_dtype: `fp8` halves the KV cache; `auto` takes `fp8` where the checkpoint has scales for it.
        max_model_len: most tokens of prompt + answer; None takes the model's.
        max_num_seqs: most requests in one step.
        max_num_batched_tokens: the token budget of one step.
        block_size: tokens per KV block.
        kv_cache_bytes: per rank; None takes 1 GiB on CPU and 90 % of what is free after loading on a GPU.
        prefix_cache: reuse KV blocks of equal prompt beginnings (MLPerf forbids it).
        overlap: launch a step before the one before it is read; None does so on GPUs.
    """

    engine: Literal["native", "simulated"] = "native"
    simulated: SimulatedConfig | None = None
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    quantization: Literal["auto", "none", "fp8", "mxfp4"] = "auto"
    kv_cache_dtype: Literal["auto", "fp8"] = "auto"
    max_model_len: PositiveInt | None = None
    max_num_seqs: PositiveInt = 256
    max_num_batched_tokens: PositiveInt = 2048
    block_size: PositiveInt = 16
    kv_cache_bytes: PositiveInt | None = None
    prefix_cache: bool = True
    overlap: bool | None = None

    @model_validator(mode="after")
    def _settings_fit_the_engine(self) -> Self:
        if self.engine == "native":
            if self.simulated is not None:
                raise ValueError("the section simulated needs `engine: simulated` beside it")
            return self
        if self.simulated is None:
            object.__setattr__(self, "simulated", SimulatedConfig())
        for name, field in EngineConfig.model_fields.items():
            if name not in ("engine", "simulated", "max_model_len") and getattr(self, name) != field.default:
                raise ValueError(f"{name} of a simulated engine comes from its profile and scenario; leave it out")
        return self


class PoolConfig(Section):
    """The replicas of one model on one accelerator: one Ray Serve deployment.

    Attributes:
        accelerator: `CPU`, or the type that Ray names, such as `AMD-Instinct-MI355X-OAM`, or `GPU` for any. With
            simulated engines, that of a profile: `MI355X`, which then goes by the name `simulated-MI355X`.
        tp: ranks of a replica, one accelerator each.
        shares_memory: ranks sum through memory that they share, where they can; on GPUs (NVIDIA's only) only what
            is small, and each rank sees all GPUs of its node. False goes without.
        cores_per_rank: CPU cores that each rank is pinned to in a CPU pool.
        num_replicas: how many to start with; None fills the nodes that are there. With simulated engines, the
            simulated nodes, each of which serves with all its accelerators.
    """

    accelerator: str = "CPU"
    tp: PositiveInt = 1
    shares_memory: bool = True
    cores_per_rank: PositiveInt = 1
    num_replicas: PositiveInt | None = None

    @property
    def is_simulated(self) -> bool:
        return self.accelerator.startswith(SIMULATED_PREFIX)


class ServedModelConfig(Section):
    """One served model.

    Attributes:
        name: what clients ask for.
        path: a Hugging Face directory on every node, `embedded` for the model that comes with nfold, or `simulated`
            for simulated engines, which have none.
        max_queued_requests: requests that wait in a gateway for a free slot before it answers 429.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    path: str = EMBEDDED_MODEL
    engine: EngineConfig = EngineConfig()
    pools: Annotated[list[PoolConfig], Field(min_length=1)] = [PoolConfig()]
    max_queued_requests: PositiveInt = 1024

    @property
    def simulated(self) -> SimulatedConfig | None:
        """None when its engines compute."""
        return self.engine.simulated

    @property
    def directory(self) -> Path:
        """Where the checkpoint lies. A simulated model speaks in the tokens of the one that comes with nfold."""
        if self.path in (EMBEDDED_MODEL, SIMULATED_MODEL):
            return Path(__file__).parent.parent / "models" / "embedded" / "nfold-sums"
        return Path(self.path).expanduser()

    def without_prefix_cache(self) -> "ServedModelConfig":
        """For measurements: a prompt costs as much as the first of its kind."""
        return self.model_copy(update={"engine": self.engine.model_copy(update={"prefix_cache": False})})

    @model_validator(mode="after")
    def _simulated_engines_have_profiles(self) -> Self:
        if (self.simulated is None) != (self.path != SIMULATED_MODEL):
            raise ValueError("`path: simulated` and `engine: {engine: simulated}` go together")
        if self.simulated is None:
            wrong = next((pool.accelerator for pool in self.pools if pool.is_simulated), None)
            if wrong is not None:
                raise ValueError(f"a pool of {wrong} needs `engine: {{engine: simulated}}`")
            return self
        for index, pool in enumerate(self.pools):
            try:
                profile = self.simulated.profile(pool.accelerator)
            except ConfigError as error:
                raise ValueError(f"pools[{index}]: {error}") from None
            if pool.tp != 1:
                raise ValueError(f"pools[{index}].tp: got {pool.tp}; simulated engines have one accelerator each")
            longest = self.engine.max_model_len
            if longest is not None and longest > profile.max_model_len:
                raise ValueError(f"engine.max_model_len: got {longest}; must not exceed {profile.max_model_len}")
        object.__setattr__(self, "pools", [_named_simulated(pool) for pool in self.pools])
        return self


class RoutingConfig(Section):
    """How gateways choose replicas.

    Attributes:
        prefix_affinity_s: a request goes where the beginning of its prompt went last, whose prefix cache may still
            have it, unless it would end by so many seconds later than elsewhere. 0 switches this off.
    """

    prefix_affinity_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0


class ServiceConfig(Section):
    """All that is served by one Ray Serve application.

    Attributes:
        name: of the application, and of the service's state in Ray.
        drain_timeout_s: how long an ending replica or gateway may finish what it has.
    """

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$")] = "nfold"
    http: HttpConfig = HttpConfig()
    metrics: MetricsConfig = MetricsConfig()
    routing: RoutingConfig = RoutingConfig()
    drain_timeout_s: Annotated[float, Field(gt=0)] = 300.0
    models: Annotated[list[ServedModelConfig], Field(min_length=1)]

    @property
    def pools(self) -> dict[str, PoolConfig]:
        """All pools by the name of their Serve deployment."""
        return {pool_name(model.name, pool): pool for model in self.models for pool in model.pools}

    @model_validator(mode="after")
    def _names_are_unique(self) -> "ServiceConfig":
        names = [model.name for model in self.models]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"model names must differ; {', '.join(twice)} stands twice")
        pools = [pool_name(model.name, pool) for model in self.models for pool in model.pools]
        twice = sorted({name for name in pools if pools.count(name) > 1})
        if twice:
            raise ValueError(f"a model has one pool per accelerator; {', '.join(twice)} stands twice")
        return self


def _named_simulated(pool: PoolConfig) -> PoolConfig:
    name = SIMULATED_PREFIX + pool.accelerator.removeprefix(SIMULATED_PREFIX)
    return pool.model_copy(update={"accelerator": name})


def pool_name(model: str, pool: PoolConfig) -> str:
    """The name of the pool's Serve deployment, such as `llama--AMD-Instinct-MI355X-OAM`."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", f"{model}--{pool.accelerator}")
