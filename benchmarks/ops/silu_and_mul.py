"""Cases of `silu_and_mul` at a model's shapes (see `case.py`)."""

from collections.abc import Iterator

from nfold.kernels.reference import silu_and_mul as reference

from .case import Case, Setting


def cases(setting: Setting) -> Iterator[Case]:
    sizes = setting.sizes
    for what, T in (("prefill", sizes.num_prefill_tokens), ("decode", sizes.num_decodes)):
        x = setting.random(T, 2 * sizes.intermediate)
        yield Case(
            f"silu_and_mul, {what}",
            run=lambda x=x: setting.ops.silu_and_mul(x),
            wanted=lambda x=x: (reference.silu_and_mul(x),),
            got=lambda x=x: (setting.ops.silu_and_mul(x),),
            bytes=x.nbytes * 3 // 2,
            tolerance=0.26,  # two places of bfloat16 at 16, as the reference rounds twice
        )
