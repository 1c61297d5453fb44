"""Data frames out of files that strangers wrote: a pickle can run any code, so nothing but a data frame's own parts
is let in, and each of them is named here."""

import gzip
import pickle
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ...models.errors import ConfigError

# What pandas from 1 to 3 and numpy 1 and 2 write for a frame of texts, numbers and token lists, and nothing else.
_ADMITTED = {
    ("builtins", "bytearray"),
    ("builtins", "slice"),
    ("__builtin__", "bytearray"),
    ("__builtin__", "slice"),
    ("copyreg", "_reconstructor"),
    ("builtins", "object"),
    ("_codecs", "encode"),
    ("pandas", "DataFrame"),
    ("pandas", "Index"),
    ("pandas", "RangeIndex"),
    ("pandas", "Series"),
    ("pandas", "StringDtype"),
    ("pandas.arrays", "ArrowStringArray"),
    ("pandas.arrays", "StringArray"),
    ("pandas.core.frame", "DataFrame"),
    ("pandas.core.series", "Series"),
    ("pandas.core.internals.managers", "BlockManager"),
    ("pandas.core.internals.managers", "SingleBlockManager"),
    ("pandas.core.internals.blocks", "new_block"),
    ("pandas._libs.internals", "_unpickle_block"),
    ("pandas._libs.arrays", "__pyx_unpickle_NDArrayBacked"),
    ("pandas.core.indexes.base", "Index"),
    ("pandas.core.indexes.base", "_new_Index"),
    ("pandas.core.indexes.range", "RangeIndex"),
    ("pandas.core.indexes.numeric", "Int64Index"),
    ("pandas.core.arrays.string_", "StringArray"),
    ("pandas.core.arrays.string_", "StringDtype"),
    ("pandas.core.arrays.string_arrow", "ArrowStringArray"),
    ("pandas.core.arrays.arrow.array", "ArrowExtensionArray"),
    ("pyarrow.lib", "type_for_alias"),
    ("pyarrow.lib", "_restore_array"),
    ("pyarrow.lib", "chunked_array"),
    ("pyarrow.lib", "py_buffer"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
}


class _FrameUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if (module_name, global_name) not in _ADMITTED:
            raise pickle.UnpicklingError(
                f"it holds {module_name}.{global_name}, which is no part of a data frame; nothing of it was run"
            )
        return super().find_class(module_name, global_name)


def read_frame(path: Path, columns: Sequence[Sequence[str]], what: str) -> pd.DataFrame:
    """A data frame from a parquet file or a pickle (gzip or not), by the file's first bytes.

    Args:
        columns: for each wanted column the names that it may have; the frame returned has the first of them.
        what: the data set, for errors.

    Raises:
        ConfigError: no such file, another form, anything in a pickle that is no part of a frame, a missing column.
    """
    frame = _read(path, what)
    for names in columns:
        there = [name for name in names if name in frame.columns]
        if not there:
            got = ", ".join(map(str, frame.columns[:12]))
            raise ConfigError(what, str(path), f"a column {' or '.join(names)} is needed; it has {got}")
        frame = frame.rename(columns={there[0]: names[0]})
    if frame.empty:
        raise ConfigError(what, str(path), "it has no rows; at least one sample is needed")
    return frame


def _read(path: Path, what: str) -> pd.DataFrame:
    if not path.is_file():
        raise ConfigError(what, str(path), "there is no such file")
    with path.open("rb") as file:
        head = file.read(4)
    try:
        if head == b"PAR1":
            return pd.read_parquet(path)
        with path.open("rb") as raw, gzip.open(raw) if head[:2] == b"\x1f\x8b" else raw as file:
            found = _FrameUnpickler(file).load()
    except (pickle.UnpicklingError, EOFError, OSError, zlib.error, ValueError, KeyError, IndexError) as error:
        raise ConfigError(what, str(path), f"a parquet file or a pickled data frame is needed: {error}") from None
    except (AttributeError, ImportError, TypeError, UnicodeDecodeError) as error:
        raise ConfigError(what, str(path), f"its pickle is not one that this pandas can read: {error}") from None
    if not isinstance(found, pd.DataFrame):
        raise ConfigError(what, str(path), f"a data frame is needed; it holds a {type(found).__name__}")
    return found
