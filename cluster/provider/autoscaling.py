"""The YAML of Ray's autoscaler (v2): writing one for an external provider, and reading node types from one.

Ray 2.60 fills in nothing for providers of type `external`: each list that it looks up has to be there.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...deployments.placement import CPU, GPU, type_resource
from ...deployments.simulated_config import SIMULATED_PREFIX
from ...models.errors import ConfigError
from ..controller.actuation import NodeType
from ..yaml_file import read_yaml

# By this label a request for nodes means nodes of one type, however much two types have in common.
NODE_TYPE_LABEL = "nfold-node-type"
# The autoscaler's own clean-up of what nobody asked for; the controller's drains are sooner.
IDLE_TIMEOUT_MINUTES = 5
# Nodes of a type that may be on their way at once, times those that run: all that are wanted.
UPSCALING_SPEED = 1000

_EMPTY_LISTS = (
    "cluster_synced_files",
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)


def autoscaling_config(
    cluster_name: str, provider: Mapping[str, object], types: Sequence[NodeType], head_type: str
) -> dict[str, Any]:
    """What the autoscaler's YAML says, for a provider that starts Ray on its nodes itself."""
    return {
        "cluster_name": cluster_name,
        "provider": {
            "type": "external",
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            **provider,
        },
        "max_workers": sum(each.max_nodes for each in types) - 1,
        "upscaling_speed": UPSCALING_SPEED,
        "idle_timeout_minutes": IDLE_TIMEOUT_MINUTES,
        "head_node_type": head_type,
        "available_node_types": {each.name: _type_entry(each, each.name == head_type) for each in types},
        "auth": {},
        "docker": {},
        "file_mounts": {},
        **{name: [] for name in _EMPTY_LISTS},
    }


def _type_entry(node_type: NodeType, has_head: bool) -> dict[str, Any]:
    return {
        "resources": dict(node_type.resources),
        "labels": {**node_type.labels, NODE_TYPE_LABEL: node_type.name},
        "node_config": {},
        "min_workers": max(0, node_type.min_nodes - has_head),
        "max_workers": node_type.max_nodes - has_head,  # Ray counts the head apart
    }


def read_node_types(path: Path) -> tuple[NodeType, ...]:
    """The node types of an autoscaler's YAML, the head counted among those of its type.

    Raises:
        ConfigError: the file cannot be read, or a node type in it has no resources.
    """
    config = read_yaml(path)
    head_type = config.get("head_node_type")
    entries = config.get("available_node_types") or {}
    most = int(config.get("max_workers", 2))
    return tuple(_read_type(name, entry, name == head_type, most) for name, entry in entries.items())


def _read_type(name: str, entry: Mapping[str, Any], has_head: bool, most: int) -> NodeType:
    resources = entry.get("resources")
    if not resources:
        raise ConfigError(
            f"available_node_types.{name}.resources", resources, "should say what one such node has, as `GPU: 8`"
        )
    accelerator = accelerator_of(resources)
    return NodeType(
        name=name,
        resources=resources,
        labels=entry.get("labels") or {},
        accelerator=accelerator,
        num_accelerators=num_accelerators(accelerator, resources),
        min_nodes=int(entry.get("min_workers", 0)) + has_head,
        max_nodes=int(entry.get("max_workers", 0 if has_head else most)) + has_head,
    )


def num_accelerators(accelerator: str, resources: Mapping[str, float]) -> int:
    """Of this kind, on a node with these resources."""
    counted = accelerator if accelerator == CPU or accelerator.startswith(SIMULATED_PREFIX) else GPU
    return round(resources.get(counted, 0))


def accelerator_of(resources: Mapping[str, float]) -> str:
    """As pools name it: of a type, simulated, any `GPU`, or `CPU`."""
    for name in resources:
        if name.startswith(type_resource("")):
            return name.removeprefix(type_resource(""))
        if name.startswith(SIMULATED_PREFIX) and not name.startswith(SIMULATED_PREFIX + "node-"):
            return name
    return GPU if resources.get(GPU) else CPU
