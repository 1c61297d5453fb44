"""Our Llama against transformers', on random checkpoints in the real format."""

from pathlib import Path
from typing import Any

import kv_layout
import pytest
import tiny_models
import torch
from cpu_kernels import kernels
from nfold.kernels.attention_inputs import LastTokens
from nfold.models import registry
from nfold.models.causal_lm import CausalLM
from nfold.models.config import ModelConfig
from nfold.models.kv_cache import KvCache
from nfold.models.llama import LlamaForCausalLM
from nfold.models.parallel import TpGroup
from nfold.models.registry import load_model
from transformers import AutoModelForCausalLM

CHECKPOINTS: dict[str, dict[str, Any]] = {
    "llama2": {"family": "llama2"},
    "llama2 grouped, one file, transformers 5 config": {
        "family": "llama2",
        "num_kv_heads": 4,
        "shards": 1,
        "config_form": "transformers5",
    },
    "llama3": {"family": "llama3", "head_dim": 16},
    "llama3 tied, transformers 5 config": {"family": "llama3", "tied": True, "config_form": "transformers5"},
    "biases": {"family": "llama3", "bias": True, "shards": 3},
}


def load(directory: Path, dtype: torch.dtype | None = None) -> CausalLM:
    return load_model(directory, tp=TpGroup.single(), device=torch.device("cpu"), dtype=dtype)


def run_spans(
    model: CausalLM, kv: KvCache, paged: kv_layout.PagedSequences, prompts: list[list[int]], spans: Any
) -> list[torch.Tensor]:
    """Logits of each span's tokens, from one step."""
    inputs, positions = paged.step(spans)
    token_ids = torch.tensor([token for sequence, start, stop in spans for token in prompts[sequence][start:stop]])
    logits = model.logits(model.forward(token_ids, positions, kv, inputs))
    return list(logits.split([stop - start for _, start, stop in spans]))


def new_cache(model: CausalLM, paged: kv_layout.PagedSequences) -> KvCache:
    return KvCache(
        paged.num_blocks,
        paged.block_size,
        model.num_layers,
        model.num_kv_heads,
        model.head_dim,
        model.dtype,
        model.device,
    )


def random_prompts(lens: list[int], vocabulary: int = 301) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, vocabulary, (length,), generator=generator).tolist() for length in lens]


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_logits_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    tiny_models.make_llama(tmp_path, **CHECKPOINTS[name])
    [prompt] = prompts = random_prompts([200])
    model = load(tmp_path)
    paged = kv_layout.PagedSequences.scatter([200], 16)
    [got] = run_spans(model, new_cache(model, paged), paged, prompts, [(0, 0, 200)])
    with torch.inference_mode():
        wanted = AutoModelForCausalLM.from_pretrained(tmp_path)(torch.tensor([prompt])).logits[0]
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=0)
    assert torch.equal(got.argmax(-1), wanted.argmax(-1))
    assert len(set(got.argmax(-1).tolist())) > 50, "a checkpoint whose answers vary"


def test_chunks_and_decodes_mixed_in_one_step_equal_whole_prompts(tmp_path: Path) -> None:
    model = load(tiny_models.make_llama(tmp_path, "llama3"))
    prompts = random_prompts([50, 70, 23, 9])
    paged = kv_layout.PagedSequences.scatter([50, 70, 23, 9], 16)
    whole = [
        run_spans(model, new_cache(model, paged), paged, prompts, [(sequence, 0, len(prompt))])[0]
        for sequence, prompt in enumerate(prompts)
    ]
    kv = new_cache(model, paged)
    steps = [
        [(0, 0, 48), (3, 0, 8)],
        [(0, 48, 49), (3, 8, 9), (1, 0, 33)],
        [(0, 49, 50), (1, 33, 70), (2, 0, 23)],
    ]
    for spans in steps:
        for (sequence, start, stop), got in zip(spans, run_spans(model, kv, paged, prompts, spans), strict=True):
            torch.testing.assert_close(got, whole[sequence][start:stop], atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_kernels_give_the_same_bits_in_any_batch(dtype: torch.dtype, tmp_path: Path) -> None:
    with kernels("compiled"):
        model = load(tiny_models.make_llama(tmp_path, "llama3", tied=True), dtype)
        prompts = random_prompts([50, 130, 23])
        paged = kv_layout.PagedSequences.scatter([50, 130, 23], 16)
        whole = [
            run_spans(model, new_cache(model, paged), paged, prompts, [(sequence, 0, len(prompt))])[0]
            for sequence, prompt in enumerate(prompts)
        ]
        kv = new_cache(model, paged)
        for spans in ([(0, 0, 48)], [(0, 48, 49), (1, 0, 99)], [(0, 49, 50), (1, 99, 130), (2, 0, 23)]):
            logits = run_spans(model, kv, paged, prompts, spans)
            for (sequence, start, stop), got in zip(spans, logits, strict=True):
                assert torch.equal(got, whole[sequence][start:stop])


def test_the_last_layer_computes_only_what_is_wanted(tmp_path: Path) -> None:
    model = load(tiny_models.make_llama(tmp_path, "llama3"))
    prompts = random_prompts([50, 70, 23])
    paged = kv_layout.PagedSequences.scatter([50, 70, 23], 16)
    inputs, positions = paged.step([(0, 0, 50), (1, 0, 40), (2, 0, 23)])
    token_ids = torch.tensor(prompts[0] + prompts[1][:40] + prompts[2])
    kv = new_cache(model, paged)
    every_row = model.forward(token_ids, positions, new_cache(model, paged), inputs)
    alone, _ = paged.step([(0, 49, 50), (2, 22, 23)])
    rows = torch.tensor([49, 112])
    got = model.forward(token_ids, positions, kv, inputs, LastTokens(rows, alone))
    torch.testing.assert_close(got, every_row[rows], atol=1e-5, rtol=1e-5)
    [rest] = run_spans(model, kv, paged, prompts, [(1, 40, 70)])
    whole = run_spans(model, new_cache(model, paged), paged, prompts, [(1, 0, 70)])[0]
    torch.testing.assert_close(rest, whole[40:], atol=1e-4, rtol=0)


@pytest.mark.parametrize("tied", [True, False])
def test_the_head_is_packed_while_it_is_loaded(tied: bool, tmp_path: Path) -> None:
    config = ModelConfig.from_directory(tiny_models.make_llama(tmp_path, "llama3", tied=tied))
    with kernels("compiled"):
        model = LlamaForCausalLM(config, TpGroup.single(), dtype=torch.float32, device=torch.device("cpu"))
        assert model._head.weight_OI.numel() == 0
        assert (model._embedding.weight_VD.numel() == 0) == tied


def test_a_tied_weight_is_kept_once(tmp_path: Path) -> None:
    with kernels("compiled"):
        model = load(tiny_models.make_llama(tmp_path, "llama3", tied=True))
        assert isinstance(model, LlamaForCausalLM)
        assert model._embedding.weight_VD.numel() == model._head.weight_OI.numel() == 0


def test_bfloat16_stays_near_float32(tmp_path: Path) -> None:
    tiny_models.make_llama(tmp_path, "llama3", tied=True)
    prompts = random_prompts([60])
    paged = kv_layout.PagedSequences.scatter([60], 16)
    exact, rounded = (
        run_spans(model, new_cache(model, paged), paged, prompts, [(0, 0, 60)])[0]
        for model in (load(tmp_path), load(tmp_path, torch.bfloat16))
    )
    assert (exact - rounded).abs().mean() < 0.05 * exact.std()


@pytest.mark.parametrize(("is_fast", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_dtype_none_takes_the_checkpoints_unless_it_is_emulated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_fast: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(registry, "computes_bfloat16", lambda device: is_fast)
    model = load(tiny_models.make_llama(tmp_path, dtype=torch.bfloat16))
    assert model.dtype == dtype
    assert model.config.eos_token_ids == (257, 259)
