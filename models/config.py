"""What `config.json` says of a model, in the published form and in the form that transformers 5 writes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .json_fields import JsonFields
from .quantization.checkpoint import stored_quantization
from .quantization.formats import Quantization

DtypeName = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary embedding.

    Attributes:
        theta: base of the frequencies.
        kind: `default`, `linear` (positions divided by `factor`) or `llama3` (Llama 3.1's scaling by wavelength).
        factor: how far the context was stretched.
        low_freq_factor: llama3: wavelengths beyond original_max_position / this are divided by `factor` whole.
        high_freq_factor: llama3: wavelengths under original_max_position / this stay.
        original_max_position: llama3: the context before stretching, tokens.
    """

    theta: float = 10000.0
    kind: Literal["default", "linear", "llama3"] = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A decoder-only model as its checkpoint describes it; sizes are of the whole model, not of a rank.

    `dtype` is the checkpoint's. `eos_token_ids` come from generation_config.json, else from config.json, and
    may be empty. `quantization` says how the weights are stored when not in `dtype`.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    rope: RopeConfig
    tie_word_embeddings: bool
    attention_bias: bool
    mlp_bias: bool
    dtype: DtypeName
    eos_token_ids: tuple[int, ...]
    quantization: Quantization | None = None

    @classmethod
    def from_directory(cls, directory: str | Path) -> "ModelConfig":
        """Reads config.json and, if there, generation_config.json. CheckpointError names file and field."""
        fields = JsonFields.read(Path(directory) / "config.json")
        architectures = fields.get("architectures", list)
        if not architectures or not isinstance(architectures[0], str):
            raise fields.error("architectures", architectures, "expected a list with the name of the model's class")
        hidden_act = fields.get("hidden_act", str, "silu")
        if hidden_act != "silu":
            raise fields.error("hidden_act", hidden_act, "only 'silu' is supported")
        num_heads = fields.positive("num_attention_heads")
        num_kv_heads = fields.positive("num_key_value_heads", num_heads)
        if num_heads % num_kv_heads:
            raise fields.error(
                "num_key_value_heads", num_kv_heads, f"expected a divisor of {num_heads} query heads"
            )
        hidden_size = fields.positive("hidden_size")
        return cls(
            architecture=architectures[0],
            vocab_size=fields.positive("vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=fields.positive("intermediate_size"),
            num_layers=fields.positive("num_hidden_layers"),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=fields.positive("head_dim", hidden_size // num_heads),
            rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
            max_position_embeddings=fields.positive("max_position_embeddings", 2048),
            rope=_rope(fields),
            tie_word_embeddings=fields.get("tie_word_embeddings", bool, False),
            attention_bias=fields.get("attention_bias", bool, False),
            mlp_bias=fields.get("mlp_bias", bool, False),
            dtype=_dtype(fields),
            eos_token_ids=_eos_token_ids(Path(directory), fields),
            quantization=stored_quantization(fields),
        )


def _rope(fields: JsonFields) -> RopeConfig:
    if fields.has("rope_parameters"):
        part = fields.part("rope_parameters")
        theta = part.number("rope_theta", fields.number("rope_theta", 10000.0))
    else:
        theta = fields.number("rope_theta", 10000.0)
        if not fields.has("rope_scaling"):
            return RopeConfig(theta)
        part = fields.part("rope_scaling")
    kind_field = "rope_type" if part.has("rope_type") else "type"
    kind = part.get(kind_field, str, "default")
    if kind == "default":
        return RopeConfig(theta)
    if kind == "linear":
        return RopeConfig(theta, "linear", part.number("factor"))
    if kind == "llama3":
        return RopeConfig(
            theta,
            "llama3",
            part.number("factor"),
            part.number("low_freq_factor"),
            part.number("high_freq_factor"),
            part.positive("original_max_position_embeddings"),
        )
    raise part.error(kind_field, kind, "supported are 'default', 'linear' and 'llama3'")


def _dtype(fields: JsonFields) -> DtypeName:
    field = "dtype" if fields.has("dtype") else "torch_dtype"
    name = fields.get(field, str, "float32")
    if name not in ("float32", "bfloat16", "float16"):
        raise fields.error(field, name, "supported are 'float32', 'bfloat16' and 'float16'")
    return name


def _eos_token_ids(directory: Path, config: JsonFields) -> tuple[int, ...]:
    path = directory / "generation_config.json"
    sources = [JsonFields.read(path), config] if path.exists() else [config]
    for fields in sources:
        value = fields.values.get("eos_token_id")
        if value is None:
            continue
        ids = value if isinstance(value, list) else [value]
        if not all(isinstance(token_id, int) for token_id in ids):
            raise fields.error("eos_token_id", value, "expected a token id or a list of them")
        return tuple(ids)
    return ()
