"""Which tensors go to Triton, and a whole model on its kernels."""

from pathlib import Path

import numpy as np
import pytest
import torch
from nfold.kernels import ops
from nfold.kernels.triton import ops as triton_ops
from nfold.models.engine.core import DecodeSteps, EngineCore
from nfold.models.engine.generate import generate
from nfold.models.engine.native import NativeEngine
from nfold.models.engine.protocol import SamplingParams
from nfold.models.engine.settings import EngineSettings
from nfold.models.parallel import TpGroup
from nfold.models.registry import load_model
from tiny_models import make_llama

CPU = torch.device("cpu")
LENGTHS = (1, 3, 9)


def tokens(checkpoint: Path, decodes: DecodeSteps) -> list[list[int]]:
    """Greedy and drawn ones, from prompts in chunks beside decodes."""
    model = load_model(checkpoint, tp=TpGroup.single(), device=CPU, dtype=None)
    kv_bytes_per_token = 2 * model.num_layers * model.num_kv_heads * model.head_dim * 4
    settings = EngineSettings(
        model_dir=checkpoint, max_num_batched_tokens=8, block_size=4, kv_cache_bytes=256 * kv_bytes_per_token
    ).resolve(
        model_max_len=64, kv_bytes_per_token=kv_bytes_per_token, free_bytes=None, dtype="float32", device="cpu"
    )
    engine = NativeEngine(EngineCore(model, settings, decodes=decodes), settings, TpGroup.single())
    random = np.random.default_rng(0)
    prompts = [random.integers(0, 256, length).tolist() for length in LENGTHS]
    sampling = [
        SamplingParams(max_tokens=3, ignore_eos=True, temperature=float(n % 2), top_k=20, seed=n)
        for n in range(len(LENGTHS))
    ]
    return [completion.token_ids.tolist() for completion in generate(engine, prompts, sampling)]


def test_a_model_brings_the_same_tokens_on_triton(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = make_llama(tmp_path / "model", "llama3")
    wanted = tokens(checkpoint, "plain")
    called: list[torch.Tensor] = []
    monkeypatch.setattr(ops, "_triton", lambda x: called.append(x) or triton_ops)
    assert tokens(checkpoint, "padded") == wanted
    assert called


def test_tensors_elsewhere_than_on_the_cpu_go_to_triton() -> None:
    assert ops._triton(torch.empty(1)) is None
    assert ops._triton(torch.empty(1, device="meta")) is triton_ops
