"""The other ranks of a tensor parallel group, as processes. Importable by spawned processes: no pytest here."""

import multiprocessing
import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from nfold.models.engine.native import NativeEngine
from nfold.models.engine.settings import EngineSettings
from nfold.models.engine.tp_loop import follow
from nfold.models.parallel import TpGroup

CPU = torch.device("cpu")
TIMEOUT_S = 60.0
_spawn = multiprocessing.get_context("spawn")


@contextmanager
def tp_group(
    size: int, meeting: Path, jobs: Sequence[EngineSettings]
) -> Generator[tuple[TpGroup, list[BaseProcess]]]:
    """Rank 0's group, and processes that follow one engine after the other, one for each of `jobs`."""
    method = f"file://{meeting}"
    ranks = [
        _spawn.Process(target=follow_all, args=(rank, size, method, jobs), daemon=True) for rank in range(1, size)
    ]
    for process in ranks:
        process.start()
    tp = TpGroup.connect(0, size, method, CPU, TIMEOUT_S)
    try:
        yield tp, list(ranks)
    finally:
        tp.close()
        for process in ranks:
            process.join(TIMEOUT_S)
            process.kill()


def follow_all(rank: int, size: int, method: str, jobs: Sequence[EngineSettings]) -> None:
    torch.set_num_threads(1)
    tp = TpGroup.connect(rank, size, method, CPU, TIMEOUT_S)
    for settings in jobs:
        follow(NativeEngine.load(settings, tp, CPU))
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
