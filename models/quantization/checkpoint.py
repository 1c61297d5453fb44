"""What `quantization_config` in config.json says of published quantised checkpoints.

    quant_method        weights                                               scales of an FP8 KV cache
    compressed-tensors  FP8 `weight`, `weight_scale` per output or tensor     `self_attn.k_scale`, `v_scale`
    fp8                 the same                                              `k_proj.output_scale` and so on
    quark               the same; MXFP4 `weight`, `weight_scale` in bytes     `k_proj.output_scale` and so on

Inputs of FP8 layers get a scale per token whatever the checkpoint says: a fixed `input_scale` for all is coarser.
"""

from collections.abc import Iterator
from typing import Any

from ..json_fields import JsonFields
from .formats import LayerRule, Quantization, Scheme, WeightFormat

METHODS = ("compressed-tensors", "fp8", "quark")
_FIELD = "quantization_config"


def stored_quantization(config: JsonFields) -> Quantization | None:
    """None when the weights are stored as they are. CheckpointError names the field that cannot be served."""
    if not config.has(_FIELD):
        return None
    fields = config.part(_FIELD)
    method = fields.get("quant_method", str)
    if method == "compressed-tensors":
        rules, has_kv_scales = _compressed_tensors(fields), _has_compressed_tensors_kv_scales(fields)
    elif method == "fp8":
        rules, has_kv_scales = _fp8(fields), fields.has("kv_cache_scheme")
    elif method == "quark":
        rules, has_kv_scales = _quark(fields), _has_quark_kv_scales(fields)
    else:
        raise fields.error("quant_method", method, f"supported are {', '.join(METHODS)}")
    schemes = sorted({rule.format.scheme for rule in rules if rule.format is not None})
    return Quantization("+".join(schemes) or "none", rules, has_kv_scales, f"{config.path}: {_FIELD} ({method})")


def _stored(scheme: Scheme) -> WeightFormat:
    return WeightFormat(scheme, is_stored=True)


def _left_out(fields: JsonFields, name: str) -> Iterator[LayerRule]:
    for pattern in fields.get(name, list, []):
        if not isinstance(pattern, str):
            raise fields.error(name, pattern, "expected names of layers")
        yield LayerRule(pattern, None)


def _expect(fields: JsonFields, name: str, *right: object) -> None:
    value = fields.values.get(name)
    if value not in right:
        raise fields.error(name, value, f"supported: {', '.join(map(repr, right))}")


# compressed-tensors


def _compressed_tensors(fields: JsonFields) -> tuple[LayerRule, ...]:
    rules = list(_left_out(fields, "ignore"))
    groups = fields.part("config_groups")
    for name in groups.values:
        group = groups.part(name)
        weights = group.part("weights")
        _expect(weights, "type", "float")
        _expect(weights, "num_bits", 8)
        _expect(weights, "strategy", "channel", "tensor")
        inputs = group.part("input_activations")
        _expect(inputs, "type", "float")
        _expect(inputs, "num_bits", 8)
        for target in group.get("targets", list):
            rules.append(LayerRule("*" if target == "Linear" else str(target), _stored("fp8")))
    return tuple(rules)


def _has_compressed_tensors_kv_scales(fields: JsonFields) -> bool:
    if not fields.has("kv_cache_scheme"):
        return False
    scheme = fields.part("kv_cache_scheme")
    _expect(scheme, "type", "float")
    _expect(scheme, "num_bits", 8)
    _expect(scheme, "strategy", "tensor")
    return True


# fp8


def _fp8(fields: JsonFields) -> tuple[LayerRule, ...]:
    _expect(fields, "weight_block_size", None)
    _expect(fields, "activation_scheme", "dynamic", "static")
    left_out = [*_left_out(fields, "ignored_layers"), *_left_out(fields, "modules_to_not_convert")]
    return (*left_out, LayerRule("*", _stored("fp8")))


# quark


def _quark(fields: JsonFields) -> tuple[LayerRule, ...]:
    if fields.has("export"):
        _expect(fields.part("export"), "weight_format", "real_quantized", None)
    rules = list(_left_out(fields, "exclude"))
    by_layer = fields.part("layer_quant_config") if fields.has("layer_quant_config") else None
    for pattern in by_layer.values if by_layer else ():
        assert by_layer is not None
        rules.append(LayerRule(pattern, _quark_format(by_layer.part(pattern))))
    rules.append(LayerRule("*", _quark_format(fields.part("global_quant_config"))))
    return tuple(rules)


def _quark_format(config: JsonFields) -> WeightFormat | None:
    if not config.has("weight"):
        return None
    weight = config.part("weight")
    _expect(weight, "dtype", "fp8_e4m3", "fp4")
    if weight.get("dtype", str) == "fp4":
        _expect(weight, "group_size", 32)
        _expect(weight, "scale_format", "e8m0")
        rounds_inputs = config.has("input_tensors") and config.part("input_tensors").values.get("dtype") == "fp4"
        return WeightFormat("mxfp4", is_stored=True, may_round_inputs=rounds_inputs)
    _expect(weight, "qscheme", "per_channel", "per_tensor")
    _expect(config.part("input_tensors"), "dtype", "fp8_e4m3")
    return _stored("fp8")


def _has_quark_kv_scales(fields: JsonFields) -> bool:
    """Newer files say it in `kv_cache_quant_config`, older ones in `layer_quant_config` of the layers in
    `export.kv_cache_group`."""
    if fields.values.get("kv_cache_quant_config"):
        return _are_kv_outputs_fp8(fields.part("kv_cache_quant_config"), None)
    group: list[Any] = fields.part("export").get("kv_cache_group", list, []) if fields.has("export") else []
    return bool(group) and _are_kv_outputs_fp8(fields.part("layer_quant_config"), group)


def _are_kv_outputs_fp8(layers: JsonFields, group: list[Any] | None) -> bool:
    for pattern in layers.values:
        if group is None or pattern in group:
            outputs = layers.part(pattern).part("output_tensors")
            _expect(outputs, "dtype", "fp8_e4m3")
            _expect(outputs, "qscheme", "per_tensor")
    return True
