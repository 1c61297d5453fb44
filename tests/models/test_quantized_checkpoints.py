"""Published quantised checkpoints, and plain ones that are rounded while they are loaded."""

import dataclasses
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
import tp_ranks
from nfold.kernels.ops import Fp8Rows
from nfold.kernels.reference import mxfp4
from nfold.models.config import ModelConfig
from nfold.models.errors import CheckpointError, ConfigError
from nfold.models.layers.quantized import Fp8Weight, Mxfp4Weight
from nfold.models.llama import LlamaForCausalLM
from nfold.models.parallel import TpGroup
from nfold.models.quantization.choice import QuantizationName, choose_quantization
from nfold.models.registry import load_model
from nfold.models.weights.safetensors_loader import load_weights
from nfold.models.weights.slots import Slot
from quantized_models import FORMS, K_SCALE, V_SCALE, Form, change_config, publish, twin_of
from safetensors.torch import load_file, save_file

SHAPE = {"family": "llama3", "hidden_size": 128, "intermediate_size": 192}
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.make_llama(tmp_path_factory.mktemp("plain") / "model", **SHAPE)


def new_model(directory: Path, tp: TpGroup, wish: QuantizationName = "auto") -> LlamaForCausalLM:
    config = ModelConfig.from_directory(directory)
    quantization = choose_quantization(wish, config.quantization)
    return LlamaForCausalLM(config, tp, dtype=torch.float32, device=tp_ranks.CPU, quantization=quantization)


def rank(number: int, size: int) -> TpGroup:
    return TpGroup(number, size, None, None)


def relative_error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("kv_scales", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_a_published_checkpoint_is_what_its_numbers_stand_for(
    form: Form, kv_scales: bool, plain: Path, tmp_path: Path
) -> None:
    directory = publish(plain, tmp_path / "model", form, kv_scales=kv_scales)
    got = tp_ranks.logits_of(directory, TpGroup.single())
    wanted = tp_ranks.logits_of(twin_of(directory), TpGroup.single())
    if form == "quark mxfp4":
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=0)
    else:  # inputs are rounded too
        assert 1e-3 < relative_error(got, wanted) < 0.25
    model = load_model(directory, tp=TpGroup.single(), device=tp_ranks.CPU, dtype=None)
    assert model.quantization.has_kv_scales == kv_scales
    scales = model._layers[1]._attention._kv_scales  # pyright: ignore[reportAttributeAccessIssue]
    assert (scales.k, scales.v) == ((K_SCALE, V_SCALE) if kv_scales else (1.0, 1.0))


@pytest.mark.parametrize("form", ["compressed-tensors", "quark fp8"])
def test_rounding_what_was_rounded_changes_nothing(form: Form, plain: Path, tmp_path: Path) -> None:
    directory = publish(plain, tmp_path / "model", form)
    got = tp_ranks.logits_of(directory, TpGroup.single())
    again = tp_ranks.logits_of(twin_of(directory), TpGroup.single(), "fp8")
    torch.testing.assert_close(got, again, atol=1e-4, rtol=0)


def loaded_numbers(model: LlamaForCausalLM) -> list[dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """(numbers, scales) of each layer's matrices; FP8 numbers as the values that they stand for."""
    return [
        {
            "qkv": numbers_of(layer._attention.first._quantized),
            "output": numbers_of(layer._attention.output._quantized),
            "gate_up": numbers_of(layer._mlp.first._quantized),
            "down": numbers_of(layer._mlp.down._quantized),
        }
        for layer in model._layers
    ]


def numbers_of(weight: object) -> tuple[torch.Tensor, torch.Tensor]:
    if isinstance(weight, Fp8Weight):
        return values_of(weight), weight._scale_O
    assert isinstance(weight, Mxfp4Weight)
    return weight._codes, weight._scale_OG


def values_of(weight: object) -> torch.Tensor:
    if isinstance(weight, Fp8Weight):
        if weight._panels is None:
            return weight._weight_OI.float() * weight._scale_O[:, None]
        num_inputs = weight._panels.num_inputs
        one = Fp8Rows(torch.eye(num_inputs).to(torch.float8_e4m3fn), torch.ones(num_inputs, 1), torch.float32)
        return weight._panels.multiply(one, None, torch.float32).T
    assert isinstance(weight, Mxfp4Weight)
    return mxfp4.dequantize(weight._codes, weight._scale_OG, torch.float32)


@pytest.mark.parametrize("form", FORMS)
def test_each_weight_is_what_its_numbers_stand_for(form: Form, plain: Path, tmp_path: Path) -> None:
    directory = publish(plain, tmp_path / "model", form)
    model = new_model(directory, TpGroup.single())
    load_weights(directory, model.slots())
    meant = {
        name: tensor
        for file in twin_of(directory).glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }
    for index, layer in enumerate(model._layers):
        prefix = f"model.layers.{index}"
        qkv = torch.cat([meant[f"{prefix}.self_attn.{letter}_proj.weight"] for letter in "qkv"])
        gate_up = torch.cat([meant[f"{prefix}.mlp.{name}_proj.weight"] for name in ("gate", "up")])
        assert torch.equal(values_of(layer._attention.first._quantized), qkv)
        assert torch.equal(
            values_of(layer._attention.output._quantized), meant[f"{prefix}.self_attn.o_proj.weight"]
        )
        assert torch.equal(values_of(layer._mlp.first._quantized), gate_up)
        assert torch.equal(values_of(layer._mlp.down._quantized), meant[f"{prefix}.mlp.down_proj.weight"])


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("form", [*FORMS, "fp8 while loading", "mxfp4 while loading"])
def test_ranks_hold_parts_of_the_numbers_of_one_rank(form: str, size: int, tmp_path: Path) -> None:
    plain = tiny_models.make_llama(
        tmp_path / "plain", "llama2", num_heads=6, hidden_size=192, intermediate_size=192
    )
    wish: QuantizationName = "auto"
    if form.endswith(" while loading"):
        directory, wish = plain, "fp8" if form.startswith("fp8") else "mxfp4"
    else:
        directory = publish(plain, tmp_path / "model", form)  # pyright: ignore[reportArgumentType]
    models = [new_model(directory, TpGroup.single(), wish)]
    models += [new_model(directory, rank(number, size), wish) for number in range(size)]
    for model in models:
        load_weights(directory, model.slots())
    whole, *shares = (loaded_numbers(model) for model in models)
    for layer, of_all in enumerate(whole):
        of_ranks = [share[layer] for share in shares]
        for name, num_parts in (("qkv", 3), ("gate_up", 2)):
            for index, tensor in enumerate(of_all[name]):
                parts = [ranks[name][index].chunk(num_parts) for ranks in of_ranks]
                assert torch.equal(tensor, torch.cat([torch.cat(part) for part in zip(*parts, strict=True)]))
        for name in ("output", "down"):
            numbers, scales = of_all[name]
            assert torch.equal(numbers, torch.cat([ranks[name][0] for ranks in of_ranks], dim=1))
            per_rank = [ranks[name][1] for ranks in of_ranks]
            if scales.dim() == 2:
                assert torch.equal(scales, torch.cat(per_rank, dim=1))
            else:
                assert all(torch.equal(scales, scale) for scale in per_rank)


@pytest.mark.parametrize("wish", ["fp8", "mxfp4"])
def test_one_tensor_at_a_time_is_in_memory_while_loading(wish: QuantizationName, plain: Path) -> None:
    alive: list[weakref.ref[torch.Tensor]] = []

    def watched(slot: Slot) -> Slot:
        def put(source: torch.Tensor) -> None:
            assert not any(reference() is not None for reference in alive)
            alive[:] = [weakref.ref(source)]
            slot.put(source)

        return dataclasses.replace(slot, put=put)

    model = new_model(plain, rank(1, 2), wish)
    load_weights(plain, [watched(slot) for slot in model.slots()])
    assert alive


def broken(directory: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_model(directory, tp=TpGroup.single(), device=tp_ranks.CPU, dtype=None)
    return str(caught.value)


def test_a_missing_scale_is_named(plain: Path, tmp_path: Path) -> None:
    directory = publish(plain, tmp_path / "model", "compressed-tensors")
    index = json.loads((directory / INDEX).read_text())
    del index["weight_map"]["model.layers.1.mlp.down_proj.weight_scale"]
    (directory / INDEX).write_text(json.dumps(index))
    message = broken(directory)
    assert "no entry for model.layers.1.mlp.down_proj.weight_scale" in message
    assert "quantization_config (compressed-tensors) asks for" in message


def test_fp8_weights_without_a_word_in_the_config_are_refused(plain: Path, tmp_path: Path) -> None:
    directory = publish(plain, tmp_path / "model", "fp8")
    change_config(directory, quantization_config=None)
    assert "is of type F8_E4M3, config.json asks for F32 or BF16 or F16" in broken(directory)


def test_a_plain_weight_where_the_config_promises_fp8_is_refused(plain: Path, tmp_path: Path) -> None:
    directory = publish(plain, tmp_path / "model", "fp8")
    name = "model.layers.0.mlp.up_proj.weight"
    file = directory / json.loads((directory / INDEX).read_text())["weight_map"][name]
    tensors = load_file(file)
    save_file(tensors | {name: tensors[name].float()}, file)
    message = broken(directory)
    assert f"{file}: {name} is of type F32" in message
    assert "quantization_config (fp8) asks for F8_E4M3" in message


def group(**weights: Any) -> dict[str, Any]:
    number = {"num_bits": 8, "type": "float", "strategy": "channel"}
    group = {"targets": ["Linear"], "weights": number | weights, "input_activations": number}
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}}


def quark(**weight: Any) -> dict[str, Any]:
    fp4 = {"dtype": "fp4", "qscheme": "per_group", "group_size": 32, "scale_format": "e8m0"}
    return {"quant_method": "quark", "global_quant_config": {"weight": fp4 | weight}}


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        ({}, ["quantization_config.quant_method: missing"]),
        ({"quant_method": "gptq"}, ["quant_method: got 'gptq'", "compressed-tensors, fp8, quark"]),
        (group(strategy="block"), ["config_groups.group_0.weights.strategy: got 'block'", "'channel', 'tensor'"]),
        (group(num_bits=4), ["config_groups.group_0.weights.num_bits: got 4", "8"]),
        (group(type="int"), ["config_groups.group_0.weights.type: got 'int'", "'float'"]),
        (group() | {"kv_cache_scheme": {"type": "int"}}, ["kv_cache_scheme.type: got 'int'"]),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, ["weight_block_size: got [128, 128]"]),
        ({"quant_method": "fp8", "activation_scheme": "odd"}, ["activation_scheme: got 'odd'", "'dynamic'"]),
        ({"quant_method": "fp8", "activation_scheme": "dynamic", "ignored_layers": [3]}, ["ignored_layers: got 3"]),
        (quark(dtype="int4"), ["global_quant_config.weight.dtype: got 'int4'", "'fp4'"]),
        (quark(group_size=16), ["global_quant_config.weight.group_size: got 16", "32"]),
        (quark(scale_format="float32"), ["weight.scale_format: got 'float32'", "'e8m0'"]),
        (quark() | {"export": {"weight_format": "fake_quantized"}}, ["export.weight_format: got 'fake_quantized'"]),
        (
            quark() | {"kv_cache_quant_config": {"*k_proj": {"output_tensors": {"dtype": "int8"}}}},
            ["kv_cache_quant_config.*k_proj.output_tensors.dtype: got 'int8'"],
        ),
        (
            {
                "quant_method": "fp8",
                "activation_scheme": "dynamic",
                "ignored_layers": ["model.layers.0.mlp.up_proj"],
            },
            ["model.layers.0.mlp.gate_proj and model.layers.0.mlp.up_proj"],
        ),
    ],
)
def test_what_is_not_supported_is_named(
    config: dict[str, Any], parts: list[str], plain: Path, tmp_path: Path
) -> None:
    directory = publish(plain, tmp_path / "model", "fp8")
    change_config(directory, quantization_config=config)
    message = broken(directory)
    assert [part for part in parts if part not in message] == [], message


@pytest.mark.parametrize(
    "left_out", ["model.layers.0", "re:model\\.layers\\.0\\..*", "model.layers.0*", "re:.*layers.0.*proj"]
)
def test_layers_can_be_left_out(left_out: str, plain: Path, tmp_path: Path) -> None:
    directory = publish(plain, tmp_path / "model", "fp8")
    config = json.loads((directory / "config.json").read_text())["quantization_config"]
    change_config(directory, quantization_config=config | {"ignored_layers": ["lm_head", left_out]})
    layers = new_model(directory, TpGroup.single())._layers
    assert layers[0]._mlp.down._quantized is None
    assert layers[1]._mlp.down._quantized is not None


def test_tp_that_cuts_a_group_is_refused(plain: Path) -> None:
    with pytest.raises(ConfigError, match=r"down_proj has 6 groups of 32 inputs .* \[1, 2, 3, 6\] ranks") as caught:
        list(new_model(plain, rank(0, 4), "mxfp4").slots())
    assert (caught.value.field, caught.value.value) == ("tp", 4)


def test_inputs_that_are_no_whole_groups_are_refused(tmp_path: Path) -> None:
    directory = tiny_models.make_llama(tmp_path / "model", intermediate_size=176)
    with pytest.raises(ConfigError, match=r"down_proj has 176 inputs, MXFP4 needs whole groups of 32") as caught:
        list(new_model(directory, TpGroup.single(), "mxfp4").slots())
    assert caught.value.field == "quantization"


@pytest.mark.parametrize("wish", ["none", "mxfp4"])
def test_a_wish_that_the_checkpoint_does_not_fulfil_is_refused(
    wish: QuantizationName, plain: Path, tmp_path: Path
) -> None:
    directory = publish(plain, tmp_path / "model", "fp8")
    with pytest.raises(ConfigError, match="the checkpoint holds fp8 weights; expected 'auto'"):
        load_model(directory, tp=TpGroup.single(), device=tp_ranks.CPU, dtype=None, quantization=wish)
    load_model(directory, tp=TpGroup.single(), device=tp_ranks.CPU, dtype=None, quantization="fp8")
