"""The ledger for the terminal: `nfold ledger`, from the observer's JSON. Needs no connected process."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import httpx
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..models.errors import ConfigError, StateError
from .ledger import Ledger
from .waterfall import waterfall_svg

Json = dict[str, Any]
By = Literal["pool", "node", "replica"]

TIMEOUT_S = 5.0
REFRESH_S = 1.0
# Parts of a model that are shown, those that lose most.
MAX_PARTS = 24


def fetch(url: str) -> Json:
    """The observer's models by name.

    Raises:
        StateError: it does not answer.
    """
    try:
        answer = httpx.get(url, timeout=TIMEOUT_S, trust_env=False)
        answer.raise_for_status()
    except httpx.HTTPError as error:
        raise StateError(f"the observer at {url} does not answer: {error}") from None
    return answer.json()["models"]


def watch(url: str, model: str | None, by: By | None, console: Console) -> None:
    """Show it anew each second, until interrupted. An observer that is away for a while is said to be."""
    with Live(console=console, screen=console.is_terminal, auto_refresh=False) as live:
        while True:
            try:
                shown = render(fetch(url), model, by)
            except StateError as error:
                shown = Text(str(error), style="yellow")
            live.update(shown, refresh=True)
            time.sleep(REFRESH_S)


def render(models: Json, model: str | None = None, by: By | None = None) -> RenderableType:
    """All models, or one; and its parts.

    Raises:
        StateError: there is no such model.
    """
    if model is not None and model not in models:
        raise StateError(
            f"no model named {model!r} is known to the observer; there is {', '.join(models) or 'none'}"
        )
    parts: list[RenderableType] = []
    for name, entry in models.items():
        if model in (None, name):
            parts += [_title(name, entry), *_windows(entry), *_parts(entry, by)]
    return Group(*parts)


def check_by(by: str | None) -> By | None:
    """
    Raises:
        ConfigError: these are no parts.
    """
    for known in ("pool", "node", "replica"):
        if by == known:
            return known
    if by is not None:
        raise ConfigError("by", by, "must be pool, node or replica")
    return None


def draw(models: Json, model: str, path: Path) -> None:
    """The model's longest window as an SVG.

    Raises:
        StateError: there is no such model, or no ledger of it.
    """
    entry = models.get(model)
    if entry is None or not entry["ledgers"]:
        raise StateError(f"there is no ledger of {model!r}; see `nfold ledger`")
    window = entry["ledgers"][max(entry["ledgers"], key=float)]
    path.write_text(waterfall_svg(ledger_of(window["model"]), model, simulated=entry["simulated"]))


def ledger_of(told: Json) -> Ledger:
    """Out of the observer's JSON."""
    losses = dict(told["losses"])
    losses.pop("unexplained")
    return Ledger(
        window_s=told["window_s"],
        measured=told["measured"],
        baseline=told["baseline"],
        columns=losses,
        saturated=told["saturated"],
        hole_s=told["hole_s"],
    )


def _title(name: str, entry: Json) -> Text:
    simulated = " (SIMULATED: no tokens are computed)" if entry["simulated"] else ""
    return Text(f"{name}{simulated}", style="bold")


def _windows(entry: Json) -> list[RenderableType]:
    if not entry["ledgers"]:
        why = "no ledger yet" if entry["baselines"] else "no ledger: no baseline; measure one with `nfold baseline`"
        return [Text(why, style="yellow")]
    ledgers = {seconds: ledger_of(window["model"]) for seconds, window in entry["ledgers"].items()}
    table = Table(box=None, padding=(0, 3, 0, 0))
    table.add_column("tokens/s, and share of the baselines")
    for seconds in ledgers:
        table.add_column(_window_name(float(seconds)), justify="right")
    _add(table, "sum of baselines", ledgers, lambda ledger: f"{ledger.baseline:,.0f}")
    _add(table, "measured", ledgers, lambda ledger: _rate(ledger.measured, ledger), "green")
    for column in next(iter(ledgers.values())).losses:

        def lost(ledger: Ledger, column: str = column) -> str:
            return _rate(ledger.losses[column], ledger)

        is_lost = any(abs(ledger.share(column)) >= 0.0005 for ledger in ledgers.values())
        _add(table, f"  {column}", ledgers, lost, "yellow" if is_lost else "dim")
    _add(table, "scaling efficiency", ledgers, _verdict, "bold")
    if any(ledger.hole_s > 0.0 for ledger in ledgers.values()):
        _add(table, "not accounted for", ledgers, lambda ledger: f"{ledger.hole_s:.0f} s", "yellow")
    return [table]


def _parts(entry: Json, by: By | None) -> list[RenderableType]:
    """The parts of the shortest window, those that lose most first."""
    if by is None or not entry["ledgers"]:
        return []
    window = entry["ledgers"][min(entry["ledgers"], key=float)]
    found = sorted(((name, ledger_of(told)) for name, told in window[f"{by}s"].items()), key=_least_gap)
    table = Table(box=None, padding=(0, 3, 0, 0))
    table.add_column(by)
    table.add_column("tokens/s", justify="right")
    table.add_column("of baseline", justify="right")
    table.add_column("lost most to")
    for name, ledger in found[:MAX_PARTS]:
        share = ledger.measured / ledger.baseline if ledger.baseline > 0.0 else 0.0
        table.add_row(name, f"{ledger.measured:,.0f}", f"{share:.1%}", _worst(ledger))
    if len(found) > MAX_PARTS:
        table.add_row(f"... and {len(found) - MAX_PARTS} more", "", "", "")
    return [table]


def _least_gap(part: tuple[str, Ledger]) -> tuple[float, str]:
    return -part[1].gap, part[0]


def _worst(ledger: Ledger) -> str:
    column = max(ledger.losses, key=lambda name: ledger.losses[name])
    share = ledger.share(column)
    return f"{column} {share:.1%}" if share >= 0.0005 else ""


def _add(
    table: Table, name: str, ledgers: dict[str, Ledger], cell: Callable[[Ledger], str], style: str = ""
) -> None:
    table.add_row(name, *(cell(ledger) for ledger in ledgers.values()), style=style)


def _rate(rate: float, ledger: Ledger) -> str:
    share = rate / ledger.baseline if ledger.baseline > 0.0 else 0.0
    return f"{rate:,.0f}  {share:6.1%}"


def _verdict(ledger: Ledger) -> str:
    if ledger.efficiency is None:
        return f"room for {ledger.headroom or 0.0:,.0f}/s"
    return f"{ledger.efficiency:.1%}"


def _window_name(seconds: float) -> str:
    return f"{seconds:g} s" if seconds < 60 else f"{seconds / 60:g} min"
