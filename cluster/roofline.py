"""What a load generator reaches alone: the same load on replicas that compute nothing, in another process."""

import multiprocessing
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection

from ..deployments.addresses import ReplicaAddress, ReplicaIdentity
from ..deployments.engine_host import EngineHost
from ..deployments.engine_service import EngineService
from ..deployments.transport import SocketHost
from ..models.engine.simulated.engine import SimulatedEngine
from ..models.engine.simulated.profile import (
    EngineLimits,
    LoadgenRun,
    ScenarioProfile,
    StepTimeCurve,
    StepTimeProfile,
)
from ..models.errors import StateError

# A step of a replica that computes nothing: so short that the load generator is the limit.
STEP_S = 0.001
START_TIMEOUT_S = 60.0
END_TIMEOUT_S = 10.0
_HUGE_KV_TOKENS = 1 << 40
_VOCAB_SIZE = 256


def empty_profile(max_num_seqs: int, max_model_len: int) -> StepTimeProfile:
    """Of a replica with so many slots whose steps take `STEP_S`, whatever they hold."""
    source = "computes nothing"
    scenario = ScenarioProfile(
        limits=EngineLimits(max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_seqs * max_model_len),
        limits_source=source,
        run=LoadgenRun(kind="assumed", source=source, num_samples=1, samples_per_s=None, tokens_per_sample=1.0),
        figures={},
    )
    return StepTimeProfile(
        accelerator="none",
        model="none",
        workload="openorca",
        num_accelerators=1,
        max_model_len=max_model_len,
        vocab_size=_VOCAB_SIZE,
        kv_capacity_tokens=_HUGE_KV_TOKENS,
        kv_capacity_source=source,
        curve=StepTimeCurve(fixed_s=STEP_S, prefill_token_s=0.0, decode_token_s=0.0, kv_token_s=0.0),
        curve_source=source,
        scenarios={"offline": scenario},
    )


@dataclass(frozen=True, slots=True)
class ReplicaSize:
    """What one that computes nothing has of a real replica. The attributes are those of `ReplicaAddress`."""

    model: str
    max_num_seqs: int
    max_model_len: int

    @classmethod
    def of(cls, address: ReplicaAddress) -> "ReplicaSize":
        return cls(address.model, address.max_num_seqs, address.max_model_len)


@contextmanager
def empty_replicas(sizes: Sequence[ReplicaSize]) -> Generator[list[ReplicaAddress]]:
    """Replicas of these sizes that compute nothing, in a process of their own, which ends with the context.

    Raises:
        StateError: they do not start.
    """
    context = multiprocessing.get_context("spawn")  # a fork would have this process's threads' locks
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, list(sizes)), daemon=True)
    process.start()
    there.close()
    try:
        if not here.poll(START_TIMEOUT_S):
            raise StateError(f"replicas that compute nothing did not start within {START_TIMEOUT_S:g} s")
        try:
            addresses: list[ReplicaAddress] = here.recv()
        except EOFError:
            raise StateError("replicas that compute nothing did not start; see above") from None
        yield addresses
    finally:
        here.close()
        process.join(END_TIMEOUT_S)
        if process.is_alive():
            process.kill()
            process.join()


def _serve(parent: Connection, sizes: Sequence[ReplicaSize]) -> None:
    """In the process of their own: until the parent closes its end."""
    sockets = SocketHost()
    services = [
        EngineService(
            SimulatedEngine(empty_profile(size.max_num_seqs, size.max_model_len), "offline"),
            ReplicaIdentity(
                replica_id=f"empty-{index}", model=size.model, pool="empty", accelerator="none", node_id="here"
            ),
            None,
            host=sockets,
        )
        for index, size in enumerate(sizes)
    ]
    host = EngineHost(services, sockets, on_failure=lambda service: None)
    parent.send([service.address for service in services])
    _when_closed(parent, host.stop)
    host.run()


def _when_closed(parent: Connection, stop: Callable[[], None]) -> None:
    def wait() -> None:
        parent.poll(None)
        stop()

    threading.Thread(target=wait, daemon=True).start()
