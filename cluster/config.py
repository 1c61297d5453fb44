"""nfold's one YAML: what is served (`deployments/config.py`) and on which cluster."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from ..deployments.config import (
    EMBEDDED_MODEL,
    SIMULATED_MODEL,
    PositiveInt,
    Section,
    ServedModelConfig,
    ServiceConfig,
)
from ..models.engine.simulated.profile import profile_names
from .config_errors import config_error
from .controller.settings import ControllerSettings
from .yaml_file import read_yaml


class SimulatedNodesConfig(Section):
    """Nodes of one kind whose accelerators are simulated: Ray places engines on them as on any other.

    Attributes:
        accelerator: that of a profile, such as `MI355X`.
        nodes: simulated nodes.
        accelerators: healthy accelerators of each.
        hosts_per_ray_node: simulated nodes that one Ray node carries; each stays a process of its own. A Ray node
            takes some 150 MB and a second or two to start.
        max_nodes: how many Ray's autoscaler may bring it to; None where no node comes or goes.
    """

    accelerator: str
    nodes: PositiveInt = 1
    accelerators: PositiveInt = 8
    hosts_per_ray_node: PositiveInt = 1
    max_nodes: PositiveInt | None = None

    @field_validator("accelerator")
    @classmethod
    def _is_simulated(cls, name: str) -> str:
        known = sorted({profile.split("--")[0] for profile in profile_names()})
        if name not in known:
            raise ValueError(f"must be one of {', '.join(known)}, which there are profiles of")
        return name

    @model_validator(mode="after")
    def _grows_by_whole_nodes(self) -> Self:
        if self.max_nodes is None:
            return self
        if self.max_nodes < self.nodes:
            raise ValueError(f"max_nodes: got {self.max_nodes}; there are {self.nodes} nodes to start with")
        if self.hosts_per_ray_node != 1:
            raise ValueError("hosts_per_ray_node must be 1 with max_nodes: nodes come and go as Ray nodes")
        return self


class LocalClusterConfig(Section):
    """Several Ray nodes on this machine.

    Attributes:
        simulated_nodes: nodes with simulated accelerators and no cores; they come after those with cores.
        nodes: how many to start with that have CPU cores of their own; 2, or none beside simulated ones. The first
            Ray node of all is the head, and serves too.
        max_nodes: how many of those with cores Ray's autoscaler may bring it to; None where none comes or goes.
        cores_per_node: `auto` shares this machine's cores evenly, one per node at least.
    """

    simulated_nodes: tuple[SimulatedNodesConfig, ...] = ()
    nodes: Annotated[int, Field(ge=0)] = 2
    max_nodes: PositiveInt | None = None
    cores_per_node: Literal["auto"] | PositiveInt = "auto"

    @model_validator(mode="before")
    @classmethod
    def _simulated_nodes_stand_alone(cls, data: Any) -> Any:
        if isinstance(data, dict) and "simulated_nodes" in data:
            return {"nodes": 0, **data}
        return data  # pyright: ignore[reportUnknownVariableType]

    @field_validator("nodes")
    @classmethod
    def _has_a_node(cls, nodes: int, info: ValidationInfo) -> int:
        if not nodes and not info.data.get("simulated_nodes"):
            raise ValueError("should be greater than or equal to 1 where there are no simulated_nodes")
        return nodes

    @field_validator("max_nodes")
    @classmethod
    def _has_room(cls, max_nodes: int | None, info: ValidationInfo) -> int | None:
        if max_nodes is not None and max_nodes < info.data.get("nodes", 0):
            raise ValueError(f"there are {info.data['nodes']} nodes to start with")
        return max_nodes

    @property
    def is_autoscaled(self) -> bool:
        """Whether Ray's autoscaler runs: nodes of some kind may come and go."""
        return any(
            most is not None for most in (self.max_nodes, *(each.max_nodes for each in self.simulated_nodes))
        )


class ClusterConfig(Section):
    """Where to serve: a local cluster that nfold starts and stops, or a running Ray cluster that it joins.

    Attributes:
        local: the local cluster; the default when `address` is not given.
        address: `auto` (the Ray cluster that this machine belongs to) or the head's `host:port`.
    """

    local: LocalClusterConfig | None = None
    address: Annotated[str, Field(pattern=r"^(auto|[^\s:/]+:\d{1,5})$")] | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if self.local is not None and self.address is not None:
            raise ValueError("give either local (nfold starts the cluster) or address (it is running), not both")
        return self

    @property
    def local_or_default(self) -> LocalClusterConfig | None:
        """The local cluster to start; None when a running one is joined."""
        return None if self.address is not None else self.local or LocalClusterConfig()


class NfoldConfig(ServiceConfig):
    """The whole configuration.

    Attributes:
        controller: scales by itself, when enabled.
    """

    cluster: ClusterConfig = ClusterConfig()
    controller: ControllerSettings = ControllerSettings()

    @classmethod
    def default(cls) -> "NfoldConfig":
        """The model that comes with nfold on a local cluster of two nodes."""
        local = ClusterConfig(local=LocalClusterConfig())
        return cls(models=[ServedModelConfig(name="nfold-sums")], cluster=local)

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        if self.http.port == self.metrics.port:
            raise ValueError(f"http.port and metrics.port must differ; both are {self.http.port}")
        return self

    @model_validator(mode="after")
    def _controller_knows_its_models(self) -> Self:
        served = [model.name for model in self.models]
        for name in self.controller.models:
            if name not in served:
                raise ValueError(f"controller.models.{name}: no such model is served; there is {', '.join(served)}")
        return self


def load_config(path: Path) -> NfoldConfig:
    """Reads and checks a YAML file. Model paths that are relative count from the file's folder.

    Raises:
        ConfigError: no such file, not YAML (names the line), or a wrong field (names it, and what would be right).
    """
    data = read_yaml(path)
    try:
        config = NfoldConfig.model_validate(data)
    except ValidationError as error:
        raise config_error(error, NfoldConfig, data) from None
    models = [_with_full_path(model, path.absolute().parent) for model in config.models]
    return config.model_copy(update={"models": models})


def _with_full_path(model: ServedModelConfig, folder: Path) -> ServedModelConfig:
    """Replicas run in another folder than the command line; `~` is left to each node."""
    if model.path in (EMBEDDED_MODEL, SIMULATED_MODEL) or model.path.startswith("~"):
        return model
    return model.model_copy(update={"path": str((folder / model.path).resolve())})
