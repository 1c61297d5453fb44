"""The rows of a step's outputs, as they come together. Legend: R rows, K top alternatives."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .protocol import F32, I32, U8, U64, FinishReason


class OutputRows(NamedTuple):
    """`StepOutputs` without its account, field by field."""

    request_ids: U64  # [R]
    token_ids: I32  # [R]
    finish: U8  # [R]
    logprobs: F32  # [R]
    top_ids: I32  # [R, K]
    top_logprobs: F32  # [R, K]

    @classmethod
    def none(cls) -> "OutputRows":
        return cls.errors([], 0)

    @classmethod
    def errors(cls, request_ids: Sequence[int], num_top: int) -> "OutputRows":
        """One row without a token for each request that can never be served, with K = `num_top`."""
        R = len(request_ids)
        return cls(
            request_ids=np.array(request_ids, np.uint64),
            token_ids=np.full(R, -1, np.int32),
            finish=np.full(R, FinishReason.ERROR, np.uint8),
            logprobs=np.full(R, np.nan, np.float32),
            top_ids=np.full((R, num_top), -1, np.int32),
            top_logprobs=np.full((R, num_top), np.nan, np.float32),
        )

    def and_errors(self, request_ids: Sequence[int]) -> "OutputRows":
        """These rows, then those of `errors`."""
        if not request_ids:
            return self
        errors = OutputRows.errors(request_ids, self.top_ids.shape[1])
        return self._make(np.concatenate(pair) for pair in zip(self, errors, strict=True))
