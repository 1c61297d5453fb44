"""Every setting that nfold reads from the environment. No other file reads `os.environ` for settings."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """What the environment may change.

    Attributes:
        home: where nfold keeps state between commands: baselines, run directories (`NFOLD_HOME`).
    """

    home: Path

    @classmethod
    def from_environment(cls) -> "Settings":
        return cls(home=Path(os.environ.get("NFOLD_HOME", "~/.nfold")).expanduser())
