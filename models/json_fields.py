"""JSON objects read field by field, with errors that name file and field."""

import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from .errors import CheckpointError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class JsonFields:
    """One JSON object with the place it came from, for errors that name file and field."""

    path: Path
    values: dict[str, Any]
    prefix: str = ""

    @classmethod
    def read(cls, path: Path) -> "JsonFields":
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise CheckpointError(f"{path}: not JSON: {error}") from error
        if not isinstance(values, dict):
            raise CheckpointError(f"{path}: expected a JSON object, got {type(values).__name__}")
        return cls(path, values)

    def error(self, field: str, value: object, expected: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {self.prefix}{field}: got {value!r}; {expected}")

    def has(self, field: str) -> bool:
        return self.values.get(field) is not None

    def get(self, field: str, kind: type[T], default: T | None = None) -> T:
        value = self.values.get(field)
        if value is None:
            if default is None:
                raise self._missing(field)
            return default
        if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
            raise self.error(field, value, f"expected {kind.__name__}")
        return value

    def positive(self, field: str, default: int | None = None) -> int:
        value = self.get(field, int, default)
        if value < 1:
            raise self.error(field, value, "expected a whole number of at least 1")
        return value

    def number(self, field: str, default: float | None = None) -> float:
        value = self.get(field, float | int, default)  # pyright: ignore[reportArgumentType]
        if value <= 0:
            raise self.error(field, value, "expected a number over 0")
        return float(value)

    def part(self, field: str) -> "JsonFields":
        return JsonFields(self.path, self.get(field, dict), f"{self.prefix}{field}.")

    def _missing(self, field: str) -> CheckpointError:
        close = difflib.get_close_matches(field, self.values, n=1)
        hint = f" (there is {self.prefix}{close[0]}: misspelt?)" if close else ""
        return CheckpointError(f"{self.path}: {self.prefix}{field}: missing{hint}")
