"""What quantised weights look like, and which layer has which. No torch here."""

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Scheme = Literal["fp8", "mxfp4"]


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """How the weight of a linear layer is held.

    Attributes:
        scheme: `fp8`: e4m3 with a scale per output, inputs rounded to e4m3 with a scale per token. `mxfp4`: e2m1
            with a power of two per 32 inputs (OCP Microscaling 1.0).
        is_stored: the checkpoint holds it so; else it is rounded while it is loaded.
        may_round_inputs: MXFP4: the checkpoint is made for inputs that are MXFP4 as well.
    """

    scheme: Scheme
    is_stored: bool
    may_round_inputs: bool = False


@dataclass(frozen=True, slots=True)
class LayerRule:
    """The format of the layers that `pattern` names; None: they are not quantised.

    A pattern is the name of a layer or of what holds it, `re:` and a regular expression that matches the beginning
    of a name (compressed-tensors), or a shell pattern (Quark).
    """

    pattern: str
    format: WeightFormat | None

    def covers(self, layer: str) -> bool:
        if self.pattern.startswith("re:"):
            return re.match(self.pattern.removeprefix("re:"), layer) is not None
        if "*" in self.pattern:
            return fnmatch.fnmatchcase(layer, self.pattern)
        return layer == self.pattern or layer.startswith(f"{self.pattern}.")


@dataclass(frozen=True, slots=True)
class Quantization:
    """What of a model is quantised.

    Attributes:
        name: `none`, or the scheme, or schemes joined by `+`.
        rules: the first that covers a layer's name decides; a layer without one is not quantised.
        has_kv_scales: the checkpoint holds scales for an FP8 KV cache.
        origin: what errors call it.
    """

    name: str = "none"
    rules: Sequence[LayerRule] = ()
    has_kv_scales: bool = False
    origin: str = "quantization"

    @classmethod
    def while_loading(cls, scheme: Scheme) -> "Quantization":
        """Every linear layer but the head, from weights that are not quantised."""
        return cls(scheme, (LayerRule("*", WeightFormat(scheme, is_stored=False)),))

    def format_of(self, layer: str) -> WeightFormat | None:
        return next((rule.format for rule in self.rules if rule.covers(layer)), None)


UNQUANTIZED = Quantization()
