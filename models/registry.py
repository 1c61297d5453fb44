"""From a model directory to a loaded model. A new family is one file beside this one and one line here."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch

from ..kernels.ops import computes_bfloat16
from .causal_lm import CausalLM
from .config import ModelConfig
from .errors import CheckpointError
from .llama import LlamaForCausalLM
from .parallel import TpGroup
from .quantization.choice import QuantizationName, choose_quantization
from .quantization.formats import Quantization
from .weights.safetensors_loader import load_weights
from .weights.slots import Slot

_log = logging.getLogger(__name__)


class LoadableModel(CausalLM, Protocol):
    """What loading asks of a model beyond `CausalLM`."""

    def slots(self) -> Iterator[Slot]:
        """Every checkpoint tensor and its place on this rank."""
        ...

    def pack(self) -> None:
        """Called once, when the weights are loaded: turns them into the form that computes fastest."""
        ...


class ModelClass(Protocol):
    def __call__(
        self,
        config: ModelConfig,
        tp: TpGroup,
        *,
        dtype: torch.dtype,
        device: torch.device,
        quantization: Quantization,
    ) -> LoadableModel: ...


MODELS: dict[str, ModelClass] = {
    "LlamaForCausalLM": LlamaForCausalLM,
}


def load_model(
    directory: str | Path,
    *,
    tp: TpGroup,
    device: torch.device,
    dtype: torch.dtype | None,
    quantization: QuantizationName = "auto",
) -> CausalLM:
    """This rank's share of the model in `directory`; dtype None and quantization `auto` take the checkpoint's, but
    float32 for bfloat16 where the latter is emulated.

    Raises CheckpointError (file and tensor or field named) and ConfigError (`tp` does not divide the model, or the
    checkpoint is quantised in another way already).
    """
    config = ModelConfig.from_directory(directory)
    model_class = MODELS.get(config.architecture)
    if model_class is None:
        raise CheckpointError(
            f"{Path(directory) / 'config.json'}: architectures: got {config.architecture!r};"
            f" supported are {', '.join(sorted(MODELS))}"
        )
    model = model_class(
        config,
        tp,
        dtype=dtype or _dtype_for(device, getattr(torch, config.dtype)),
        device=device,
        quantization=choose_quantization(quantization, config.quantization),
    )
    load_weights(directory, model.slots())
    model.pack()
    return model


def _dtype_for(device: torch.device, wanted: torch.dtype) -> torch.dtype:
    if wanted == torch.bfloat16 and not computes_bfloat16(device):
        _log.warning("dtype: float32 instead of bfloat16, which this processor computes several times slower")
        return torch.float32
    return wanted
