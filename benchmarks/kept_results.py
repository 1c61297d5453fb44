"""Results that are kept: a program's last line, as a file of `benchmarks/results`."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path


def keep(name: str, line: Mapping[str, object], folder: Path | None) -> None:
    """As `<name>-<date>.json`; without a folder, nothing is kept."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}-{datetime.now(UTC):%Y-%m-%d}.json").write_text(json.dumps(line) + "\n")
