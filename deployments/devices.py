"""Before it loads, each rank proves which accelerator it sees, and refuses if that is not its bundle's.

Ray assigns ids; variables hide devices from the process; torch counts what is left. Two honest ways lead from
the id to a torch device, and everything else is refused:

    Ray set the variable          HIP_VISIBLE_DEVICES=5      the process sees one device      cuda:0
    Ray was told not to (NOSET)   nothing, or the node's     the process sees all of them     cuda:<place of id 5>

Ranks of a replica on NVIDIA's GPUs go the second way, as they read each other's memory (see symmetric_memory.py).
HIP reads its variables once, when torch is imported, so `plan_device` runs before that and `prove_device` after.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..models.errors import DeviceError
from .config import PoolConfig
from .placement import CPU

VISIBILITY_VARIABLES = ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
ROCR_VARIABLE = "ROCR_VISIBLE_DEVICES"
_HIDE_NOTHING = {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}


@dataclass(frozen=True, slots=True)
class AssignedDevice:
    """What Ray and the environment say about a rank's accelerator.

    Attributes:
        rank: for messages.
        accelerator: the pool's: `CPU`, `GPU`, or the type that Ray names.
        gpu_ids: what Ray assigned to this process.
        environment: those of the visibility variables that are set.
    """

    rank: int
    accelerator: str
    gpu_ids: Sequence[str]
    environment: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class PlannedDevice:
    """Where the assigned accelerator must be found.

    Attributes:
        device: torch's name of it.
        num_visible: how many devices torch must count; None when nothing is hidden.
        evidence: what the choice rests on, for messages.
    """

    device: str
    num_visible: int | None
    evidence: str


@dataclass(frozen=True, slots=True)
class ProvenDevice:
    """The accelerator that a rank has.

    Attributes:
        device: torch's name of it.
        name: the product, such as `AMD Instinct MI355X`, or `CPU`.
        architecture: such as `gfx950` or `sm_90`; empty for a CPU.
        unique_id: differs between devices, partitions of one included; empty for a CPU.
    """

    device: str
    name: str
    architecture: str = ""
    unique_id: str = ""


def ray_options(pool: PoolConfig) -> dict[str, Any]:
    """What Ray must be told of the actor of a rank of this pool, besides its bundle. HIP's variable stays Ray's."""
    reads_others = pool.shares_memory and pool.tp > 1 and pool.accelerator != CPU
    return {"runtime_env": {"env_vars": dict(_HIDE_NOTHING)}} if reads_others else {}


def visibility(environment: Mapping[str, str]) -> dict[str, str]:
    """The visibility variables among these."""
    return {name: environment[name] for name in (*VISIBILITY_VARIABLES, ROCR_VARIABLE) if name in environment}


def plan_device(assigned: AssignedDevice) -> PlannedDevice:
    """Where this rank's accelerator is, before torch is imported.

    Raises:
        DeviceError: Ray's ids and the variables contradict each other.
    """
    ids, environment = list(assigned.gpu_ids), assigned.environment
    seen = _describe(assigned)
    if assigned.accelerator == CPU:
        return PlannedDevice("cpu", None, seen)
    if len(ids) != 1:
        raise DeviceError(f"{seen}: its bundle has one GPU, so Ray must assign exactly one")
    if ROCR_VARIABLE in environment and "HIP_VISIBLE_DEVICES" not in environment:
        raise DeviceError(
            f"{seen}: {ROCR_VARIABLE} hides devices below Ray, which counts by HIP_VISIBLE_DEVICES; "
            f"unset it before `ray start`, or set HIP_VISIBLE_DEVICES instead"
        )
    lists = {tuple(_ids(environment[name])) for name in VISIBILITY_VARIABLES if name in environment}
    if not lists:
        if not ids[0].isdigit():
            raise DeviceError(f"{seen}: an id that is not a number can be found only through a visibility variable")
        return PlannedDevice(f"cuda:{ids[0]}", None, seen)
    if len(lists) > 1:
        raise DeviceError(
            f"{seen}: these contradict each other; unset both before `ray start`, and on AMD nodes install the "
            f"package amdsmi in Ray's environment, or Ray sets the wrong one"
        )
    visible = lists.pop()
    if ids[0] not in visible:
        raise DeviceError(f"{seen}: the variable hides the GPU that Ray assigned")
    return PlannedDevice(f"cuda:{visible.index(ids[0])}", len(visible), seen)


def prove_device(planned: PlannedDevice, device_count: int) -> str:
    """The planned device, if what torch counts agrees with the plan.

    Args:
        device_count: torch.cuda.device_count() of this process.

    Raises:
        DeviceError: torch sees fewer or other devices than the plan rests on.
    """
    if planned.device == "cpu":
        return planned.device
    index = int(planned.device.removeprefix("cuda:"))
    if planned.num_visible is not None and device_count != planned.num_visible:
        raise DeviceError(
            f"{planned.evidence}: these name {planned.num_visible} visible devices, but torch sees {device_count}"
        )
    if index >= device_count:
        raise DeviceError(f"{planned.evidence}: torch sees {device_count} devices, so there is no {planned.device}")
    return planned.device


def inspect_device(planned: PlannedDevice) -> ProvenDevice:
    """Import torch, and prove the plan with what it sees.

    Raises:
        DeviceError: see `prove_device`.
    """
    if planned.device == "cpu":
        return ProvenDevice("cpu", "CPU")
    import torch  # after plan_device, because HIP reads its variables at import

    device = prove_device(planned, torch.cuda.device_count())
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        architecture = str(properties.gcnArchName).partition(":")[0]
    else:
        architecture = f"sm_{properties.major}{properties.minor}"
    place = f"{properties.pci_domain_id:04x}:{properties.pci_bus_id:02x}:{properties.pci_device_id:02x}"
    return ProvenDevice(device, properties.name, architecture, f"{properties.uuid} at {place}")


def check_distinct(proven: Sequence[ProvenDevice]) -> None:
    """Ranks of a replica have one accelerator each.

    Raises:
        DeviceError: two ranks found the same one.
    """
    owner: dict[str, int] = {}
    for rank, device in enumerate(proven):
        if device.unique_id and device.unique_id in owner:
            raise DeviceError(
                f"ranks {owner[device.unique_id]} and {rank} both see {device.name} {device.unique_id}; "
                f"each must have its own"
            )
        owner[device.unique_id] = rank


def _ids(variable: str) -> list[str]:
    return [part.strip() for part in variable.split(",") if part.strip()]


def _describe(assigned: AssignedDevice) -> str:
    ids = f"GPU {', '.join(assigned.gpu_ids)}" if assigned.gpu_ids else "no GPU"
    shown = " ".join(f"{name}={value}" for name, value in assigned.environment.items()) or "no visibility variable"
    return f"rank {assigned.rank} on {assigned.accelerator}: Ray assigned {ids}, the process has {shown}"
