"""The benchmark model and its requests, made from fixed seeds."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SMALL = {
    "hidden_size": 1024,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "intermediate_size": 2816,
    "vocab_size": 32000,
    "tie_word_embeddings": True,
    "max_position_embeddings": 2048,
}


@dataclass(frozen=True)
class Workload:
    """Requests with fixed answer lengths: end-of-sequence is ignored."""

    prompts: list[list[int]]
    max_tokens: list[int]

    @property
    def num_prompt_tokens(self) -> int:
        return sum(len(prompt) for prompt in self.prompts)

    @property
    def num_output_tokens(self) -> int:
        return sum(self.max_tokens)


def make_workload(num_requests: int, vocab_size: int, *, seed: int = 0, max_prompt: int = 512) -> Workload:
    """Prompts log-normal around 128 tokens, 32 to 192 output tokens."""
    random = np.random.default_rng(seed)
    lengths = np.clip(np.exp(random.normal(np.log(96), 0.6, num_requests)), 8, max_prompt).astype(int)
    return Workload(
        prompts=[random.integers(10, vocab_size, length).tolist() for length in lengths],
        max_tokens=random.integers(32, 193, num_requests).tolist(),
    )


def make_checkpoint(directory: Path, geometry: dict[str, int | bool], dtype: str) -> Path:
    """A Llama with random weights (seed 0) in the Hugging Face format; its tokenizer has a word for each id."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()
    words = Tokenizer(models.WordLevel({f"w{id}": id for id in range(geometry["vocab_size"])}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w2").save_pretrained(directory)

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**geometry, initializer_range=0.05))
    model.to(getattr(torch, dtype)).save_pretrained(directory)
    return directory


def vocab_size_of(checkpoint: Path) -> int:
    return json.loads((checkpoint / "config.json").read_text())["vocab_size"]


def count_weights(checkpoint: Path) -> tuple[int, int]:
    """Weights that every token is multiplied with, in the layers and in the head, of a Llama."""
    config = json.loads((checkpoint / "config.json").read_text())
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    kv_width = config["num_key_value_heads"] * (config.get("head_dim") or hidden // heads)
    width = heads * (config.get("head_dim") or hidden // heads)
    layer = hidden * (2 * width + 2 * kv_width + 3 * config["intermediate_size"])
    return layer * config["num_hidden_layers"], hidden * config["vocab_size"]
