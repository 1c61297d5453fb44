"""Llama 2 and 3 (Touvron et al. 2023; Grattafiori et al. 2024).

Legend: T tokens, D hidden size, R rows, V vocabulary, I intermediate size of this rank.
"""

from collections.abc import Iterator

import torch

from ..kernels import ops
from ..kernels.attention_inputs import AttentionInputs, LastTokens
from .config import ModelConfig
from .errors import ConfigError
from .kv_cache import KvCache
from .layers.attention import Attention, AttentionStep, HeadSplit
from .layers.linear import GatedLinear, Part, RowLinear
from .layers.norm import RmsNorm
from .layers.rotary import RotaryTable
from .layers.vocabulary import VocabEmbedding, VocabHead
from .parallel import TpGroup
from .quantization.formats import UNQUANTIZED, Quantization
from .weights.slots import Slot


class LlamaForCausalLM:
    """See `CausalLM`."""

    def __init__(
        self,
        config: ModelConfig,
        tp: TpGroup,
        *,
        dtype: torch.dtype,
        device: torch.device,
        quantization: Quantization = UNQUANTIZED,
    ) -> None:
        self.config = config
        self.num_layers = config.num_layers
        self.num_kv_heads = HeadSplit.of(config, tp).num_kv_heads
        self.head_dim = config.head_dim
        self.dtype = dtype
        self.quantization = quantization
        self.device = device
        vocab, hidden = config.vocab_size, config.hidden_size
        is_tied = config.tie_word_embeddings
        self._embedding = VocabEmbedding(
            "model.embed_tokens", vocab, hidden, tp, is_head=is_tied, dtype=dtype, device=device
        )
        self._layers = [
            LlamaLayer(f"model.layers.{index}", config, tp, dtype=dtype, device=device, quantization=quantization)
            for index in range(config.num_layers)
        ]
        self._norm = RmsNorm("model.norm", hidden, config.rms_norm_eps, dtype=dtype, device=device)
        tied = self._embedding if is_tied else None
        self._head = VocabHead("lm_head", vocab, hidden, tp, tied=tied, dtype=dtype, device=device)
        self._rotary = RotaryTable(
            config.rope, config.head_dim, config.max_position_embeddings, dtype=dtype, device=device
        )
        self._tp = tp
        self._in_one_call: ops.DecoderLayers | None = None

    @torch.inference_mode()
    def forward(
        self,
        token_ids_T: torch.Tensor,
        positions_T: torch.Tensor,
        kv: KvCache,
        inputs: AttentionInputs,
        last: LastTokens | None = None,
    ) -> torch.Tensor:
        angles = self._rotary.at(positions_T)
        x_TD = self._embedding(token_ids_T)
        if self._in_one_call is not None and kv.dtype == self.dtype:
            x_TD, residual_TD = self._in_one_call(x_TD, *angles, kv.k, kv.v, inputs, last)
        else:
            x_TD, residual_TD = self._layer_by_layer(x_TD, angles, kv, inputs, last)
        return self._norm.add(x_TD, residual_TD)[0]

    def _layer_by_layer(
        self,
        x_TD: torch.Tensor,
        angles: tuple[torch.Tensor, torch.Tensor],
        kv: KvCache,
        inputs: AttentionInputs,
        last: LastTokens | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        step = AttentionStep(*angles, inputs.slot_mapping_T, ops.prepare_attention(inputs, kv.k[0]))
        steps = [step] * len(self._layers)
        if last is not None:
            plan = ops.prepare_attention(last.attention, kv.k[0])
            steps[-1] = AttentionStep(*angles, inputs.slot_mapping_T, plan, last.rows_R)
        residual_TD = None
        for layer, k_cache, v_cache, step in zip(self._layers, kv.k, kv.v, steps, strict=True):
            x_TD, residual_TD = layer(x_TD, residual_TD, k_cache, v_cache, step)
        assert residual_TD is not None, "a model has at least one layer"
        return x_TD, residual_TD

    @torch.inference_mode()
    def logits(self, hidden_RD: torch.Tensor) -> torch.Tensor:
        return self._head(hidden_RD)

    def slots(self) -> Iterator[Slot]:
        """Every checkpoint tensor and its place on this rank."""
        yield from self._embedding.slots()
        for layer in self._layers:
            yield from layer.slots()
        yield from self._norm.slots()
        yield from self._head.slots()

    def pack(self) -> None:
        """Called once, when the weights are loaded."""
        for layer in self._layers:
            layer.pack()
        self._head.pack()
        if self._tp.size == 1:  # else sums over the ranks come in between
            self._in_one_call = self._join_layers()

    def _join_layers(self) -> ops.DecoderLayers | None:
        """None where a layer is not of the form that all of one call must have."""
        weights = [some for layer in self._layers if (some := layer.weights()) is not None]
        if len(weights) < len(self._layers):
            return None
        config = self.config
        shape = ops.DecoderShape(
            hidden_size=config.hidden_size,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            intermediate_size=config.intermediate_size,
            rms_norm_eps=config.rms_norm_eps,
            attention_scale=config.head_dim**-0.5,
        )
        return ops.DecoderLayers(weights, shape)


class LlamaLayer:
    """Attention and MLP, each added to the residual."""

    def __init__(
        self,
        name: str,
        config: ModelConfig,
        tp: TpGroup,
        *,
        dtype: torch.dtype,
        device: torch.device,
        quantization: Quantization,
    ) -> None:
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self._input_norm = RmsNorm(f"{name}.input_layernorm", hidden, eps, dtype=dtype, device=device)
        self._attention = Attention(
            f"{name}.self_attn", config, tp, dtype=dtype, device=device, quantization=quantization
        )
        self._mlp_norm = RmsNorm(f"{name}.post_attention_layernorm", hidden, eps, dtype=dtype, device=device)
        self._mlp = LlamaMlp(f"{name}.mlp", config, tp, dtype=dtype, device=device, quantization=quantization)

    def __call__(
        self,
        x_TD: torch.Tensor,
        residual_TD: torch.Tensor | None,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        step: AttentionStep,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`x_TD` is what the layer before adds to the residual; the first layer has none before."""
        normed_TD, residual_TD = self._input_norm.add_before(self._attention.first, x_TD, residual_TD)
        x_TD = self._attention(normed_TD, k_cache, v_cache, step)
        if step.rows_R is not None:
            residual_TD = residual_TD.index_select(0, step.rows_R)
        normed_TD, residual_TD = self._mlp_norm.add_before(self._mlp.first, x_TD, residual_TD)
        return self._mlp(normed_TD), residual_TD

    def slots(self) -> Iterator[Slot]:
        for part in (self._input_norm, self._attention, self._mlp_norm, self._mlp):
            yield from part.slots()

    def pack(self) -> None:
        self._attention.pack()
        self._mlp.pack()

    def weights(self) -> ops.DecoderWeights | None:
        """None where they are packed otherwise."""
        attention, mlp = self._attention, self._mlp
        qkv, output = attention.first.panels, attention.output.panels
        gate_up, down = mlp.first.gated_panels, mlp.down.panels
        if qkv is None or output is None or gate_up is None or down is None:
            return None
        return ops.DecoderWeights(
            input_norm_D=self._input_norm.weight_D,
            qkv=qkv,
            qkv_bias_O=attention.first.bias_O,
            output=output,
            output_bias_D=attention.output.bias_O,
            mlp_norm_D=self._mlp_norm.weight_D,
            gate_up=gate_up,
            down=down,
        )


class LlamaMlp:
    """down(silu(gate(x)) * up(x)), the intermediate dimension split over the ranks. `first` is gate and up."""

    def __init__(
        self,
        name: str,
        config: ModelConfig,
        tp: TpGroup,
        *,
        dtype: torch.dtype,
        device: torch.device,
        quantization: Quantization,
    ) -> None:
        total = config.intermediate_size
        if total % tp.size:
            raise ConfigError("tp", tp.size, f"the intermediate size {total} can be split over its divisors only")
        start, stop = tp.rank * total // tp.size, (tp.rank + 1) * total // tp.size
        self.first = GatedLinear(
            config.hidden_size,
            [Part(f"{name}.gate_proj", total, start, stop), Part(f"{name}.up_proj", total, start, stop)],
            bias=config.mlp_bias,
            dtype=dtype,
            device=device,
            quantization=quantization,
        )
        self.down = RowLinear(
            f"{name}.down_proj",
            total,
            config.hidden_size,
            tp,
            bias=config.mlp_bias,
            dtype=dtype,
            device=device,
            quantization=quantization,
        )

    def __call__(self, x_TD: ops.Rows) -> torch.Tensor:
        return self.down(self.first.gated(x_TD, self.down.input_fp8))

    def slots(self) -> Iterator[Slot]:
        yield from self.first.slots()
        yield from self.down.slots()

    def pack(self) -> None:
        self.first.pack()
        self.down.pack()
