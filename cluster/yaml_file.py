"""Reads YAML with errors that a user can act on."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any, cast

import yaml

from ..models.errors import ConfigError


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML takes the last of two equal keys in silence; here they are an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key.value!r} stands twice", problem_mark=key.start_mark
                )
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else "")
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: the file cannot be read, is not YAML (names the line), or holds no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError("config file", str(path), f"cannot be read: {reason}") from None
    try:
        data = yaml.load(text, _UniqueKeyLoader)
    except yaml.MarkedYAMLError as error:
        raise _yaml_error(path, text, error) from None
    except yaml.YAMLError as error:
        raise ConfigError(str(path), "text that is not YAML", str(error)) from None
    if not isinstance(data, dict):
        raise ConfigError(str(path), data, "should hold fields, such as `models:`")
    return cast(dict[str, Any], data)


def _yaml_error(path: Path, text: str, error: yaml.MarkedYAMLError) -> ConfigError:
    mark = error.problem_mark or error.context_mark
    assert mark is not None
    lines = text.splitlines()
    line = lines[mark.line].strip() if mark.line < len(lines) else ""
    reason = " ".join(part for part in (error.context, error.problem) if part)
    return ConfigError(f"{path}, line {mark.line + 1}, column {mark.column + 1}", line, f"not YAML: {reason}")
