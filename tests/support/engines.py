"""Native engines on tiny checkpoints, and what transformers answers on the same ones."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nfold.models.engine.core import DecodeSteps, EngineCore
from nfold.models.engine.graph import Capture, cuda_graphs
from nfold.models.engine.native import NativeEngine
from nfold.models.engine.protocol import SamplingParams
from nfold.models.engine.settings import EngineSettings
from nfold.models.kv_cache import KvCache
from nfold.models.parallel import TpGroup
from nfold.models.registry import load_model
from transformers import AutoModelForCausalLM

NUM_TOKENS = 24
CPU = torch.device("cpu")
BLOCK_SIZE = 8


@dataclass(frozen=True)
class Case:
    """A checkpoint with prompts and their greedy answers from transformers, of NUM_TOKENS tokens each."""

    checkpoint: Path
    prompts: list[list[int]]
    answers: list[list[int]]


def make_settings(checkpoint: Path, *, tp: int = 1, num_kv_blocks: int = 256, **changes: Any) -> EngineSettings:
    """Settings with a KV cache of so many blocks on each of `tp` ranks."""
    config = json.loads((checkpoint / "config.json").read_text())
    kv_heads, head_dim = config["num_key_value_heads"], config["hidden_size"] // config["num_attention_heads"]
    block_bytes = KvCache.bytes_per_block(
        BLOCK_SIZE, config["num_hidden_layers"], kv_heads // tp, head_dim, torch.float32
    )
    return EngineSettings(
        model_dir=checkpoint, block_size=BLOCK_SIZE, kv_cache_bytes=num_kv_blocks * block_bytes, **changes
    )


def load_engine(checkpoint: Path, **changes: Any) -> NativeEngine:
    return NativeEngine.load(make_settings(checkpoint, **changes), TpGroup.single(), CPU)


def load_engine_of(
    checkpoint: Path,
    *,
    decodes: DecodeSteps,
    num_kv_blocks: int = 256,
    max_num_batched_tokens: int = 1024,
    overlap: bool = False,
    graphs: Callable[[], Capture] = cuda_graphs,
    agrees: Callable[[bool], bool] | None = None,
) -> NativeEngine:
    """Up to 11 sequences of 120 tokens; steps that only decode are padded, as on a GPU, if `decodes` says so."""
    wishes = make_settings(
        checkpoint,
        max_num_seqs=11,
        num_kv_blocks=num_kv_blocks,
        max_model_len=120,
        max_num_batched_tokens=max_num_batched_tokens,
        overlap=overlap,
    )
    model = load_model(checkpoint, tp=TpGroup.single(), device=CPU, dtype=None)
    assert wishes.kv_cache_bytes is not None
    settings = wishes.resolve(
        model_max_len=model.config.max_position_embeddings,
        kv_bytes_per_token=wishes.kv_cache_bytes // (num_kv_blocks * BLOCK_SIZE),
        free_bytes=None,
        dtype="float32",
        device="cpu",
    )
    core = EngineCore(model, settings, decodes=decodes, graphs=graphs, agrees=agrees)
    return NativeEngine(core, settings, TpGroup.single())


def greedy(num_tokens: int, **changes: Any) -> SamplingParams:
    return SamplingParams(max_tokens=num_tokens, ignore_eos=True, **changes)


def random_prompts(*lengths: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (length,), generator=generator).tolist() for length in lengths]


def transformers_answers(checkpoint: Path, prompts: Sequence[list[int]], num_tokens: int) -> list[list[int]]:
    """Greedy answers in float32, each prompt alone."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    return [
        model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=num_tokens)[
            0, len(prompt) :
        ].tolist()
        for prompt in prompts
    ]


def transformers_logprobs(checkpoint: Path, token_ids: list[int]) -> torch.Tensor:
    """[len(token_ids), V]: row i is the log-softmax for the token after token i."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    with torch.inference_mode():
        return model(torch.tensor([token_ids])).logits[0].float().log_softmax(-1)
