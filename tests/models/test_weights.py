"""Damaged and incomplete checkpoints: the error names file and tensor."""

import json
from mmap import mmap
from pathlib import Path

import pytest
import tiny_models
import torch
from cpu_kernels import kernels
from nfold.models.config import ModelConfig
from nfold.models.errors import CheckpointError
from nfold.models.parallel import TpGroup
from nfold.models.registry import load_model
from nfold.models.weights.safetensors_loader import load_weights
from nfold.models.weights.slots import Slot
from resident import resident_bytes
from safetensors.torch import load_file, save_file

FIRST = "model-00001-of-00002.safetensors"
SECOND = "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tiny_models.make_llama(tmp_path, num_layers=1)


def error_of(directory: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_model(directory, tp=TpGroup.single(), device=torch.device("cpu"), dtype=None)
    return str(caught.value)


def some_tensor(directory: Path, file: str) -> str:
    return sorted(load_file(directory / file))[0]


def test_missing_shard(directory: Path) -> None:
    (directory / SECOND).unlink()
    assert f"{directory / SECOND}: missing" in error_of(directory)


def test_memory_has_its_pages_before_it_is_filled(directory: Path) -> None:
    with kernels("compiled"):
        # The allocator may hand out memory whose pages another test has touched; a new mapping has none.
        memory = torch.frombuffer(mmap(-1, 64 << 20), dtype=torch.uint8)
        grown: list[int] = []
        before = resident_bytes()
        size = ModelConfig.from_directory(directory).hidden_size
        slots = [
            Slot(name, (size,), lambda _: grown.append(resident_bytes() - before), 0, 0, size, memory=memory)
            for name in ("model.norm.weight", "model.layers.0.input_layernorm.weight")
        ]
        load_weights(directory, slots)
        assert len(grown) == 2
        assert grown[0] > 0.9 * memory.nbytes


@pytest.mark.parametrize("keep", [0, 4, 100, 5000])
def test_truncated_shard(directory: Path, keep: int) -> None:
    path = directory / FIRST
    path.write_bytes(path.read_bytes()[:keep])
    assert f"{path}: damaged or cut short" in error_of(directory)


def test_shard_of_noise(directory: Path) -> None:
    (directory / FIRST).write_bytes(b"\xff" * 1000)
    assert f"{directory / FIRST}: damaged or cut short" in error_of(directory)


def test_missing_tensor(directory: Path) -> None:
    tensors = load_file(directory / FIRST)
    name = some_tensor(directory, FIRST)
    del tensors[name]
    save_file(tensors, directory / FIRST)
    assert error_of(directory) == f"{directory / FIRST}: no tensor {name}, which config.json asks for"


def test_wrong_shape(directory: Path) -> None:
    tensors = load_file(directory / FIRST)
    name = some_tensor(directory, FIRST)
    tensors[name] = tensors[name][1:].contiguous()
    save_file(tensors, directory / FIRST)
    message = error_of(directory)
    assert f"{directory / FIRST}: {name} has shape" in message
    assert "config.json asks for" in message


def test_missing_index_entry(directory: Path) -> None:
    index = json.loads((directory / INDEX).read_text())
    del index["weight_map"]["model.norm.weight"]
    (directory / INDEX).write_text(json.dumps(index))
    assert f"{directory / INDEX}: no entry for model.norm.weight" in error_of(directory)


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"model.norm.weight": 3}}']
)
def test_broken_index(directory: Path, content: str) -> None:
    (directory / INDEX).write_text(content)
    assert str(directory / INDEX) in error_of(directory)


def test_no_weights_at_all(directory: Path) -> None:
    for path in directory.glob("model*"):
        path.unlink()
    assert f"{directory}: neither model.safetensors nor {INDEX}" in error_of(directory)


def test_unknown_architecture(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    config["architectures"] = ["MambaForCausalLM"]
    (directory / "config.json").write_text(json.dumps(config))
    message = error_of(directory)
    assert "architectures: got 'MambaForCausalLM'" in message
    assert "LlamaForCausalLM" in message
