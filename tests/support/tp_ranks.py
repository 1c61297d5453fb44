"""What the processes of the tensor parallel tests run (see `spawned.on_ranks`)."""

import os
import time
from pathlib import Path
from typing import Any

import kv_layout
import torch
from nfold.models.errors import EngineError
from nfold.models.kv_cache import KvCache
from nfold.models.parallel import TpGroup
from nfold.models.quantization.choice import QuantizationName
from nfold.models.registry import load_model

CPU = torch.device("cpu")


def connect(rank: int, size: int, meeting: str, timeout_s: float = 60.0) -> TpGroup:
    """`meeting` is a file that is not there yet."""
    return TpGroup.connect(rank, size, f"file://{meeting}", CPU, timeout_s)


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


def rank_logits(rank: int, size: int, meeting: str, directory: Path) -> torch.Tensor:
    tp = connect(rank, size, meeting)
    logits = logits_of(directory, tp)
    tp.barrier()
    tp.close()
    return logits


def collectives(rank: int, size: int, meeting: str) -> dict[str, Any]:
    first, second = connect(rank, size, meeting), connect(rank, size, meeting + "-2")
    messages = [b"", b"short", bytes(range(256)) * 100, b"x" * 4088, b"x" * 4089]
    return {
        "sum": first.all_reduce(torch.full((2, 3), float(rank + 1), dtype=torch.bfloat16)),
        "gathered": second.all_gather_last(torch.full((2, 2), rank)),
        "messages": [first.broadcast_bytes(message if rank == 0 else None) for message in messages] == messages,
    }


def survivor(rank: int, size: int, meeting: str, sign: int) -> str:
    """Rank 1 ends by the signal; the others tell how the next collectives failed."""
    tp = connect(rank, size, meeting, timeout_s=3.0)
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
