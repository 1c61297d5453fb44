"""A rank keeps its weights once."""

from pathlib import Path

import pytest
import resident
import spawned
import tiny_models
import torch
from cpu_kernels import kernels
from quantized_models import change_config
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

KV_CACHE_BYTES = 8 << 20


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_resident_memory_is_weights_and_kv_cache(stored: torch.dtype, tmp_path: Path) -> None:
    is_fp8 = stored == torch.float8_e4m3fn
    dtype = torch.bfloat16 if is_fp8 else stored
    config = LlamaConfig(
        hidden_size=768,
        num_hidden_layers=4,
        num_attention_heads=12,
        num_key_value_heads=4,
        intermediate_size=2048,
        vocab_size=16000,
        tie_word_embeddings=True,
        max_position_embeddings=256,
        architectures=["LlamaForCausalLM"],
        dtype=dtype,
    )
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    weights = {
        name: torch.full(shape, 0.01, dtype=dtype) for name, shape in shapes.items() if name != "lm_head.weight"
    }
    checkpoint = tmp_path / "model"
    checkpoint.mkdir()
    if is_fp8:
        for name in [name for name in weights if name.endswith("_proj.weight")]:
            weights[name] = weights[name].to(stored)
            weights[f"{name}_scale"] = torch.ones(len(weights[name]))
    save_file(weights, checkpoint / "model.safetensors")
    config.save_pretrained(checkpoint)
    if is_fp8:
        change_config(checkpoint, quantization_config={"quant_method": "fp8", "activation_scheme": "dynamic"})
    warm_up = tiny_models.make_llama(tmp_path / "warm-up", "llama3", tied=True, dtype=dtype)
    weight_bytes = sum(tensor.nbytes for tensor in weights.values())
    with kernels("compiled"):
        [growth] = spawned.on_ranks(resident.growth, 1, warm_up, checkpoint, KV_CACHE_BYTES)
    assert 0.9 * weight_bytes < growth < 1.1 * (weight_bytes + KV_CACHE_BYTES)
