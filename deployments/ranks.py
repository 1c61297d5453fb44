"""The ranks of one replica: rank 0 in the replica's own process, the others as actors in the other bundles.

    placement group of a replica (STRICT_PACK)
    | bundle 0          | bundle 1     | ... | bundle tp-1        |
    | Serve's replica,  | RankActor 1  |     | RankActor tp-1     |
    | rank 0            |              |     |                    |

The actors belong to rank 0's process: when it ends, however it ends, Ray ends them.
"""

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from ray.util.placement_group import get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ..models.engine.settings import EngineSettings
from ..models.errors import EngineError, NfoldError
from .config import PoolConfig
from .cores import CORES_LABEL, CoreLease, lease_cores, node_cores, pin_process
from .devices import (
    AssignedDevice,
    ProvenDevice,
    check_distinct,
    inspect_device,
    plan_device,
    ray_options,
    visibility,
)
from .placement import CPU, bundles

if TYPE_CHECKING:  # torch must not be imported before the device is proven
    from ..models.engine.native import NativeEngine

# A replica may start while the process of its predecessor is still ending.
CORES_TIMEOUT_S = 10.0
# Workers start, and torch is imported, within this.
PREPARE_TIMEOUT_S = 300.0
# Ranks may finish loading this far apart, and no step may take longer.
GROUP_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class PreparedRank:
    """A rank that holds its accelerator, or its cores."""

    device: ProvenDevice
    lease: CoreLease | None


def prepare_rank(rank: int, pool: PoolConfig) -> PreparedRank:
    """Prove this process's device, or take its cores. Call it before torch is imported.

    Raises:
        DeviceError: it is not the bundle's device, or no core is free.
    """
    context = ray.get_runtime_context()
    gpu_ids = context.get_accelerator_ids().get("GPU", [])
    planned = plan_device(AssignedDevice(rank, pool.accelerator, gpu_ids, visibility(os.environ)))
    lease = None
    if pool.accelerator == CPU:
        place = Path(context.get_temp_dir()) / context.get_session_name() / "nfold-cores" / context.get_node_id()
        labels: dict[str, Any] = context.get_node_labels()
        cores = node_cores(labels.get(CORES_LABEL))
        lease = lease_cores(cores, pool.cores_per_rank, place, CORES_TIMEOUT_S)
        pin_process(lease.cores)
    return PreparedRank(inspect_device(planned), lease)


def load_rank(
    prepared: PreparedRank, rank: int, pool: PoolConfig, settings: EngineSettings, init_method: str
) -> "NativeEngine":
    """Join the other ranks at `init_method` and load this rank's share: all ranks call it at once.

    Raises:
        CheckpointError, ConfigError: the model cannot be loaded with these settings.
        EngineError: another rank is gone.
    """
    import torch

    from ..models.engine.native import NativeEngine
    from ..models.parallel import TpGroup

    if prepared.lease is not None:
        torch.set_num_threads(len(prepared.lease.cores))
    device = torch.device(prepared.device.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    tp = TpGroup.connect(rank, pool.tp, init_method, device, GROUP_TIMEOUT_S, shares_memory=pool.shares_memory)
    try:
        return NativeEngine.load(settings, tp, device)
    except BaseException:
        tp.close()  # or the other ranks wait for this one
        raise


@ray.remote
class RankActor:
    """One rank above 0."""

    def __init__(self, rank: int, pool: PoolConfig) -> None:
        self._rank = rank
        self._pool = pool
        self._prepared: PreparedRank | None = None

    def prepare(self) -> ProvenDevice:
        """See `prepare_rank`."""
        self._prepared = prepare_rank(self._rank, self._pool)
        return self._prepared.device

    def serve(self, settings: EngineSettings, init_method: str) -> None:
        """Load, then do what rank 0 says until it says stop. Raises as `load_rank`, and EngineError."""
        from ..models.engine.tp_loop import follow

        assert self._prepared is not None, "prepare comes first"
        engine = load_rank(self._prepared, self._rank, self._pool, settings, init_method)
        try:
            follow(engine)
        finally:
            engine.close()
            engine.tp.close()


class OtherRanks:
    """Ranks 1 to tp-1 of this replica, as rank 0 sees them. Made in the replica's process."""

    def __init__(self, pool: PoolConfig) -> None:
        group = get_current_placement_group()
        assert group is not None, "a replica lives in a placement group"
        self._actors: list[Any] = [
            RankActor.options(
                num_cpus=bundle.get("CPU", 0),
                num_gpus=bundle.get("GPU", 0),
                max_concurrency=1,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank),
                **ray_options(pool),
            ).remote(rank, pool)
            for rank, bundle in enumerate(bundles(pool))
            if rank > 0
        ]
        self._serving: list[ray.ObjectRef] = []

    def prepare(self, first: ProvenDevice) -> None:
        """Each proves its device; `first` is rank 0's.

        Raises:
            DeviceError: see `prepare_rank`; also when two ranks have the same device.
            EngineError: a rank's process died or did not start in time.
        """
        check_distinct([first, *_get([actor.prepare.remote() for actor in self._actors])])

    def serve(self, settings: EngineSettings, init_method: str) -> None:
        """Let them load and follow. Returns at once."""
        self._serving = [actor.serve.remote(settings, init_method) for actor in self._actors]

    def failure(self, wait_s: float = 0.0) -> NfoldError | None:
        """Why a rank ended, once one has."""
        ended, _ = ray.wait(self._serving, timeout=wait_s) if self._serving else ([], [])
        try:
            _get(ended)
        except NfoldError as error:
            return error
        return EngineError("a rank stopped by itself") if ended else None

    def stop(self) -> None:
        """End their processes."""
        for actor in self._actors:
            ray.kill(actor)
        self._serving = []


def meeting_point() -> str:
    """Where the ranks of a replica that starts now meet: a free port of this node."""
    address = ray.util.get_node_ip_address()
    with socket.socket() as probe:
        probe.bind((address, 0))
        return f"tcp://{address}:{probe.getsockname()[1]}"


def _get(refs: list[ray.ObjectRef]) -> list[ProvenDevice]:
    """The results. Ray's errors are told as nfold's."""
    try:
        return ray.get(refs, timeout=PREPARE_TIMEOUT_S)
    except RayTaskError as error:
        if isinstance(error.cause, NfoldError):
            raise error.cause from None
        raise EngineError(f"a rank failed: {error.cause!r}") from error
    except GetTimeoutError as error:
        raise EngineError(f"a rank did not start within {PREPARE_TIMEOUT_S:g} s") from error
    except RayActorError as error:
        raise EngineError(f"a rank's process died: {error}") from error
