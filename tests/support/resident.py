"""How much memory an engine takes in a process of its own (see `spawned.on_ranks`)."""

import os
from pathlib import Path

import torch
from nfold.models.engine.generate import generate
from nfold.models.engine.native import NativeEngine
from nfold.models.engine.protocol import SamplingParams
from nfold.models.engine.settings import EngineSettings
from nfold.models.parallel import TpGroup


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def growth(rank: int, size: int, warm_up: Path, checkpoint: Path, kv_cache_bytes: int) -> int:
    """Resident bytes that the engine of `checkpoint` adds to a process which has had one of `warm_up`."""
    torch.set_num_threads(1)
    use(warm_up, kv_cache_bytes)
    before = resident_bytes()
    engine = use(checkpoint, kv_cache_bytes)
    after = resident_bytes()
    assert not engine.has_work()
    return after - before


def use(checkpoint: Path, kv_cache_bytes: int) -> NativeEngine:
    settings = EngineSettings(model_dir=checkpoint, kv_cache_bytes=kv_cache_bytes)
    engine = NativeEngine.load(settings, TpGroup.single(), torch.device("cpu"))
    generate(engine, [[1] * 20], [SamplingParams(max_tokens=4, ignore_eos=True)])
    return engine
