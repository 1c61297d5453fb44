"""From what the user wishes and what the checkpoint holds to what is done."""

from typing import Literal

from ..errors import ConfigError
from .formats import UNQUANTIZED, Quantization

QuantizationName = Literal["auto", "none", "fp8", "mxfp4"]
KvCacheDtypeName = Literal["auto", "fp8"]


def choose_quantization(wish: QuantizationName, stored: Quantization | None) -> Quantization:
    """`auto` takes the weights as they are stored. ConfigError when they are quantised and that was not wished."""
    if stored is None:
        return UNQUANTIZED if wish in ("auto", "none") else Quantization.while_loading(wish)
    if wish in ("auto", stored.name):
        return stored
    raise ConfigError(
        "quantization", wish, f"the checkpoint holds {stored.name} weights; expected 'auto' ({stored.origin})"
    )
