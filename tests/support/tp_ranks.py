"""What the processes of the tensor parallel tests run (see `spawned.on_ranks`)."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import kv_layout
import torch
from nfold.models.errors import EngineError
from nfold.models.kv_cache import KvCache
from nfold.models.parallel import TpGroup
from nfold.models.quantization.choice import QuantizationName
from nfold.models.registry import load_model
from peer_memory import connect_one_shot

CPU = torch.device("cpu")
SUMMED = (torch.float32, torch.bfloat16, torch.float64)


def connect(rank: int, size: int, meeting: str, timeout_s: float = 60.0, *, shares_memory: bool = True) -> TpGroup:
    """`meeting` is a file that is not there yet."""
    return TpGroup.connect(rank, size, f"file://{meeting}", CPU, timeout_s, shares_memory=shares_memory)


def logits_of(directory: Path, tp: TpGroup, quantization: QuantizationName = "auto") -> torch.Tensor:
    """Of a prompt, then of the token after it: a prefill and a decode."""
    model = load_model(directory, tp=tp, device=CPU, dtype=None, quantization=quantization)
    paged = kv_layout.PagedSequences.scatter([40], 16)
    kv = KvCache(paged.num_blocks, 16, model.num_layers, model.num_kv_heads, model.head_dim, model.dtype, CPU)
    token_ids = torch.randint(0, 301, (40,), generator=torch.Generator().manual_seed(2))
    rows: list[torch.Tensor] = []
    for start, stop in ((0, 39), (39, 40)):
        inputs, positions = paged.step([(0, start, stop)])
        rows.append(model.logits(model.forward(token_ids[start:stop], positions, kv, inputs)))
    return torch.cat(rows)


Transport = Literal["shared memory", "gloo", "one-shot"]


def rank_logits(rank: int, size: int, meeting: str, directory: Path, transport: Transport) -> torch.Tensor:
    if transport == "one-shot":
        tp = connect_one_shot(rank, size, f"file://{meeting}", 60.0)
    else:
        tp = connect(rank, size, meeting, shares_memory=transport == "shared memory")
    logits = logits_of(directory, tp)
    tp.barrier()
    tp.close()
    return logits


def collectives(rank: int, size: int, meeting: str) -> list[dict[str, Any]]:
    """Of a group that shares memory, where it can, and of one over gloo."""
    messages = [b"", b"short", bytes(range(256)) * 100, b"x" * 4088, b"x" * 4089]
    groups = [connect(rank, size, f"{meeting}-{shares}", shares_memory=shares) for shares in (True, False)]
    results = [
        {
            "shares_memory": group._memory is not None,
            "sums": [group.all_reduce(random(rank, dtype)) for dtype in SUMMED],
            "agree": [group.agrees(True), group.agrees(rank == 0), group.agrees(False)],
            "gathered": group.all_gather_last(torch.full((2, 2), rank)),
            "messages": [group.broadcast_bytes(sent if rank == 0 else None) for sent in messages] == messages,
        }
        for group in groups
    ]
    for group in groups:
        group.barrier()
        group.close()
    return results


def random(rank: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(50, 100, generator=torch.Generator().manual_seed(rank)).to(dtype)


def survivor(rank: int, size: int, meeting: str, sign: int, shares_memory: bool) -> str:
    """Rank 1 ends by the signal; the others tell how the next collectives failed."""
    tp = connect(rank, size, meeting, timeout_s=3.0, shares_memory=shares_memory)
    tp.barrier()
    if rank == 1:
        os.kill(os.getpid(), sign)
    deadline = time.monotonic() + 60
    try:
        while time.monotonic() < deadline:
            tp.all_reduce(torch.ones(1000))
    except EngineError as error:
        return str(error)
    return "nothing failed"


@dataclass(frozen=True)
class GpuSum:
    """A sum over ranks on GPUs, on the host."""

    part: torch.Tensor
    eager: torch.Tensor
    from_graph: torch.Tensor
    is_one_shot: bool


def gpu_sums(rank: int, size: int, meeting: str) -> list[GpuSum]:
    """Of lengths that go through symmetric memory, where it is, and through NCCL."""
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    group = TpGroup.connect(rank, size, f"file://{meeting}", device, 60.0)
    sums: list[GpuSum] = []
    for dtype in (torch.bfloat16, torch.float32):
        for length in (64, 32_768, 1_000_000):
            part = torch.randn(length, generator=torch.Generator().manual_seed(rank)).to(dtype)
            x, replayed = part.to(device), part.to(device)
            is_one_shot = group._small_sums is not None and group._small_sums.adds(x)
            group.all_reduce(x)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                group.all_reduce(replayed)
            for _ in range(3):
                replayed.copy_(part)
                graph.replay()
            sums.append(GpuSum(part, x.cpu(), replayed.cpu(), is_one_shot))
            del graph  # NCCL ends after it
    group.barrier()
    group.close()
    return sums
