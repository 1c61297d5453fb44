"""The official data sets, from files that whoever runs them has: nothing of them comes with nfold."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ...models.errors import ConfigError
from .safe_frame import read_frame
from .samples import SampleSet, joined

# Most tokens of an answer, by the workloads' reference implementations.
OPENORCA_MAX_TOKENS = 1024
GPT_OSS_MAX_TOKENS = 10_240
GPT_OSS_ACCURACY_MAX_TOKENS = 32_768
_TOKEN_COLUMNS = ("tok_input", "input_token_ids", "input_tokens", "tokenized_input")


def read_openorca(path: Path) -> SampleSet:
    """The pickled data frame of 24,576 OpenOrca samples, greedy.

    Raises:
        ConfigError: see `read_frame`, or a row without tokens; names it.
    """
    frame = read_frame(path, [_TOKEN_COLUMNS, ("output", "gt_output")], "OpenOrca file")
    return _sample_set(
        "openorca", path, frame, OPENORCA_MAX_TOKENS, references=[str(text) for text in frame["output"]]
    )


def read_gpt_oss(path: Path, *, accuracy: bool) -> SampleSet:
    """The parquet file (or pickle) of the performance or of the accuracy set, temperature 1.

    Raises:
        ConfigError: see `read_frame`, or a row without tokens; names it.
    """
    columns = [_TOKEN_COLUMNS, *([("ground_truth",), ("dataset",)] if accuracy else [])]
    frame = read_frame(path, columns, "GPT-OSS file")
    return _sample_set(
        "gpt-oss-accuracy" if accuracy else "pubmed-summaries",
        path,
        frame,
        GPT_OSS_ACCURACY_MAX_TOKENS if accuracy else GPT_OSS_MAX_TOKENS,
        temperature=1.0,
        references=[str(text) for text in frame["ground_truth"]] if accuracy else (),
        subsets=[str(name).lower() for name in frame["dataset"]] if accuracy else (),
    )


def read_vbench_prompts(path: Path) -> list[str]:
    """One prompt per line.

    Raises:
        ConfigError: it cannot be read as text, or has no lines.
    """
    try:
        prompts = [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            "VBench prompts", str(path), f"a readable text file, one prompt per line ({error})"
        ) from None
    if not prompts:
        raise ConfigError("VBench prompts", str(path), "it has no prompts; at least one is needed")
    return prompts


def _sample_set(
    name: str,
    path: Path,
    frame: pd.DataFrame,
    max_tokens: int,
    *,
    temperature: float = 0.0,
    references: Sequence[str] = (),
    subsets: Sequence[str] = (),
) -> SampleSet:
    prompts = [_token_ids(path, row, value) for row, value in enumerate(frame[_TOKEN_COLUMNS[0]])]
    tokens, starts, lens = joined(prompts)
    count = len(prompts)
    return SampleSet(
        name=name,
        source=f"{path.name}, {count} samples",
        synthetic=False,
        tokens=tokens,
        starts=starts,
        prompt_lens=lens,
        max_tokens=np.full(count, max_tokens, np.int32),
        seeds=np.arange(count, dtype=np.uint64),
        temperature=temperature,
        references=references,
        subsets=subsets,
    )


def _token_ids(path: Path, row: int, value: object) -> np.ndarray:
    try:
        ids = np.asarray(value)
        fits = ids.ndim == 1 and len(ids) > 0 and ids.dtype.kind in "iu" and int(ids.min()) >= 0
    except (TypeError, ValueError):
        fits = False
        ids = np.zeros(0)
    if not fits:
        raise ConfigError(f"{path.name}, row {row}", str(value)[:40], "token ids from 0 are needed, at least one")
    return ids.astype(np.int32)
