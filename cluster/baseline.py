"""The baseline: the measured profile of one node at saturation, kept as JSON with where and when it was measured.

A baseline is the yardstick of scaling efficiency, so it is used only for what it was measured on: `load_baseline`
refuses one whose weights or engine settings differ and names the difference.
"""

import hashlib
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field, ValidationError

from ..models.engine.simulated.profile import PROFILES
from ..models.errors import CheckpointError, StateError
from .latency import Percentiles
from .ledger import Saturation, StepCurve, Yardstick
from .load_result import StepTimePoint
from .provenance import Provenance
from .record import Record

FORMAT_VERSION = 2
_WHOLE_FILE_BYTES = 64 << 20
_CHUNK_BYTES = 1 << 20
_NUM_CHUNKS = 64

Setting = str | int | float | bool

# Where the weights lie and on which device says nothing of speed; the memory free at start moves a little.
_IGNORED_SETTINGS = ("model_dir", "device")
_LOOSE_SETTINGS = ("num_kv_blocks", "kv_cache_bytes")
_LOOSE_SHARE = 0.1
# Of a simulated engine.
FAULTS = "faults"


class BaselineKey(Record):
    """What a baseline is looked up by.

    Attributes:
        model: name that the model is served by.
        accelerator: `CPU`, or the type that Ray names.
        tp: ranks of a replica.
        workload: name of the load.
    """

    model: str
    accelerator: str
    tp: int = Field(ge=1)
    workload: str

    @property
    def file_name(self) -> str:
        parts = (self.model, self.accelerator, f"tp{self.tp}", self.workload)
        return "_".join(re.sub(r"[^A-Za-z0-9.-]+", "-", part) for part in parts) + ".json"

    def __str__(self) -> str:
        return f"{self.model} on {self.accelerator}, tp {self.tp}, under {self.workload}"


class Baseline(Record):
    """The profile of one node.

    Attributes:
        key: what it is looked up by.
        weights: content hash of what `weights_name` names: a checkpoint, see `hash_weights`, or the profile of a
            simulated accelerator.
        engine: `native`, `simulated`, ...
        settings: the engine's settings as effective.
        node: the node that was measured.
        num_replicas: replicas of the model on that node.
        concurrency: requests kept in flight per replica.
        num_in_flight: requests per replica that its engine held, mean over the window.
        tokens_per_s: output tokens of the whole node, median of `repeats`.
        repeats: output tokens/s of each repeat.
        step_times: measured step times by growing batch; empty when the engine does not tell.
        curve: what was fitted to the engines' steps; None when these were measured at saturation alone, or the
            engine does not tell of them.
        saturation: how one replica worked at saturation; with the curve.
        roofline_tokens_per_s: what the load generator alone reaches, against replicas that compute nothing.
    """

    format_version: int = FORMAT_VERSION
    key: BaselineKey
    weights: str
    weights_name: str = ""
    engine: str
    settings: dict[str, Setting]
    node: str
    num_replicas: int = Field(ge=1)
    concurrency: int = Field(ge=1)
    num_in_flight: float = Field(gt=0)
    tokens_per_s: float = Field(gt=0)
    repeats: list[float] = Field(min_length=1)
    window_s: float
    ttft_s: Percentiles | None
    tpot_s: Percentiles | None
    e2e_s: Percentiles | None
    step_times: list[StepTimePoint]
    curve: StepCurve | None = None
    saturation: Saturation | None = None
    roofline_tokens_per_s: float | None = None
    provenance: Provenance

    @property
    def simulated(self) -> bool:
        return self.engine == "simulated"

    @property
    def spread(self) -> float:
        """(highest - lowest) / median of the repeats."""
        return spread_of(self.repeats)

    @property
    def yardstick(self) -> Yardstick:
        return Yardstick(self.tokens_per_s / self.num_replicas, self.num_in_flight, self.curve, self.saturation)


def spread_of(rates: Sequence[float]) -> float:
    """(highest - lowest) / median."""
    return (max(rates) - min(rates)) / statistics.median_low(rates)


def keep_baseline(baseline: Baseline, home: Path) -> Path:
    """Write `baseline` below `home`; an older one of the same key is replaced. Returns the file."""
    directory = home / "baselines"
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / baseline.key.file_name
    fresh = path.with_suffix(".tmp")
    fresh.write_text(baseline.model_dump_json(indent=2) + "\n")
    fresh.replace(path)
    return path


def load_baseline(key: BaselineKey, home: Path, *, weights: str, settings: Mapping[str, Setting]) -> Baseline:
    """The kept baseline of `key`, if it was measured with these weights and effective engine settings.

    Raises:
        StateError: there is none, it cannot be read, or it was measured with something else; says what differs.
    """
    path = home / "baselines" / key.file_name
    if not path.exists():
        raise StateError(f"no baseline is kept for {key}; measure one with `nfold baseline`")
    try:
        baseline = Baseline.model_validate_json(path.read_text())
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise StateError(f"{path} is damaged at {where or 'its start'}: {problem['msg']}") from error
    differences = differences_from(baseline, weights=weights, settings=settings)
    if differences:
        raise StateError(
            f"the kept baseline of {key} was measured with something else: {'; '.join(differences)}. "
            f"Measure it again with `nfold baseline`"
        )
    return baseline


def differences_from(baseline: Baseline, *, weights: str, settings: Mapping[str, Setting]) -> list[str]:
    """What keeps `baseline` from being the yardstick of these weights and settings, as phrases."""
    found: list[str] = []
    if baseline.format_version != FORMAT_VERSION:
        found.append(f"format version {baseline.format_version}, now {FORMAT_VERSION}")
    if baseline.weights != weights:
        found.append(f"weights {baseline.weights[:12]}, now {weights[:12]}")
    for name in sorted(baseline.settings.keys() | settings.keys()):
        then, now = baseline.settings.get(name), settings.get(name)
        if not _same_setting(name, then, now):
            found.append(f"{name} {then}, now {now}")
    return found


def _same_setting(name: str, then: Setting | None, now: Setting | None) -> bool:
    if name == FAULTS:
        return not then  # what faults a replica has is what its ledger is to tell
    if name in _LOOSE_SETTINGS and isinstance(then, int) and isinstance(now, int):
        return abs(now - then) <= _LOOSE_SHARE * then
    return name in _IGNORED_SETTINGS or then == now


def hash_weights(directory: Path) -> str:
    """SHA-256 over names, sizes and content of config.json and all *.safetensors of a checkpoint.

    Of a file past 64 MiB, 64 chunks of 1 MiB spread evenly stand for the content: that takes a second for any size
    and finds another checkpoint, though not a change of a few bytes.

    Raises:
        CheckpointError: there are no weights.
    """
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{directory} holds no *.safetensors")
    digest = hashlib.sha256()
    for path in [*sorted(directory.glob("config.json")), *files]:
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            if size <= _WHOLE_FILE_BYTES:
                digest.update(file.read())
                continue
            for i in range(_NUM_CHUNKS):
                file.seek((size - _CHUNK_BYTES) * i // (_NUM_CHUNKS - 1))
                digest.update(file.read(_CHUNK_BYTES))
    return digest.hexdigest()


def hash_profile(name: str, directory: Path = PROFILES) -> str:
    """SHA-256 of the profile that a simulated accelerator's steps follow."""
    return hashlib.sha256((directory / f"{name}.json").read_bytes()).hexdigest()
