"""The catalogue on disk: writing it, and comparing a copy with what would be written now."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import ModelError
from ..file.disk import read_file, read_text, write_file, write_text
from ..verify.checksums import CHECKSUMS, checksum_lines
from ..verify.judge import compare, wrong_form
from ..verify.vectors import MODEL, SET_PREFIX, parse_tensor, set_files, tolerance_files
from .entries import CATALOGUE, Entry, case_inputs, expected_outputs
from .readme import readme

README = "README.md"

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
    """Write the catalogue into `folder`; `report` is told each model's name once it is there.

    Test sets of an earlier build are replaced; what `verify` wrote into the README stays. Raises
    ModelError if a file cannot be written.
    """
    try:
        for entry in CATALOGUE:
            _remove_sets(folder / entry.name)
            for name, data in entry_files(entry).items():
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                write_file(path, data)
            report(entry.name)
        write_text(folder / CHECKSUMS, checksum_lines(folder, files_in(folder)))
        text = folder / README
        write_text(text, readme(read_text(text) if text.exists() else ""))
    except OSError as error:
        where = error.filename or folder
        raise ModelError(f"{where} cannot be written: {error.strerror or error}") from error


def _remove_sets(folder: Path) -> None:
    for path in folder.glob(f"{SET_PREFIX}*/*.pb"):
        path.unlink()
    for path in folder.glob(f"{SET_PREFIX}*"):
        path.rmdir()


def files_in(folder: Path) -> list[Path]:
    """The files of the models in `folder`, sorted; neither the README nor the checksums."""
    return sorted(path for path in folder.glob("*/**/*") if path.is_file())


def differences(folder: Path, report: Report) -> list[str]:
    """How `folder` differs from what `build` would write, one line each.

    Expected outputs are compared within the model's tolerance, since NumPy rounds differently on
    different processors; all else byte by byte. Raises ModelError if a file cannot be read.
    """
    found: list[str] = []
    wanted: set[Path] = set()
    for entry in CATALOGUE:
        for name, data in entry_files(entry).items():
            wanted.add(folder / name)
            found += _difference(entry, folder / name, data)
        report(entry.name)
    here = files_in(folder)
    found += [f"{path} is not of the catalogue" for path in here if path not in wanted]
    found += _text_differs(folder / CHECKSUMS, lambda _: checksum_lines(folder, here))
    found += _text_differs(folder / README, readme)
    return found


def _difference(entry: Entry, path: Path, data: bytes) -> Iterator[str]:
    if not path.is_file():
        yield f"{path} is missing"
        return
    here = read_file(path)
    if here == data:
        return
    if not path.name.startswith("output_"):
        yield f"{path} has other bytes"
        return
    (name, got), (wanted_name, wanted) = parse_tensor(here, path), parse_tensor(data, path)
    if name != wanted_name:
        yield f"{path} holds {name}; expected {wanted_name}"
    elif wrong := wrong_form(got, wanted):
        yield f"{path} {wrong}"
    else:
        error, within = compare(got, wanted, entry.tolerance)
        if not within:
            yield f"{path} is off by {error:.2g}"


def _text_differs(path: Path, wanted: Callable[[str], str]) -> Iterator[str]:
    if not path.is_file():
        yield f"{path} is missing"
    elif (text := read_text(path)) != wanted(text):
        yield f"{path} has another text"
