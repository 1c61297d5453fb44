"""LoadGen's user.conf: what a submitter may set, read with clear errors.

llama2-70b.Server.target_qps = 3650
*.*.min_duration = 1200000
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...models.errors import ConfigError

# Key in the file -> field of LoadGen's TestSettings, and what one unit of the file is in the field's.
KEYS: Mapping[str, tuple[str, float]] = {
    "target_qps": ("target_qps", 1.0),
    "target_latency": ("target_latency", 1e6),
    "min_duration": ("min_duration_ms", 1.0),
    "max_duration": ("max_duration_ms", 1.0),
    "min_query_count": ("min_query_count", 1.0),
    "max_query_count": ("max_query_count", 1.0),
    "performance_sample_count_override": ("performance_sample_count_override", 1.0),
    "ttft_latency": ("ttft_latency", 1e6),
    "tpot_latency": ("tpot_latency", 1e6),
}
_LINE = re.compile(r"^(?P<model>[^\s=]+)\.(?P<scenario>[A-Za-z*]+)\.(?P<key>\w+)\s*=\s*(?P<value>\S+)$")
_SCENARIOS = ("Offline", "Server", "SingleStream", "MultiStream", "*")


@dataclass(frozen=True, slots=True)
class UserConf:
    """The lines of one file.

    Attributes:
        text: of the whole file.
        lines: model, scenario, key and value of each.
    """

    text: str = ""
    lines: tuple[tuple[str, str, str, float], ...] = ()

    def settings(self, model: str, scenario: str) -> dict[str, float]:
        """Key to value for one run; what names it more closely wins, as in LoadGen."""
        found: dict[str, float] = {}
        for wanted in (("*", "*"), ("*", scenario), (model, "*"), (model, scenario)):
            found |= {
                key: value for of_model, of_scenario, key, value in self.lines if (of_model, of_scenario) == wanted
            }
        return found


def parse_user_conf(text: str, name: str = "user.conf") -> UserConf:
    """
    Raises:
        ConfigError: wrong form, unknown scenario or key, a value that is no number; names the line.
    """
    lines: list[tuple[str, str, str, float]] = []
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.partition("#")[0].strip()
        if not line:
            continue
        where = f"{name}, line {number}"
        match = _LINE.match(line)
        if match is None:
            raise ConfigError(
                where, line, "a line reads MODEL.SCENARIO.KEY = VALUE, such as *.Server.target_qps = 10"
            )
        if match["scenario"] not in _SCENARIOS:
            raise ConfigError(where, match["scenario"], f"the scenario must be one of {', '.join(_SCENARIOS)}")
        if match["key"] not in KEYS:
            raise ConfigError(where, match["key"], f"unknown key; known are {', '.join(KEYS)}")
        try:
            value = float(match["value"])
        except ValueError:
            raise ConfigError(where, match["value"], f"{match['key']} must be a number") from None
        if not 0 <= value < float("inf"):
            raise ConfigError(where, match["value"], f"{match['key']} must be a number from 0")
        lines.append((match["model"], match["scenario"], match["key"], value))
    return UserConf(text, tuple(lines))


def read_user_conf(path: Path) -> UserConf:
    """
    Raises:
        ConfigError: it cannot be read, or see `parse_user_conf`.
    """
    try:
        return parse_user_conf(path.read_text(), path.name)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("user.conf", str(path), f"a readable text file ({error})") from None
