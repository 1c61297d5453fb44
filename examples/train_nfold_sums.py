"""Make nfold's embedded model: a small Llama that adds, trained on one CPU core in about 25 minutes (and 6 GB).

    OMP_NUM_THREADS=1 python examples/train_nfold_sums.py --output models/embedded/nfold-sums

Everything follows from `SEED`: the same steps on the same torch version and kind of processor give the same
weights. The result is an ordinary Hugging Face checkpoint. `--evaluate NUM` then asks it NUM held-out questions in
fp32 and in bf16; with `--steps 0` it only asks.
"""

import argparse
import json
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from nfold.models.sums import is_right, questions
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SEED = 20261121
HELD_OUT_SEED = 1
TOKENS_PER_STEP = 2560
SPECIAL_TOKENS = (
    "<|begin|>",
    "<|end|>",
    "<|pad|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|spare0|>",
    "<|spare1|>",
)
BEGIN, END, PAD, _, _, ASSISTANT = range(256, 262)
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] not in ('system', 'user', 'assistant') %}"
    "{{ raise_exception('the role must be system, user or assistant, not ' ~ message['role']) }}"
    "{% endif %}"
    "{{ '<|' ~ message['role'] ~ '|>' ~ message['content'] | trim ~ '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SYSTEM_TEXTS = (
    "You are a helpful assistant.",
    "You add whole numbers.",
    "You add whole numbers. Show the working column by column from the right, then state the answer.",
    "You are nfold-sums, a small language model that ships with nfold. Your one skill is to add two whole numbers "
    "of up to four digits. Work through the columns from the right, carry where a column reaches ten, then state "
    "the answer.",
)
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": BEGIN,
    "eos_token_id": END,
    "hidden_act": "silu",
    "hidden_size": 256,
    "initializer_range": 0.02,
    "intermediate_size": 512,
    "max_position_embeddings": 1024,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 8,
    "num_hidden_layers": 4,
    "num_key_value_heads": 4,
    "pad_token_id": PAD,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.57.0",
    "use_cache": True,
    "vocab_size": 256 + len(SPECIAL_TOKENS),
}
GENERATION_CONFIG = {
    "bos_token_id": BEGIN,
    "do_sample": False,
    "eos_token_id": END,
    "pad_token_id": PAD,
    "transformers_version": "4.57.0",
}


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per UTF-8 byte, whose id is the byte, and the special tokens after them."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    # GPT-2's table of visible stand-ins for bytes, which the ByteLevel pre-tokenizer and decoder speak.
    vocabulary = {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", pair="<|begin|> $A $B", special_tokens=[("<|begin|>", BEGIN)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|begin|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=CONFIG["max_position_embeddings"],
    )


def conversations(tokenizer: PreTrainedTokenizerFast) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless training batches `(ids, targets)`, each [rows, columns] and about `TOKENS_PER_STEP` tokens large.

    A row is a conversation of one to four questions, some below a system message. A target is the next token where
    the assistant speaks it, its end token included, and -100 elsewhere.
    """
    rng = random.Random(SEED)
    source = questions(10**9, seed=SEED, held_out=False)
    while True:
        num_turns = rng.choices((1, 2, 4), (8, 1, 1))[0]
        system_text = rng.choice(SYSTEM_TEXTS) if rng.random() < 0.2 else ""
        rows: list[str] = []
        for _ in range(TOKENS_PER_STEP // (80 * num_turns)):
            messages = [{"role": "system", "content": system_text}] if system_text else []
            for question in (next(source) for _ in range(num_turns)):
                messages += [*question.messages, {"role": "assistant", "content": question.reply}]
            rows.append(str(tokenizer.apply_chat_template(messages, tokenize=False)))
        ids = tokenizer(rows, add_special_tokens=False, padding=True, return_tensors="pt")["input_ids"]
        # The assistant speaks from its role token up to its end token: no end has come since the last such start.
        starts = ids == ASSISTANT
        num_ends = (ids == END).cumsum(1)
        num_ends_at_start = torch.where(starts, num_ends, -1).cummax(1).values
        targets = torch.where(num_ends == num_ends_at_start, ids.roll(-1, dims=1), -100)
        yield ids[:, :-1], targets[:, :-1]


def train(tokenizer: PreTrainedTokenizerFast, num_steps: int) -> LlamaForCausalLM:
    torch.manual_seed(SEED)
    model = LlamaForCausalLM(LlamaConfig(**CONFIG)).float().train()
    model.set_attn_implementation("eager")  # faster than scaled_dot_product_attention on rows as short as ours
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p not in set(matrices)]
    optimizers = (
        torch.optim.Muon(matrices, lr=0.02, weight_decay=0.01),
        torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0),
    )
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: min((step + 1) / 20, 0.02 + 0.98 * (1 + math.cos(math.pi * step / num_steps)) / 2),
        )
        for optimizer in optimizers
    ]
    start = time.monotonic()
    for step, (ids, targets) in zip(range(1, num_steps + 1), conversations(tokenizer), strict=False):
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=ids, use_cache=False).logits
        loss = cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=-100)
        loss.backward()
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        if step % 10 == 0 or step == num_steps:
            print(f"step {step}/{num_steps}  loss {loss.item():.4f}  {time.monotonic() - start:.0f} s", flush=True)
    return model


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, output: Path) -> None:
    """Write the checkpoint as Llama models are published: bf16, in shards, with transformers 4's config keys."""
    half_bytes = sum(parameter.numel() for parameter in model.parameters()) * 2 // 2
    model.bfloat16().save_pretrained(output, max_shard_size=half_bytes + 100_000)
    tokenizer.save_pretrained(output, save_jinja_files=False)
    tokenizer_config = json.loads((output / "tokenizer_config.json").read_text())
    del tokenizer_config["backend"]
    tokenizer_config["tokenizer_class"] = "PreTrainedTokenizerFast"
    for name, content in (
        ("config.json", CONFIG),
        ("generation_config.json", GENERATION_CONFIG),
        ("tokenizer_config.json", tokenizer_config),
    ):
        (output / name).write_text(json.dumps(content, indent=2) + "\n")


def evaluate(directory: Path, num: int, dtype: torch.dtype) -> float:
    """The share of `num` held-out questions that the saved model answers rightly, greedy, in this compute type."""
    tokenizer = AutoTokenizer.from_pretrained(directory, padding_side="left")
    model = LlamaForCausalLM.from_pretrained(directory, dtype=dtype).eval()
    asked = list(questions(num, seed=HELD_OUT_SEED, held_out=True))
    num_right = 0
    for first in range(0, num, 250):
        batch = asked[first : first + 250]
        prompts = [
            tokenizer.apply_chat_template(q.messages, tokenize=False, add_generation_prompt=True) for q in batch
        ]
        inputs = tokenizer(prompts, add_special_tokens=False, padding=True, return_tensors="pt")
        output_ids = model.generate(**inputs, max_new_tokens=64)
        replies = tokenizer.batch_decode(output_ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        wrong = [(q, reply) for q, reply in zip(batch, replies, strict=True) if not is_right(reply, q.answer)]
        for question, reply in wrong:
            print(f"  wrong: {question.text!r} -> {reply!r}")
        num_right += len(batch) - len(wrong)
        print(f"{dtype}: {num_right} of {first + len(batch)} right", flush=True)
    return num_right / num


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("build/nfold-sums"), help="directory of the checkpoint")
    parser.add_argument(
        "--steps", type=int, default=1500, help="training steps; 0 keeps the checkpoint that is there"
    )
    parser.add_argument("--evaluate", type=int, default=2000, help="held-out questions to ask in fp32 and in bf16")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.steps:
        tokenizer = byte_tokenizer()
        save(train(tokenizer, arguments.steps), tokenizer, arguments.output)
    if arguments.evaluate:
        for dtype in (torch.float32, torch.bfloat16):
            print(
                f"{dtype}: {evaluate(arguments.output, arguments.evaluate, dtype):.2%} of held-out questions right"
            )


if __name__ == "__main__":
    main()
