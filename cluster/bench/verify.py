"""`nfold verify`: a record's measurement again, on the service that this process is connected to."""

from collections.abc import Callable
from pathlib import Path

from ..config import NfoldConfig
from .bench import run_bench
from .order import order_of
from .record import RunRecord
from .settings import Value
from .verdict import Judgement, judge_records

Progress = Callable[[str], None]


def verify(
    there: RunRecord,
    config: NfoldConfig,
    home: Path,
    model: str,
    *,
    repeats: int | None,
    data: Path | None,
    margin: float,
    out: Path | None,
    progress: Progress,
) -> tuple[Judgement, Path]:
    """
    Returns:
        The verdict, and the folder of the new record.

    Raises: as `order_of` and `run_bench`.
    """
    here, directory = run_bench(config, home, model, order_of(there, repeats=repeats, data=data), out, progress)
    return judge_records(_comparable(there), _comparable(here), margin), directory


def _comparable(record: RunRecord) -> RunRecord:
    """Without the rate among LoadGen's settings: it is the runs' own, which are held against each other."""
    rates = ("server_target_qps", "offline_expected_qps")
    settings: dict[str, Value] = {
        name: value for name, value in record.loadgen.settings.items() if name not in rates
    }
    return record.model_copy(update={"loadgen": record.loadgen.model_copy(update={"settings": settings})})
