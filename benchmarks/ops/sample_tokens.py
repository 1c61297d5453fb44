"""Cases of `sample_tokens` at a model's shapes (see `case.py`)."""

from collections.abc import Iterator

import torch
from nfold.kernels.reference import sample_tokens as reference

from .case import Case, Setting


def cases(setting: Setting) -> Iterator[Case]:
    ops, R = setting.ops, setting.sizes.num_decodes
    logits = 3 * setting.random(R, setting.sizes.vocabulary, dtype=torch.float32)
    yield Case(
        "argmax",
        run=lambda: ops.argmax(logits),
        wanted=lambda: (logits.argmax(-1),),
        got=lambda: (ops.argmax(logits),),
        bytes=logits.nbytes,
    )
    rows = torch.arange(R, device=setting.device)
    for what, k, p in (("temperature 1", 0, 1.0), ("top-k 50", 50, 1.0), ("top-p 0.9", 0, 0.9)):
        settings = (
            torch.ones(R, device=setting.device),
            torch.full((R,), k, dtype=torch.int32, device=setting.device),
            torch.full((R,), p, device=setting.device),
            rows * 12345,
            rows + 7,
        )
        yield Case(
            f"sample_tokens, {what}",
            run=lambda settings=settings: ops.sample_tokens(logits, *settings),
            wanted=lambda settings=settings: (reference.sample_tokens(logits, *settings),),
            got=lambda settings=settings: (ops.sample_tokens(logits, *settings),),
            bytes=logits.nbytes,
        )
