"""Products with FP8 weights that are held as bytes. Legend: T rows, I inputs, O outputs."""

import ctypes
from functools import cache

import torch
import torch.nn.functional as F

from ..fp8_rows import Fp8Rows
from . import library
from .linear import Panels

_P, _I, _N = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
_UNIT_INPUTS = 4


class Fp8Products:
    """The library's functions."""

    def __init__(self, compiled: library.Library) -> None:
        types = (_P, _P, _I, _P, _P, _P, _I, _I, _P, _P, _N)
        self.linear = {
            torch.bfloat16: compiled.function("nfold_linear_fp8_bfloat16", *types),
            torch.float32: compiled.function("nfold_linear_fp8_float32", *types),
        }
        self.pack = compiled.function("nfold_pack_fp8", _P, _I, _I, _P, _I, _N)
        self.widen_rows = compiled.function("nfold_widen_rows", _P, _I, _I, _P, _P, _I, _N)
        # What numbers without their sign are in bfloat16: all low bytes, then all high ones.
        numbers = torch.arange(128, dtype=torch.uint8).view(torch.float8_e4m3fn)
        self.table = numbers.to(torch.bfloat16).view(torch.uint8).view(-1, 2).t().contiguous()


@cache
def fp8_products() -> Fp8Products | None:
    """None where the machine lacks bfloat16 or tables of bytes in registers (AVX-512 VBMI)."""
    compiled = library.load()
    if compiled is None or not (compiled.has_bfloat16 and compiled.has_byte_tables):
        return None
    return Fp8Products(compiled)


class Fp8Panels(Panels):
    """e4m3 numbers [O, I] with a scale per output, 1 until it is set; to be filled by `put`. Inputs are padded with
    zeros to whole units, here and in x."""

    def __init__(self, num_outputs: int, num_inputs: int) -> None:
        do = fp8_products()
        assert do is not None, "see takes"
        self._do = do
        self._lacking = -num_inputs % _UNIT_INPUTS
        super().__init__(num_outputs, num_inputs + self._lacking, torch.float8_e4m3fn, do.pack)
        self.scale_O = torch.ones(num_outputs)

    def put(self, first: int, weight_OI: torch.Tensor) -> None:
        if self._lacking:
            weight_OI = F.pad(weight_OI.view(torch.uint8), (0, self._lacking)).view(self.dtype)
        super().put(first, weight_OI)

    @staticmethod
    def takes(device: torch.device) -> bool:
        return device.type == "cpu" and fp8_products() is not None

    def multiply(self, x: Fp8Rows, bias_O: torch.Tensor | None, out_dtype: torch.dtype) -> torch.Tensor:
        """(numbers of x @ numbers.T) * scale of x * scale + bias, each in float32."""
        numbers_TI = x.numbers_RI.contiguous()
        num_rows, num_inputs = numbers_TI.shape
        table, threads = self._do.table.data_ptr(), torch.get_num_threads()
        x_TI = torch.empty(num_rows, self.num_inputs, dtype=torch.bfloat16)
        self._do.widen_rows(
            numbers_TI.data_ptr(), num_rows, num_inputs, table, x_TI.data_ptr(), self.num_inputs, threads
        )
        y_TO = torch.empty(
            num_rows, self.num_outputs, dtype=out_dtype if out_dtype in self._do.linear else torch.float32
        )
        bias_O = None if bias_O is None else bias_O.float()
        self._do.linear[y_TO.dtype](
            x_TI.data_ptr(),
            x.scale_R1.data_ptr(),
            num_rows,
            self.packed.data_ptr(),
            table,
            self.scale_O.data_ptr(),
            self.num_inputs,
            self.num_outputs,
            None if bias_O is None else bias_O.data_ptr(),
            y_TO.data_ptr(),
            threads,
        )
        return y_TO.to(out_dtype)
