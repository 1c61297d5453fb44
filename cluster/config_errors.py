"""Turns pydantic's findings into one ConfigError: the field as the user wrote it, the value, what is right."""

import difflib
import typing
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ..models.errors import ConfigError

Location = tuple[int | str, ...]


def config_error(error: ValidationError, model: type[BaseModel], data: object) -> ConfigError:
    """One error for all that is wrong in `data`, the first fault in front.

    Args:
        error: what pydantic found.
        model: the class that `data` was checked against; names the fields for "did you mean".
        data: what the user wrote.
    """
    faults: dict[str, tuple[object, list[str]]] = {}
    for detail in error.errors(include_url=False):
        location = _location_in(data, detail)
        value = "nothing" if detail["type"] == "missing" else detail["input"]
        _, phrases = faults.setdefault(_dotted(location), (value, []))
        phrases.append(_expected(detail, location, model))
    (field, (value, phrases)), *others = faults.items()
    also = [f"\nalso {other}: got {_short(value)!r}; {' or '.join(more)}" for other, (value, more) in others]
    return ConfigError(field, _short(value), " or ".join(phrases) + "".join(also))


def _short(value: object) -> object:
    """A whole section would drown the message."""
    if isinstance(value, dict | list):
        return f"a {'mapping' if isinstance(value, dict) else 'list'} of {len(value)}"
    return value


def _location_in(data: object, detail: ErrorDetails) -> Location:
    """The part of pydantic's location that is in the user's data: it also names branches of a union."""
    parts: list[int | str] = []
    here: Any = data
    for part in detail["loc"]:
        is_missing_field = isinstance(here, dict) and detail["type"] == "missing"
        try:
            here = here[part]
        except (KeyError, IndexError, TypeError):
            if not is_missing_field:
                break
        parts.append(part)
    return tuple(parts)


def _dotted(location: Location) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return text.removeprefix(".") or "config"


def _expected(detail: ErrorDetails, location: Location, model: type[BaseModel]) -> str:
    match detail["type"]:
        case "extra_forbidden":
            return _did_you_mean(str(location[-1]), list(_section_at(location[:-1], model).model_fields))
        case "missing":
            return "this field is needed"
        case "value_error":
            return detail["msg"].removeprefix("Value error, ")
        case _:
            return detail["msg"].replace("Input should", "should", 1)


def _did_you_mean(name: str, fields: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, fields, n=1)
    guess = f"did you mean {close[0]}? " if close else ""
    return f"no such field; {guess}The fields here are {', '.join(fields)}"


def _section_at(location: Location, model: type[BaseModel]) -> type[BaseModel]:
    """The section of the configuration that stands at a location."""
    for part in location:
        if isinstance(part, str) and part in model.model_fields:  # else a key of a mapping of sections
            model = _section_in(model.model_fields[part].annotation) or model
    return model


def _section_in(annotation: object) -> type[BaseModel] | None:
    """The section inside `list[Section]`, `Section | None` and the like."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_section_in(argument) for argument in typing.get_args(annotation))
    return next((section for section in found if section is not None), None)
