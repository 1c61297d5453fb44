"""config.json in both forms, and the errors that a wrong one gives."""

import json
from pathlib import Path
from typing import Any

import pytest
from nfold.models.config import ModelConfig, RopeConfig
from nfold.models.errors import CheckpointError

PUBLISHED: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "tie_word_embeddings": False,
    "attention_bias": False,
    "torch_dtype": "bfloat16",
    "eos_token_id": 128001,
}


def read(directory: Path, generation: dict[str, Any] | None = None, **changes: object) -> ModelConfig:
    """A change to None takes the field away."""
    fields = {name: value for name, value in (PUBLISHED | changes).items() if value is not None}
    (directory / "config.json").write_text(json.dumps(fields))
    if generation is not None:
        (directory / "generation_config.json").write_text(json.dumps(generation))
    return ModelConfig.from_directory(directory)


def test_published_form(tmp_path: Path) -> None:
    config = read(tmp_path)
    assert config.architecture == "LlamaForCausalLM"
    assert (config.num_layers, config.num_heads, config.num_kv_heads, config.head_dim) == (32, 32, 8, 128)
    assert config.rope == RopeConfig(500000.0, "llama3", 8.0, 1.0, 4.0, 8192)
    assert config.dtype == "bfloat16"
    assert config.eos_token_ids == (128001,)
    assert not config.tie_word_embeddings


def test_transformers_5_form_says_the_same(tmp_path: Path) -> None:
    published = read(tmp_path)
    parameters = PUBLISHED["rope_scaling"] | {"rope_theta": 500000.0}
    new_form = read(
        tmp_path, rope_theta=None, rope_scaling=None, torch_dtype=None, rope_parameters=parameters, dtype="bfloat16"
    )
    assert new_form == published


def test_what_may_be_left_out(tmp_path: Path) -> None:
    config = read(tmp_path, num_key_value_heads=None, rope_scaling=None, rope_theta=None, torch_dtype=None)
    assert config.num_kv_heads == 32
    assert config.rope == RopeConfig(10000.0)
    assert config.dtype == "float32"
    assert read(tmp_path, head_dim=64).head_dim == 64


def test_linear_rope_scaling_in_its_older_spelling(tmp_path: Path) -> None:
    assert read(tmp_path, rope_scaling={"type": "linear", "factor": 4}).rope == RopeConfig(500000.0, "linear", 4.0)


def test_generation_config_has_the_last_word_on_eos(tmp_path: Path) -> None:
    assert read(tmp_path, generation={"eos_token_id": [128001, 128008, 128009]}).eos_token_ids == (
        128001,
        128008,
        128009,
    )
    assert read(tmp_path, generation={"temperature": 0.6}).eos_token_ids == (128001,)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"num_hidden_layers": None, "num_hiden_layers": 32}, ["num_hidden_layers: missing", "num_hiden_layers"]),
        ({"hidden_size": "4096"}, ["hidden_size: got '4096'", "int"]),
        ({"vocab_size": 0}, ["vocab_size: got 0", "at least 1"]),
        ({"hidden_act": "gelu"}, ["hidden_act: got 'gelu'", "silu"]),
        ({"num_key_value_heads": 5}, ["num_key_value_heads: got 5", "32"]),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, ["rope_scaling.rope_type: got 'yarn'", "llama3"]),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, ["rope_scaling.low_freq_factor: missing"]),
        ({"torch_dtype": "float8"}, ["torch_dtype: got 'float8'", "bfloat16"]),
        ({"architectures": []}, ["architectures: got []"]),
        (
            {"quantization_config": {"quant_method": "awq"}},
            ["quantization_config.quant_method: got 'awq'", "quark"],
        ),
        ({"tie_word_embeddings": "yes"}, ["tie_word_embeddings: got 'yes'", "bool"]),
        ({"eos_token_id": "</s>"}, ["eos_token_id: got '</s>'"]),
        ({"num_attention_heads": True}, ["num_attention_heads: got True"]),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, changes: dict[str, object], parts: list[str]) -> None:
    with pytest.raises(CheckpointError) as caught:
        read(tmp_path, **changes)
    for part in [str(tmp_path / "config.json"), *parts]:
        assert part in str(caught.value)


@pytest.mark.parametrize(("content", "part"), [(None, "No such file"), ("{", "not JSON"), ("[1]", "JSON object")])
def test_a_broken_file_is_named(tmp_path: Path, content: str | None, part: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=part) as caught:
        ModelConfig.from_directory(tmp_path)
    assert str(tmp_path / "config.json") in str(caught.value)
