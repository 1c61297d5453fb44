"""A Llama with random weights, made on the device where it computes: no checkpoint, no host copy."""

from dataclasses import dataclass

import torch
from nfold.models.config import ModelConfig, RopeConfig
from nfold.models.llama import LlamaForCausalLM
from nfold.models.parallel import TpGroup
from nfold.models.quantization.formats import UNQUANTIZED, LayerRule, Quantization, WeightFormat

STORED_FP8 = Quantization("fp8", (LayerRule("lm_head", None), LayerRule("*", WeightFormat("fp8", is_stored=True))))
_SPREAD = 64.0  # of the FP8 numbers, which reach 448


def llama_config(
    layers: int, hidden: int, intermediate: int, heads: int, kv_heads: int, vocabulary: int
) -> ModelConfig:
    return ModelConfig(
        architecture="LlamaForCausalLM",
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=hidden // heads,
        rms_norm_eps=1e-5,
        max_position_embeddings=4096,
        rope=RopeConfig(),
        tie_word_embeddings=False,
        attention_bias=False,
        mlp_bias=False,
        dtype="bfloat16",
        eos_token_ids=(),
    )


LLAMA_2_70B = llama_config(80, 8192, 28672, 64, 8, 32000)
SMALL = llama_config(4, 1024, 2816, 16, 4, 32000)
TINY = llama_config(2, 64, 96, 8, 2, 300)


@dataclass(frozen=True)
class Weights:
    """What a step reads and multiplies: bytes of all layers and the head, numbers per token in layers and head."""

    bytes: int
    layers: int
    head: int


@torch.inference_mode()
def random_llama(config: ModelConfig, weights: str, device: torch.device) -> tuple[LlamaForCausalLM, Weights]:
    """`weights` is `fp8` or `bfloat16`. Of a size that keeps hidden states finite through all layers."""
    quantization = STORED_FP8 if weights == "fp8" else UNQUANTIZED
    model = LlamaForCausalLM(
        config, TpGroup.single(), dtype=torch.bfloat16, device=device, quantization=quantization
    )
    generator = torch.Generator(device).manual_seed(0)
    num_bytes = num_layers = num_head = 0
    spread_of: dict[str, float] = {}
    for slot in model.slots():
        shape = list(slot.shape)
        shape[slot.dim] = slot.stop - slot.start
        layer = slot.name.rpartition(".")[0]
        if slot.name.endswith("_scale"):
            slot.put(torch.full(shape, spread_of[layer], device=device))
            continue
        if len(shape) == 1:
            slot.put(torch.ones(shape, dtype=torch.bfloat16, device=device))
            continue
        numbers = torch.randn(shape, generator=generator, device=device)
        spread = shape[1] ** -0.5
        if slot.dtypes == ("F8_E4M3",):
            spread_of[layer] = spread / _SPREAD
            slot.put(numbers.mul_(_SPREAD).clamp_(-448, 448).to(torch.float8_e4m3fn))
            num_bytes += numbers.numel()
        else:
            slot.put(numbers.mul_(spread).bfloat16())
            num_bytes += 2 * numbers.numel() if "embed_tokens" not in slot.name else 0
        if layer == "lm_head":
            num_head += numbers.numel()
        elif "embed_tokens" not in slot.name:
            num_layers += numbers.numel()
    model.pack()
    return model, Weights(num_bytes, num_layers, num_head)
