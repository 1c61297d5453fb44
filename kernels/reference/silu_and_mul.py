"""The gated activation of Llama's MLP: silu(gate) * up. Legend: T tokens, I intermediate size."""

import torch
import torch.nn.functional as F


def silu_and_mul(x_T2I: torch.Tensor) -> torch.Tensor:
    gate_TI, up_TI = x_T2I.chunk(2, dim=-1)
    return F.silu(gate_TI).mul_(up_TI)
