"""Results that are kept: a program's last line, as a file of `benchmarks/results`."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path


def kept(name: str, folder: Path | None) -> Path | None:
    """The latest file that `keep` made of this name; None when there is none."""
    found = [] if folder is None else sorted(folder.glob(f"{name}-[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9].json"))
    return found[-1] if found else None


def keep(name: str, line: Mapping[str, object], folder: Path | None) -> Path | None:
    """As `<name>-<date>.json`, which is returned; without a folder, nothing is kept."""
    if folder is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{datetime.now(UTC):%Y-%m-%d}.json"
    path.write_text(json.dumps(line) + "\n")
    return path
