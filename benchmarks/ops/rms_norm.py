"""Cases of `rms_norm` at a model's shapes (see `case.py`)."""

from collections.abc import Iterator

import torch
from nfold.kernels.reference import rms_norm as reference

from .case import Case, Setting, floats


def cases(setting: Setting) -> Iterator[Case]:
    ops, sizes = setting.ops, setting.sizes
    weight = setting.random(sizes.hidden, seed=2)
    for what, T in (("prefill", sizes.num_prefill_tokens), ("decode", sizes.num_decodes)):
        x, residual = (setting.random(T, sizes.hidden, seed=seed) for seed in range(2))
        scratch = residual.clone()
        yield Case(
            f"add_rms_norm, {what}",
            run=lambda x=x, scratch=scratch: ops.add_rms_norm(x, scratch, weight, 1e-5),
            wanted=lambda x=x, residual=residual: reference.add_rms_norm(x, residual.clone(), weight, 1e-5),
            got=lambda x=x, residual=residual: ops.add_rms_norm(x, residual.clone(), weight, 1e-5),
            bytes=4 * x.nbytes,
            tolerance=0.13,  # one place of bfloat16 at 16, which a product of two normal numbers hardly passes
        )

        def apart(x=x, residual=residual) -> tuple[torch.Tensor, ...]:
            normed, _ = ops.add_rms_norm(x, residual.clone(), weight, 1e-5)
            return floats(ops.quantize_rows(normed, setting.fp8))

        yield Case(
            f"add_rms_norm_to_fp8, {what}",
            run=lambda x=x, scratch=scratch: ops.add_rms_norm_to_fp8(x, scratch, weight, 1e-5, setting.fp8),
            wanted=apart,
            got=lambda x=x, residual=residual: floats(
                ops.add_rms_norm_to_fp8(x, residual.clone(), weight, 1e-5, setting.fp8)
            ),
            bytes=x.nbytes * 7 // 2,
        )
