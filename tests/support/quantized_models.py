"""Checkpoints in the formats in which quantised ones are published, made of plain ones, with numbers rounded here.

The files have the names, types and shapes of those on the Hugging Face Hub; the weights are not theirs.
"""

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file

Form = Literal["compressed-tensors", "compressed-tensors per tensor", "fp8", "quark fp8", "quark mxfp4"]
FORMS: tuple[Form, ...] = ("compressed-tensors", "compressed-tensors per tensor", "fp8", "quark fp8", "quark mxfp4")
K_SCALE, V_SCALE = 0.5, 0.25
OCP = torch.float8_e4m3fn
_MAGNITUDES = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def publish(source: Path, directory: Path, form: Form, *, kv_scales: bool = False) -> Path:
    """The quantised checkpoint in `directory`; beside it, in `twin`, what its weights stand for, as float32."""
    twin = directory.with_name(directory.name + "-twin")
    for target in (directory, twin):
        shutil.copytree(source, target)
    index = json.loads((source / "model.safetensors.index.json").read_text())
    for file in sorted(set(index["weight_map"].values())):
        stored: dict[str, torch.Tensor] = {}
        meant: dict[str, torch.Tensor] = {}
        for name, tensor in load_file(source / file).items():
            if not name.endswith("_proj.weight"):
                stored[name] = meant[name] = tensor
                continue
            some, meant[name] = _quantise(name.removesuffix(".weight"), tensor, form)
            stored |= some
            if kv_scales and name.endswith(("k_proj.weight", "v_proj.weight")):
                stored |= _kv_scale(name.removesuffix(".weight"), form)
        index["weight_map"] |= dict.fromkeys(stored, file)
        save_file(stored, directory / file, metadata={"format": "pt"})
        save_file(meant, twin / file, metadata={"format": "pt"})
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    change_config(directory, quantization_config=_config(form, kv_scales))
    return directory


def twin_of(directory: Path) -> Path:
    return directory.with_name(directory.name + "-twin")


def change_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _quantise(layer: str, weight: torch.Tensor, form: Form) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    weight = weight.float()
    if form == "quark mxfp4":
        return _mxfp4(layer, weight)
    per_output = form in ("compressed-tensors", "quark fp8")
    scale = weight.abs().amax(1, keepdim=True) / 448 if per_output else weight.abs().max() / 448
    numbers = (weight / scale).to(OCP)
    meant = numbers.float() * scale
    if form == "compressed-tensors":
        # Written as bfloat16, as llm-compressor does; chosen so that it holds them.
        scale = scale.bfloat16()
        meant = numbers.float() * scale.float()
    if form == "quark fp8":
        scale = scale[:, 0]
    if form == "compressed-tensors per tensor":
        scale = scale[None]
    tensors = {f"{layer}.weight": numbers, f"{layer}.weight_scale": scale.contiguous()}
    if form == "fp8":
        tensors[f"{layer}.input_scale"] = torch.tensor(0.02)
    return tensors, meant


def _mxfp4(layer: str, weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    groups = weight.unflatten(1, (-1, 32))
    exponent = groups.abs().amax(-1, keepdim=True).log2().floor() - 2
    scaled = groups * 2.0**-exponent
    code = (scaled.abs()[..., None] - _MAGNITUDES).abs().argmin(-1)
    meant = (_MAGNITUDES[code] * scaled.sign() * 2.0**exponent).flatten(1)
    codes = (code + 8 * (scaled < 0)).to(torch.uint8).flatten(1)
    return {
        f"{layer}.weight": codes[:, 0::2] | codes[:, 1::2] << 4,
        f"{layer}.weight_scale": (exponent[..., 0] + 127).to(torch.uint8),
    }, meant


def _kv_scale(layer: str, form: Form) -> dict[str, torch.Tensor]:
    letter = layer[-6]
    scale = torch.tensor([K_SCALE if letter == "k" else V_SCALE])
    if form.startswith("compressed-tensors"):
        return {f"{layer.rpartition('.')[0]}.{letter}_scale": scale}
    return {f"{layer}.output_scale": scale[0]}


def _config(form: Form, kv_scales: bool) -> dict[str, Any]:
    if form == "fp8":
        scheme = {"kv_cache_scheme": "static"} if kv_scales else {}
        return {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"], **scheme}
    if form.startswith("compressed-tensors"):
        number = {"num_bits": 8, "type": "float", "symmetric": True}
        strategy = "tensor" if form.endswith("tensor") else "channel"
        return {
            "quant_method": "compressed-tensors",
            "format": "float-quantized",
            "quantization_status": "compressed",
            "kv_cache_scheme": number | {"strategy": "tensor", "dynamic": False} if kv_scales else None,
            "ignore": ["lm_head"],
            "config_groups": {
                "group_0": {
                    "targets": ["Linear"],
                    "weights": number | {"strategy": strategy, "dynamic": False},
                    "input_activations": number | {"strategy": "token", "dynamic": True},
                    "output_activations": None,
                }
            },
        }
    fp8 = {"dtype": "fp8_e4m3", "qscheme": "per_channel", "ch_axis": 0, "is_dynamic": False}
    fp4 = {"dtype": "fp4", "qscheme": "per_group", "group_size": 32, "scale_format": "e8m0", "ch_axis": -1}
    weight = fp8 if form == "quark fp8" else fp4
    layer = {"weight": weight, "input_tensors": weight | {"is_dynamic": True}, "output_tensors": None, "bias": None}
    kv = layer | {"output_tensors": {"dtype": "fp8_e4m3", "qscheme": "per_tensor", "is_dynamic": False}}
    return {
        "quant_method": "quark",
        "global_quant_config": layer,
        "layer_quant_config": {"*k_proj": kv, "*v_proj": kv} if kv_scales else {},
        "layer_type_quant_config": {},
        "kv_cache_quant_config": {},
        "exclude": ["lm_head"],
        "export": {
            "kv_cache_group": ["*k_proj", "*v_proj"] if kv_scales else [],
            "weight_format": "real_quantized",
            "pack_method": "reorder",
        },
    }
