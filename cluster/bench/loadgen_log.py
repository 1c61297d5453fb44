"""LoadGen's detail log: lines of JSON behind a mark."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...models.errors import EngineError

_MARK = ":::MLLOG "
DETAIL = "mlperf_log_detail.txt"
SUMMARY = "mlperf_log_summary.txt"
ACCURACY = "mlperf_log_accuracy.json"

Scalar = int | float | str | bool


@dataclass(frozen=True, slots=True)
class LoadgenLog:
    """What one run's log says.

    Attributes:
        values: the last value of each key.
        errors: what LoadGen calls errors.
        warnings: and what it warns of.
    """

    values: Mapping[str, Scalar]
    errors: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def valid(self) -> bool:
        """LoadGen's verdict, and no error beside it."""
        return self.values.get("result_validity") == "VALID" and not self.errors

    def number(self, *keys: str) -> float | None:
        """The first of these keys that the log has a number for."""
        for key in keys:
            value = self.values.get(key)
            if isinstance(value, int | float) and not isinstance(value, bool):
                return float(value)
        return None


def read_log(directory: Path) -> LoadgenLog:
    """
    Raises:
        EngineError: there is none, or a line of it is not what LoadGen writes.
    """
    path = directory / DETAIL
    values: dict[str, Scalar] = {}
    errors: list[str] = []
    warnings: list[str] = []
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise EngineError(f"LoadGen left no log: {error}") from None
    for line in lines:
        if not line.startswith(_MARK):
            continue
        try:
            entry = json.loads(line.removeprefix(_MARK))
            key, value, metadata = entry["key"], entry["value"], entry["metadata"]
        except (ValueError, KeyError) as error:
            raise EngineError(f"{path}: not a line of LoadGen's: {line[:80]} ({error})") from None
        if metadata.get("is_error"):
            errors.append(str(value))
        elif metadata.get("is_warning"):
            warnings.append(str(value))
        if isinstance(value, Scalar):
            values[key] = value
    return LoadgenLog(values, tuple(errors), tuple(warnings))
