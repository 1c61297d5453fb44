"""The other ranks of a tensor parallel group, as processes. Importable by spawned processes: no pytest here."""

import multiprocessing
import os
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from nfold.models.engine.core import DecodeSteps
from nfold.models.engine.graph import Capture
from nfold.models.engine.native import NativeEngine
from nfold.models.engine.settings import EngineSettings
from nfold.models.engine.tp_loop import follow
from nfold.models.parallel import TpGroup
from peer_memory import connect_one_shot

CPU = torch.device("cpu")
TIMEOUT_S = 60.0
_spawn = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Ranks:
    """How ranks meet and compute.

    Attributes:
        one_shot: they sum as ranks on GPUs do.
        decodes: see `EngineCore`.
        graphs: what captures these, by rank; the last one is for all further ranks, too.
    """

    one_shot: bool = False
    decodes: DecodeSteps = "plain"
    graphs: Sequence[Callable[[], Capture]] = ()

    def connect(self, rank: int, size: int, method: str) -> TpGroup:
        if self.one_shot:
            return connect_one_shot(rank, size, method, TIMEOUT_S)
        return TpGroup.connect(rank, size, method, CPU, TIMEOUT_S)

    def load(self, settings: EngineSettings, tp: TpGroup) -> NativeEngine:
        changes = {"graphs": self.graphs[min(tp.rank, len(self.graphs) - 1)]} if self.graphs else {}
        return NativeEngine.load(settings, tp, CPU, heartbeat_s=0.01, decodes=self.decodes, **changes)


@contextmanager
def tp_group(
    size: int, meeting: Path, jobs: Sequence[EngineSettings], how: Ranks | None = None
) -> Generator[tuple[TpGroup, list[BaseProcess]]]:
    """Rank 0's group, and processes that follow one engine after the other, one for each of `jobs`."""
    how, method = how or Ranks(), f"file://{meeting}"
    ranks = [
        _spawn.Process(target=follow_all, args=(rank, size, method, jobs, how), daemon=True)
        for rank in range(1, size)
    ]
    for process in ranks:
        process.start()
    tp = how.connect(0, size, method)
    try:
        yield tp, list(ranks)
    finally:
        tp.close()
        for process in ranks:
            process.join(TIMEOUT_S)
            process.kill()


def follow_all(rank: int, size: int, method: str, jobs: Sequence[EngineSettings], how: Ranks) -> None:
    torch.set_num_threads(1)
    tp = how.connect(rank, size, method)
    for settings in jobs:
        engine = how.load(settings, tp)
        follow(engine)
        engine.close()
    tp.close()


def lead_and_die(size: int, method: str, settings: EngineSettings) -> None:
    """A rank 0 that is gone without a word once its engine is loaded."""
    tp = TpGroup.connect(0, size, method, CPU, TIMEOUT_S)
    NativeEngine.load(settings, tp, CPU)
    os._exit(1)


def spawn_dying_leader(size: int, meeting: Path, settings: EngineSettings) -> BaseProcess:
    process = _spawn.Process(target=lead_and_die, args=(size, f"file://{meeting}", settings), daemon=True)
    process.start()
    return process
