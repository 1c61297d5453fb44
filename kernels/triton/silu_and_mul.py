"""The gated activation of Llama's MLP: silu(gate) * up. Legend: T tokens, I intermediate size."""

# pyright: reportMissingParameterType=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false
# A kernel is Python in form only: the launch decides what its parameters are.

import torch
import triton
import triton.language as tl

from .tuning import tuning


@triton.jit
def _silu_and_mul(x, y, num_outputs, BLOCK_I: tl.constexpr):
    row = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * BLOCK_I + tl.arange(0, BLOCK_I)
    inside = i < num_outputs
    gate_I = tl.load(x + row * 2 * num_outputs + i, mask=inside, other=0.0).to(tl.float32)
    up_I = tl.load(x + row * 2 * num_outputs + num_outputs + i, mask=inside, other=0.0).to(tl.float32)
    y_I = gate_I / (1.0 + tl.exp(-gate_I)) * up_I
    tl.store(y + row * num_outputs + i, y_I.to(y.dtype.element_ty), mask=inside)


def silu_and_mul(x_T2I: torch.Tensor) -> torch.Tensor:
    x_T2I = x_T2I.contiguous()
    T, num_outputs = x_T2I.shape[0], x_T2I.shape[1] // 2
    y_TI = x_T2I.new_empty(T, num_outputs)
    if T == 0:
        return y_TI
    tuned = tuning()
    grid = (triton.cdiv(num_outputs, tuned.activation_block), T)
    _silu_and_mul[grid](x_T2I, y_TI, num_outputs, BLOCK_I=tuned.activation_block, **tuned.elementwise)
    return y_TI
