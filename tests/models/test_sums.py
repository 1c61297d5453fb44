import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import TemplateError
from nfold.models.sums import CHECKPOINT, PHRASINGS, Question, is_held_out, is_right, questions
from safetensors import safe_open
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

MAX_BYTES = 8_000_000


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(CHECKPOINT, padding_side="left")


def pairs(num: int, *, seed: int, held_out: bool) -> set[frozenset[int]]:
    return {frozenset((q.left, q.right)) for q in questions(num, seed=seed, held_out=held_out)}


def test_the_split_is_disjoint_and_a_tenth_is_held_out():
    seen, unseen = pairs(5000, seed=1, held_out=False), pairs(5000, seed=2, held_out=True)
    assert len(seen) > 4000
    assert len(unseen) > 4000
    assert not seen & unseen
    share = sum(is_held_out(left, right) for left in range(200) for right in range(200)) / 200**2
    assert 0.08 < share < 0.12


def test_the_split_is_the_same_on_every_machine():
    held_out = [6, 7, 22, 24, 40, 54, 80, 81, 83]
    assert [left for left in range(100) if is_held_out(left, 347)] == held_out
    assert [right for right in range(100) if is_held_out(347, right)] == held_out


def test_questions_follow_from_the_seed_and_cover_the_task():
    asked = list(questions(2000, seed=3, held_out=False))
    assert asked == list(questions(2000, seed=3, held_out=False))
    assert asked[:500] != list(questions(500, seed=4, held_out=False))
    assert {len(str(q.left)) for q in asked} == {len(str(q.right)) for q in asked} == {1, 2, 3, 4}
    assert all(any(q.text == phrasing.format(q.left, q.right) for phrasing in PHRASINGS) for q in asked)
    assert {len(q.reply) for q in asked} <= set(range(23, 60))
    assert all(is_right(q.reply, q.answer) for q in asked)


@pytest.mark.parametrize(
    ("left", "right", "reply"),
    [
        (347, 582, "7+2=9, 4+8=12, 3+5+1=9. The answer is 929."),
        (99, 1, "9+1=10, 9+0+1=10. The answer is 100."),
        (5, 1205, "5+5=10, 0+0+1=1, 0+2=2, 0+1=1. The answer is 1210."),
        (0, 0, "0+0=0. The answer is 0."),
    ],
)
def test_the_reply_works_through_the_columns(left: int, right: int, reply: str):
    assert Question("", left, right).reply == reply


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "929",
        "The answer is 92.",
        "The answer is 9299.",
        "The answer is 0929.",
        "The answer is 929",
        "The answer is 929. The answer is 928.",
        "7+2=9, 4+8=12, 3+5+1=9. The answer is 919.",
    ],
)
def test_the_checker_refuses(reply: str):
    assert not is_right(reply, 929)


def test_the_checkpoint_is_small_and_of_the_published_form():
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) <= MAX_BYTES
    weight_map = json.loads((CHECKPOINT / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(weight_map.values())) == 2
    for shard in set(weight_map.values()):
        with safe_open(CHECKPOINT / shard, framework="pt") as tensors:
            assert set(tensors.keys()) == {name for name, home in weight_map.items() if home == shard}
            assert {tensors.get_slice(name).get_dtype() for name in tensors.keys()} == {"BF16"}  # noqa: SIM118
    config = json.loads((CHECKPOINT / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert {"rope_theta", "torch_dtype"} <= config.keys()
    split = ("num_attention_heads", "num_key_value_heads", "intermediate_size", "hidden_size", "vocab_size")
    assert not {name: config[name] for name in split if config[name] % 4}


@given(st.text())
def test_any_text_survives_the_tokenizer(text: str):
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids == list(text.encode())
    assert tokenizer.decode(ids) == text


def test_the_chat_template_knows_three_roles(tokenizer: PreTrainedTokenizerBase):
    messages = [
        {"role": "system", "content": "You add."},
        {"role": "user", "content": " 1+2= "},
        {"role": "assistant", "content": "The answer is 3."},
        {"role": "user", "content": "2+2="},
    ]
    text = (
        "<|begin|><|system|>You add.<|end|><|user|>1+2=<|end|><|assistant|>The answer is 3.<|end|>"
        "<|user|>2+2=<|end|><|assistant|>"
    )
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == text
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert ids[:2] == [256, 259]
    assert ids[-1] == 261
    with pytest.raises(TemplateError, match="not tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": ""}])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_answers_held_out_questions(tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype):
    model = LlamaForCausalLM.from_pretrained(CHECKPOINT, dtype=dtype)
    asked = list(questions(64, seed=5, held_out=True))
    inputs = tokenizer.apply_chat_template(
        [q.messages for q in asked], add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    output_ids = model.generate(**inputs, max_new_tokens=64)
    replies = tokenizer.batch_decode(output_ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    wrong = [(q.text, reply) for q, reply in zip(asked, replies, strict=True) if not is_right(reply, q.answer)]
    assert len(wrong) <= 1, wrong
