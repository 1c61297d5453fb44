"""Cases of `silu_and_mul` at a model's shapes (see `case.py`)."""

from collections.abc import Iterator

from nfold.kernels.reference import silu_and_mul as reference

from .case import Case, Setting, floats


def cases(setting: Setting) -> Iterator[Case]:
    ops, sizes = setting.ops, setting.sizes
    for what, T in (("prefill", sizes.num_prefill_tokens), ("decode", sizes.num_decodes)):
        x = setting.random(T, 2 * sizes.intermediate)
        yield Case(
            f"silu_and_mul, {what}",
            run=lambda x=x: ops.silu_and_mul(x),
            wanted=lambda x=x: (reference.silu_and_mul(x),),
            got=lambda x=x: (ops.silu_and_mul(x),),
            bytes=x.nbytes * 3 // 2,
            tolerance=0.26,  # two places of bfloat16 at 16, as the reference rounds twice
        )
        yield Case(
            f"silu_and_mul_to_fp8, {what}",
            run=lambda x=x: ops.silu_and_mul_to_fp8(x, setting.fp8),
            wanted=lambda x=x: floats(ops.quantize_rows(ops.silu_and_mul(x), setting.fp8)),
            got=lambda x=x: floats(ops.silu_and_mul_to_fp8(x, setting.fp8)),
            bytes=x.nbytes * 5 // 4,
        )
