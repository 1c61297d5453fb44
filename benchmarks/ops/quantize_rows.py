"""Cases of `quantize_rows` at a model's shapes (see `case.py`)."""

from collections.abc import Iterator

from nfold.kernels.reference import fp8 as reference

from .case import Case, Setting, floats


def cases(setting: Setting) -> Iterator[Case]:
    ops, sizes = setting.ops, setting.sizes
    # The interpreter rounds FP8 wrongly; a real GPU must bring the reference's numbers.
    tolerance = 0.0 if setting.device.type == "cuda" else 1e9
    for what, T in (("prefill", sizes.num_prefill_tokens), ("decode", sizes.num_decodes)):
        x = setting.random(T, sizes.hidden)
        yield Case(
            f"quantize_rows, {what}",
            run=lambda x=x: ops.quantize_rows(x, setting.fp8),
            wanted=lambda x=x: floats(reference.quantize_rows(x, setting.fp8)),
            got=lambda x=x: floats(ops.quantize_rows(x, setting.fp8)),
            bytes=x.nbytes * 3 // 2,
            tolerance=tolerance,
        )
