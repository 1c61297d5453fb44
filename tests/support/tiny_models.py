"""Random Llama checkpoints in the real format, small enough to make in a test; a seed gives the same bytes."""

import json
import math
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

BOS, EOS, TURN, END_TURN = "<s>", "</s>", "<|turn|>", "<|end|>"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role ' + message['role']) }}{% endif %}"
    "<|turn|>{{ message['role'] }}\n{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
_MERGES = [("t", "h"), ("th", "e"), ("i", "n"), ("a", "n"), ("an", "d"), ("Ġ", "the"), ("e", "r"), ("o", "n")]


def make_llama(
    directory: Path,
    family: Literal["llama2", "llama3"] = "llama2",
    *,
    tied: bool = False,
    seed: int = 0,
    shards: int = 2,
    num_layers: int = 2,
    hidden_size: int = 64,
    intermediate_size: int = 176,
    num_heads: int = 8,
    num_kv_heads: int | None = None,
    head_dim: int | None = None,
    vocab_size: int = 301,
    max_position: int = 512,
    dtype: torch.dtype = torch.float32,
    config_form: Literal["published", "transformers5"] = "published",
    bias: bool = False,
    chat_template: bool = True,
) -> Path:
    """Writes config, weights (`shards` files with an index; 1 is model.safetensors alone) and tokenizer.

    llama2 is multi-head with plain rotary embedding; llama3 has 4 key-value heads and llama3 rope scaling.
    Weights are large enough that every layer and position changes the likeliest token.
    """
    directory.mkdir(parents=True, exist_ok=True)
    num_kv_heads = num_kv_heads or (num_heads if family == "llama2" else 4)
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_kv_heads,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": max_position,
        "tie_word_embeddings": tied,
        "attention_bias": bias,
        "mlp_bias": bias,
        "bos_token_id": 256,
        "eos_token_id": 257,
        **_rope_fields(family, config_form),
        ("torch_dtype" if config_form == "published" else "dtype"): str(dtype).removeprefix("torch."),
    }
    if head_dim is not None:
        config["head_dim"] = head_dim
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    (directory / "generation_config.json").write_text(json.dumps({"bos_token_id": 256, "eos_token_id": [257, 259]}))
    tensors = _weights(config, head_dim or hidden_size // num_heads, bias, seed, dtype)
    _save(directory, tensors, shards)
    save_tokenizer(directory, chat_template)
    return directory


def _rope_fields(family: str, config_form: str) -> dict[str, Any]:
    theta = 10000.0 if family == "llama2" else 500000.0
    scaling: dict[str, Any] | None = None
    if family == "llama3":
        scaling = {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    if config_form == "published":
        return {"rope_theta": theta, "rope_scaling": scaling}
    return {"rope_parameters": {"rope_theta": theta, **(scaling or {"rope_type": "default"})}}


def _weights(
    config: dict[str, Any], head_dim: int, bias: bool, seed: int, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int, scale: float) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator) * scale).to(dtype)

    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    queries, keys = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    matrices = {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    tensors = {"model.embed_tokens.weight": random(vocab, hidden, scale=2 / math.sqrt(hidden))}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}.{norm}.weight"] = (1 + random(hidden, scale=0.1)).to(dtype)
        for name, (outputs, inputs) in matrices.items():
            tensors[f"{prefix}.{name}.weight"] = random(outputs, inputs, scale=1.5 / math.sqrt(inputs))
            if bias:
                tensors[f"{prefix}.{name}.bias"] = random(outputs, scale=0.3)
    tensors["model.norm.weight"] = (1 + random(hidden, scale=0.1)).to(dtype)
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = random(vocab, hidden, scale=2 / math.sqrt(hidden))
    return tensors


def _save(directory: Path, tensors: dict[str, torch.Tensor], shards: int) -> None:
    if shards == 1:
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        return
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        some = {name: tensors[name] for name in names[shard::shards]}
        save_file(some, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(some, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def save_tokenizer(directory: Path, chat_template: bool = True) -> None:
    """A byte-level tokenizer: ids 0 to 255 are the bytes' symbols, then 4 special tokens, then a few merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate(alphabet)}
    merged = {left + right: 260 + index for index, (left, right) in enumerate(_MERGES)}
    special = {text: 256 + index for index, text in enumerate((BOS, EOS, TURN, END_TURN))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary | special | merged, merges=_MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in special])
    tokenizer.save(str(directory / "tokenizer.json"))
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "clean_up_tokenization_spaces": False,
    }
    if chat_template:
        settings["chat_template"] = CHAT_TEMPLATE
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
