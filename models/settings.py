"""Every setting that nfold reads from the environment. No other file reads `os.environ` for settings."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """What the environment may change.

    Attributes:
        home: where nfold keeps state between commands: baselines, run directories (`NFOLD_HOME`).
        ray_auth_token: of Ray clusters that nfold starts (`RAY_AUTH_TOKEN`); None takes the one kept in `home`.
    """

    home: Path
    ray_auth_token: str | None = None

    @classmethod
    def from_environment(cls) -> "Settings":
        return cls(
            home=Path(os.environ.get("NFOLD_HOME", "~/.nfold")).expanduser(),
            ray_auth_token=os.environ.get("RAY_AUTH_TOKEN"),
        )
