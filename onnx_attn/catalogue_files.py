"""The catalogue on disk: writing it, and comparing a copy with what would be written now."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

from .catalogue import CATALOGUE, Entry, case_inputs, expected_outputs
from .errors import ModelError
from .vectors import SET_PREFIX, set_files, tolerance_files

CHECKSUMS = "SHA256SUMS"
README = "README.md"
MODEL = "model.onnx"

Report = Callable[[str], None]


def entry_files(entry: Entry) -> dict[str, bytes]:
    """Every file of one model, by its path below the catalogue."""
    files = {MODEL: entry.model().SerializeToString(deterministic=True)}
    files |= tolerance_files(entry.tolerance)
    for number in range(len(entry.cases)):
        inputs = case_inputs(entry, number)
        for name, data in set_files(inputs, expected_outputs(entry, inputs)).items():
            files[f"{SET_PREFIX}{number}/{name}"] = data
    return {f"{entry.name}/{name}": data for name, data in files.items()}


def build(folder: Path, report: Report) -> None:
    """Write the catalogue into `folder`; `report` is called with each model's name once it is there.

    Test sets of an earlier build are replaced. Raises ModelError if a file cannot be written.
    """
    try:
        for entry in CATALOGUE:
            _remove_sets(folder / entry.name)
            for name, data in entry_files(entry).items():
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            report(entry.name)
        (folder / CHECKSUMS).write_text(checksums(folder, catalogue_paths(folder)))
    except OSError as error:
        where = error.filename or folder
        raise ModelError(f"{where} cannot be written: {error.strerror or error}") from error


def _remove_sets(folder: Path) -> None:
    for path in folder.glob(f"{SET_PREFIX}*/*.pb"):
        path.unlink()
    for path in folder.glob(f"{SET_PREFIX}*"):
        path.rmdir()


def catalogue_paths(folder: Path) -> list[Path]:
    """The files of the models in `folder`, sorted; neither the README nor the checksums."""
    return sorted(path for path in folder.glob("*/**/*") if path.is_file())


def checksums(folder: Path, paths: Iterable[Path]) -> str:
    """Lines that `sha256sum --check` reads."""
    return "".join(
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder).as_posix()}\n"
        for path in paths
    )
