"""Embedding and head with the vocabulary split over the ranks.

Legend: T tokens, D hidden size, R rows, V vocabulary.
"""

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F

from ...kernels import ops
from ..parallel import TpGroup
from ..weights.slots import Slot
from .linear import Linear


class VocabSplit:
    """The rank's share of the vocabulary; the last ranks' shares are padded to the same size.

    ids      0 ........ | ......... | ...... V pad
             rank 0       rank 1      rank 2
    """

    def __init__(self, vocab_size: int, tp: TpGroup) -> None:
        self.vocab_size = vocab_size
        self.size = -(-vocab_size // tp.size)
        self.start = min(tp.rank * self.size, vocab_size)
        self.stop = min(self.start + self.size, vocab_size)


class VocabEmbedding:
    """Token ids to vectors.

    Args:
        is_head: the head shares the weight, so it is packed while it is loaded, in `filling`, where that can be.
    """

    def __init__(
        self,
        name: str,
        vocab_size: int,
        hidden_size: int,
        tp: TpGroup,
        *,
        is_head: bool = False,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._name = name
        self._tp = tp
        self._split = VocabSplit(vocab_size, tp)
        size = self._split.size
        self.filling = ops.empty_packed_weight(size, hidden_size, [0], dtype, device) if is_head else None
        self.weight_VD = torch.empty(size if self.filling is None else 0, hidden_size, dtype=dtype, device=device)
        self.weight_VD[self._split.stop - self._split.start :].zero_()
        self._packed: ops.PackedWeight | None = None

    def __call__(self, token_ids_T: torch.Tensor) -> torch.Tensor:
        if self._tp.size == 1:
            return self._rows(token_ids_T)
        local_T = token_ids_T - self._split.start
        elsewhere_T = (local_T < 0) | (local_T >= self._split.size)
        x_TD = self._rows(local_T.masked_fill(elsewhere_T, 0))
        return self._tp.all_reduce(x_TD.masked_fill_(elsewhere_T[:, None], 0))

    def slots(self) -> Iterator[Slot]:
        yield _vocab_slot(self._name, self._split, self.weight_VD, self.filling)

    def read_from(self, packed: ops.PackedWeight) -> None:
        """From now on the weight is there, and no second copy of it here."""
        self._packed, self.filling = packed, None
        self.weight_VD = torch.empty(0)

    def _rows(self, ids_T: torch.Tensor) -> torch.Tensor:
        return F.embedding(ids_T, self.weight_VD) if self._packed is None else self._packed.rows(ids_T)


class VocabHead(Linear):
    """Hidden states to the logits of the whole vocabulary. `tied` shares the embedding's weight."""

    def __init__(
        self,
        name: str,
        vocab_size: int,
        hidden_size: int,
        tp: TpGroup,
        *,
        tied: VocabEmbedding | None,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._name = name
        self._tp = tp
        self._tied = tied
        self._split = VocabSplit(vocab_size, tp)
        num_outputs, first_outputs = (0, None) if tied else (self._split.size, [0])
        super().__init__(
            hidden_size, num_outputs, bias=False, dtype=dtype, device=device, first_outputs=first_outputs
        )
        if tied is not None:
            self.weight_OI, self._filling = tied.weight_VD, tied.filling

    def __call__(self, x_TI: ops.Rows) -> torch.Tensor:
        if self._packed is None:
            assert isinstance(x_TI, torch.Tensor)
            local_RV = F.linear(x_TI, self.weight_OI).float()
        else:
            local_RV = self._packed(x_TI, None, torch.float32)
        return self._tp.all_gather_last(local_RV)[:, : self._split.vocab_size]

    def pack(self) -> None:
        super().pack()
        if self._tied is not None and self._packed is not None and self._packed.reads_rows:
            self._tied.read_from(self._packed)

    def slots(self) -> Iterator[Slot]:
        if self._tied is None:
            yield _vocab_slot(self._name, self._split, self.weight_OI, self._filling)


def _vocab_slot(name: str, split: VocabSplit, weight_VD: torch.Tensor, filling: ops.Panels | None) -> Slot:
    name = f"{name}.weight"
    if filling is None:
        shape = (split.vocab_size, weight_VD.shape[1])
        return Slot.copy(name, shape, weight_VD[: split.stop - split.start], start=split.start)
    shape = (split.vocab_size, filling.num_inputs)
    return Slot(name, shape, partial(_put_padded, filling), 0, split.start, split.stop, memory=filling.packed)


def _put_padded(filling: ops.Panels, part_VD: torch.Tensor) -> None:
    num_lacking = filling.num_outputs - len(part_VD)
    filling.put(0, F.pad(part_VD, (0, 0, 0, num_lacking)) if num_lacking else part_VD)
