"""Run records on disk: one folder, or the same as one zip archive. Every byte is hashed.

RECORD/
    manifest.json     version, SHA-256 of every other file, one hash over all of them
    record.json       RunRecord
    user.conf
    2-nodes/run-1/    LoadGen's logs, distributions.npz
    accuracy/         LoadGen's logs of the accuracy run
"""

import hashlib
import json
import tempfile
import zipfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from ...models.errors import StateError
from .record import RECORD_VERSION, RunRecord

_KIND = "nfold run record"
_MANIFEST = "manifest.json"
_RECORD = "record.json"
_EPOCH = (1980, 1, 1, 0, 0, 0)


def seal(record: RunRecord, directory: Path) -> str:
    """Write record and manifest into `directory`, where the run's files lie already, and the archive beside it.

    Returns:
        The record's hash.
    """
    (directory / _RECORD).write_text(record.model_dump_json(indent=1) + "\n")
    files = {name: _sha256(directory / name) for name in _files(directory)}
    digest = _digest(files)
    manifest = {"kind": _KIND, "version": RECORD_VERSION, "hash": digest, "files": files}
    (directory / _MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    _archive(directory)
    return digest


@contextmanager
def open_record(path: Path) -> Generator[tuple[RunRecord, Path]]:
    """A record, checked, with its folder; an archive is unpacked for the while.

    Raises:
        StateError: no record, of an unknown version, or a byte of it has changed; names the file.
    """
    if path.is_dir():
        yield read_record(path), path
        return
    if not path.is_file():
        raise StateError(f"{path}: there is no such run record")
    with tempfile.TemporaryDirectory() as unpacked:
        try:
            with zipfile.ZipFile(path) as archive:
                archive.extractall(unpacked)  # which keeps every name inside
        except (zipfile.BadZipFile, OSError) as error:
            raise StateError(f"{path} is no archive of a run record: {error}") from None
        yield read_record(Path(unpacked)), Path(unpacked)


def read_record(directory: Path) -> RunRecord:
    """See `open_record`."""
    manifest = _read_manifest(directory)
    version = manifest.get("version")
    if version != RECORD_VERSION:
        raise StateError(
            f"{directory} is a run record of version {version}; this nfold reads version {RECORD_VERSION}. "
            "Use the nfold that wrote it, or a newer one"
        )
    listed = manifest.get("files")
    if not isinstance(listed, dict) or _RECORD not in listed:
        raise StateError(f"{directory}: its manifest is damaged")
    found = {name: _sha256(directory / name) for name in _files(directory)}
    for name in sorted(listed.keys() | found.keys()):
        if name not in found:
            raise StateError(f"{directory}: {name} is missing, so the record cannot be trusted")
        if name not in listed:
            raise StateError(f"{directory}: {name} was added after the record was made, so it cannot be trusted")
        if listed[name] != found[name]:
            raise StateError(f"{directory}: {name} was changed after the record was made, so it cannot be trusted")
    if manifest.get("hash") != _digest(found):
        raise StateError(f"{directory}: its manifest was changed, so the record cannot be trusted")
    try:
        return RunRecord.model_validate_json((directory / _RECORD).read_text())
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise StateError(f"{directory}/{_RECORD} is damaged at {where or 'its start'}: {problem['msg']}") from None


def record_hash(directory: Path) -> str:
    """Of a record that was read."""
    return str(_read_manifest(directory)["hash"])


def archive_path(directory: Path) -> Path:
    """Where the archive of a record lies."""
    return directory.with_name(directory.name + ".zip")


def _read_manifest(directory: Path) -> dict[str, object]:
    path = directory / _MANIFEST
    try:
        manifest = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise StateError(f"{directory} is no run record: its {_MANIFEST} cannot be read ({error})") from None
    if not isinstance(manifest, dict) or manifest.get("kind") != _KIND:
        raise StateError(f"{directory} is no run record: its {_MANIFEST} is of another kind")
    return manifest


def _archive(directory: Path) -> None:
    """The same bytes for the same record."""
    with zipfile.ZipFile(archive_path(directory), "w", zipfile.ZIP_DEFLATED) as archive:
        for name in [_MANIFEST, *_files(directory)]:
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), (directory / name).read_bytes(), zipfile.ZIP_DEFLATED)


def _files(directory: Path) -> list[str]:
    """All but the manifest, and the report that may have been made of them."""
    found = [path.relative_to(directory) for path in directory.rglob("*") if path.is_file()]
    return sorted(str(path) for path in found if str(path) != _MANIFEST and path.parts[0] != "report")


def _digest(files: dict[str, str]) -> str:
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
