"""All layers of a Llama in one call of the compiled library against the same ops called one by one."""

import json
from pathlib import Path

import kv_layout
import pytest
import tiny_models
import torch
from cpu_kernels import kernels
from nfold.kernels.attention_inputs import LastTokens
from nfold.models.kv_cache import KvCache
from nfold.models.llama import LlamaForCausalLM
from nfold.models.parallel import TpGroup
from nfold.models.registry import load_model

CPU = torch.device("cpu")


def load(directory: Path, dtype: torch.dtype, quantization: str = "auto") -> LlamaForCausalLM:
    model = load_model(directory, tp=TpGroup.single(), device=CPU, dtype=dtype, quantization=quantization)
    assert isinstance(model, LlamaForCausalLM)
    return model


def with_attention_bias(directory: Path) -> Path:
    """The checkpoint keeps its biases of the MLP, which the configuration no longer wants."""
    config = directory / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"mlp_bias": False}))
    return directory


def run(model: LlamaForCausalLM, steps: list[list[tuple[int, int, int]]], *, only_last: bool) -> list[torch.Tensor]:
    """Hidden states of each step, then the cache."""
    paged = kv_layout.PagedSequences.scatter([150, 70, 23], 16)
    tokens = torch.randint(0, 301, (3, 150), generator=torch.Generator().manual_seed(1))
    kv = KvCache(paged.num_blocks, 16, model.num_layers, model.num_kv_heads, model.head_dim, model.dtype, CPU)
    hidden: list[torch.Tensor] = []
    for spans in steps:
        inputs, positions = paged.step(spans)
        token_ids = torch.cat([tokens[sequence, start:stop] for sequence, start, stop in spans])
        last = None
        if only_last:  # of all sequences but the first
            rows = inputs.query_start[2:].long() - 1
            last = LastTokens(rows, paged.step([(sequence, stop - 1, stop) for sequence, _, stop in spans[1:]])[0])
        hidden.append(model.forward(token_ids, positions, kv, inputs, last))
    return [*hidden, *kv.k, *kv.v]


@pytest.mark.parametrize("only_last", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_call_gives_the_bits_of_single_ops(
    dtype: torch.dtype, bias: bool, only_last: bool, tmp_path: Path
) -> None:
    tiny_models.make_llama(tmp_path, "llama3", bias=bias, num_layers=3)
    with kernels("compiled"):
        model = load(with_attention_bias(tmp_path), dtype)
        assert model._in_one_call is not None
        steps = [[(0, 0, 100), (1, 0, 40)], [(0, 100, 101), (1, 40, 70), (2, 0, 22)], [(0, 101, 102), (2, 22, 23)]]
        got = run(model, steps, only_last=only_last)
        model._in_one_call = None
        wanted = run(model, steps, only_last=only_last)
    assert all(torch.equal(*pair) for pair in zip(got, wanted, strict=True))
    assert got[0].shape == (1 if only_last else 140, 64)


def test_the_memory_of_a_long_step_serves_short_ones(tmp_path: Path) -> None:
    with kernels("compiled"):
        model = load(tiny_models.make_llama(tmp_path), torch.float32)
        assert model._in_one_call is not None
        run(model, [[(0, 0, 1)]], only_last=False)
        short = model._in_one_call._memory
        run(model, [[(0, 0, 100)]], only_last=False)
        long = model._in_one_call._memory
        run(model, [[(0, 0, 1)]], only_last=False)
        assert len(long) == 100 * len(short)
        assert model._in_one_call._memory is long


@pytest.mark.parametrize(("bias", "quantization"), [(True, "auto"), (False, "fp8")])
def test_layers_of_another_form_are_called_one_by_one(bias: bool, quantization: str, tmp_path: Path) -> None:
    with kernels("compiled"):
        model = load(tiny_models.make_llama(tmp_path, bias=bias), torch.float32, quantization)
        assert model._in_one_call is None


def test_without_compiled_ops_there_is_no_such_call(tmp_path: Path) -> None:
    with kernels("torch"):
        assert load(tiny_models.make_llama(tmp_path), torch.float32)._in_one_call is None
