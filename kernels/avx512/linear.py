"""Products with a weight that is packed once. Legend: T rows, I inputs, O outputs, N rows of an embedding."""

import ctypes
from collections.abc import Sequence
from functools import cache

import torch

from .. import huge_pages
from ..fp8_rows import Rows
from . import library

_P, _I, _N = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
PANEL = 64
_UNIT_BYTES = 4


class Products:
    """The library's functions for one type of weights."""

    def __init__(self, compiled: library.Library, dtype: torch.dtype) -> None:
        name = str(dtype).removeprefix("torch.")
        types = (_P, _I, _I, _P, _I, _I, _P, _N, _P, _I, _P, _N)
        self.linear = compiled.function(f"nfold_linear_{name}", *types)
        wide = name if dtype == torch.float32 else f"{name}_float32"
        self.linear_float32 = compiled.function(f"nfold_linear_{wide}", *types)
        self.pack = compiled.function("nfold_pack", _P, _I, _I, _P, _I, _N)
        self.unpack_rows = compiled.function("nfold_unpack_rows", _P, _I, _P, _I, _P, _N)


def _from_a_huge_page_on(num_units: int) -> torch.Tensor:
    """int32 [num_units], unset, in huge pages where the system gives them: reading weights from memory then takes a
    third less time. What is left over behind the last whole page stays in small ones, so none is wasted."""
    memory = torch.empty(num_units + huge_pages.HUGE_PAGE_BYTES // _UNIT_BYTES, dtype=torch.int32)
    offset = -memory.data_ptr() % huge_pages.HUGE_PAGE_BYTES
    units = memory[offset // _UNIT_BYTES :][:num_units]
    huge_pages.advise(units)
    return units


def touch(memories: Sequence[torch.Tensor]) -> None:
    """Have the system give them their pages, all at once on all cores: that may take longer than to fill them, and
    one weight has few huge pages. They are still empty."""
    compiled = library.load()
    if compiled is None or not memories:
        return
    addresses = (_P * len(memories))(*(memory.data_ptr() for memory in memories))
    sizes = (_I * len(memories))(*(memory.nbytes for memory in memories))
    compiled.function("nfold_touch", _P, _P, _I, _N)(addresses, sizes, len(memories), torch.get_num_threads())


@cache
def products(dtype: torch.dtype) -> Products | None:
    """None where there are none for this type, or where oneDNN has matrix units (AMX) that we do not use."""
    compiled = library.load()
    if compiled is None:
        return None
    if dtype == torch.float32 or (dtype == torch.bfloat16 and compiled.has_bfloat16 and not compiled.has_amx):
        return Products(compiled, dtype)
    return None


class Panels:
    """The memory of a weight [O, I] in panels of 64 outputs (see panels.cpp), filled by `put`.

    With `num_sharing` the weight is so many of equal size, one after the other, that have a part of each panel.
    """

    def __init__(
        self,
        num_outputs: int,
        num_inputs: int,
        dtype: torch.dtype,
        pack: "ctypes._NamedFuncPointer",
        num_sharing: int = 1,
    ) -> None:
        """`pack` is the library's function for this type, whose rows must be whole units."""
        self.num_outputs, self.num_inputs, self.dtype = num_outputs, num_inputs, dtype
        self.num_units = num_inputs * dtype.itemsize // _UNIT_BYTES
        self._width, self._outputs_each = PANEL // num_sharing, num_outputs // num_sharing
        num_panels = -(-self._outputs_each // self._width)
        self.packed = _from_a_huge_page_on(num_panels * self.num_units * PANEL)
        self._pack = pack

    def put(self, first: int, weight_OI: torch.Tensor) -> None:
        """Outputs from `first` on, where a panel begins; they fill panels whole, or end with the weight that has a
        part of each."""
        number, first = divmod(first, self._outputs_each)
        width, num_outputs, stop = self._width, len(weight_OI), first + len(weight_OI)
        assert first % width == 0
        assert stop == self._outputs_each or (stop < self._outputs_each and num_outputs % width == 0)
        weight_OI = weight_OI.to(self.dtype).contiguous()
        place = self.packed[first // width * PANEL * self.num_units + number * width :].data_ptr()
        self._pack(weight_OI.data_ptr(), self.num_units, num_outputs, place, width, torch.get_num_threads())

    def _multiply(
        self,
        compute: "ctypes._NamedFuncPointer",
        x_TI: torch.Tensor,
        bias_O: torch.Tensor | None,
        out_dtype: torch.dtype,
        *,
        is_gated: bool,
    ) -> torch.Tensor:
        if x_TI.stride(1) != 1:
            x_TI = x_TI.contiguous()
        assert x_TI.dtype == self.dtype, f"{x_TI.dtype} times {self.dtype}"
        num_rows, num_outputs = x_TI.shape[0], self._outputs_each
        y_TO = torch.empty(num_rows, num_outputs, dtype=out_dtype)
        compute(
            x_TI.data_ptr(),
            x_TI.stride(0),
            num_rows,
            self.packed.data_ptr(),
            self.num_inputs,
            num_outputs,
            None if bias_O is None else bias_O.data_ptr(),
            is_gated,
            y_TO.data_ptr(),
            num_outputs,
            None,  # what comes next is not known here
            torch.get_num_threads(),
        )
        return y_TO


class PanelLinear(Panels):
    """A weight [O, I] in panels. The weight that it was made of may go."""

    reads_rows = True
    input_fp8: torch.dtype | None = None

    def __init__(self, weight_OI: torch.Tensor) -> None:
        num_outputs, num_inputs = weight_OI.shape
        self._allocate(num_outputs, num_inputs, weight_OI.dtype)
        self.put(0, weight_OI)

    @classmethod
    def empty(cls, num_outputs: int, num_inputs: int, dtype: torch.dtype) -> "PanelLinear":
        """To be filled by `put`."""
        self = cls.__new__(cls)
        self._allocate(num_outputs, num_inputs, dtype)
        return self

    def _allocate(self, num_outputs: int, num_inputs: int, dtype: torch.dtype) -> None:
        do = products(dtype)
        assert do is not None, "see takes"
        self._do = do
        super().__init__(num_outputs, num_inputs, dtype, do.pack)

    @staticmethod
    def takes(weight_OI: torch.Tensor) -> bool:
        """Rows must be whole units, and the machine must have the instructions."""
        return PanelLinear.takes_inputs(weight_OI.shape[1], weight_OI.dtype, weight_OI.device)

    @staticmethod
    def takes_inputs(num_inputs: int, dtype: torch.dtype, device: torch.device) -> bool:
        if device.type != "cpu" or num_inputs * dtype.itemsize % _UNIT_BYTES:
            return False
        return products(dtype) is not None

    def __call__(
        self, x_TI: Rows, bias_O: torch.Tensor | None, out_dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """x @ weight.T + bias; `out_dtype` may be float32, where sums of bfloat16 weights are kept as they are."""
        assert isinstance(x_TI, torch.Tensor)
        out_dtype = out_dtype or self.dtype
        compute = self._do.linear if out_dtype == self.dtype else self._do.linear_float32
        return self._multiply(compute, x_TI, bias_O, out_dtype, is_gated=False)

    def rows(self, ids_N: torch.Tensor) -> torch.Tensor:
        """Rows of the weight, as an embedding reads them."""
        x_NI = torch.empty(len(ids_N), self.num_inputs, dtype=self.dtype)
        self._do.unpack_rows(
            self.packed.data_ptr(),
            self.num_units,
            ids_N.contiguous().data_ptr(),
            len(ids_N),
            x_NI.data_ptr(),
            torch.get_num_threads(),
        )
        return x_NI


class GatedPanels(Panels):
    """The weights of a gate and of what it gates, [2 O, I], to be filled by `put`; they share panels."""

    def __init__(self, num_outputs: int, num_inputs: int, dtype: torch.dtype) -> None:
        """`num_outputs` are those of both."""
        do = products(dtype)
        assert do is not None, "see PanelLinear.takes_inputs"
        self._compute = do.linear
        super().__init__(num_outputs, num_inputs, dtype, do.pack, num_sharing=2)

    def __call__(self, x_TI: torch.Tensor) -> torch.Tensor:
        """silu(x @ gate.T) * (x @ gated.T), [T, O], bit for bit as from a product that is stored in between."""
        return self._multiply(self._compute, x_TI, None, self.dtype, is_gated=True)
