"""`nfold history` and `nfold why` on the command line."""

from typing import Annotated

import typer
from rich.console import Console

from ...models.settings import Settings
from ..service import running_service

Name = Annotated[str | None, typer.Option(help="The service; not needed when only one is running.")]
console = Console()


def history(
    last: Annotated[int, typer.Option(min=1, help="How many decisions.")] = 20,
    every: Annotated[bool, typer.Option("--all", help="Also those that changed nothing.")] = False,
    name: Name = None,
) -> None:
    """What the controller decided and predicted, and what came of it."""
    home = Settings.from_environment().home
    state = running_service(home, name)
    from .history import history_directory
    from .history_command import render, tell_head

    console.print(render(tell_head(history_directory(home, state.config.name), last, every)))


def why(name: Name = None) -> None:
    """Why something is pending or did not scale, and what would resolve it."""
    state = running_service(Settings.from_environment().home, name)
    from .why_command import why as explained

    console.print(explained(state.config))
