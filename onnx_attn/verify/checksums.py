"""SHA256SUMS: which bytes the catalogue's files must have."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from ..errors import ModelError
from ..file.disk import read_file

CHECKSUMS = "SHA256SUMS"


def checksum_lines(folder: Path, paths: Iterable[Path]) -> str:
    """The checksums of `paths`, as `sha256sum --check` reads them from within `folder`."""
    return "".join(
        f"{hashlib.sha256(read_file(path)).hexdigest()}  {path.relative_to(folder).as_posix()}\n"
        for path in paths
    )


def check_complete(folder: Path) -> None:
    """Raise ModelError for a file that SHA256SUMS of `folder` lists and that is not there."""
    sums = folder / CHECKSUMS
    for path in _listed(sums) if sums.is_file() else ():
        if not path.is_file():
            raise ModelError(f"{path} is missing: {sums} lists it")


def check_checksums(folder: Path) -> None:
    """Compare the files of one model with SHA256SUMS beside it or above it, where there is one.

    Raises ModelError for a file that differs, is missing, or is not listed.
    """
    for root in (folder, folder.parent):
        sums = root / CHECKSUMS
        if not sums.is_file():
            continue
        listed = _listed(sums)
        here = {path for path in folder.rglob("*") if path.is_file() and path != sums}
        known = {path for path in listed if path.is_relative_to(folder)}
        for path in sorted(here | known):
            if path not in here:
                raise ModelError(f"{path} is missing: {sums} lists it")
            if path not in known:
                raise ModelError(f"{path} is not listed in {sums}")
            if hashlib.sha256(read_file(path)).hexdigest() != listed[path]:
                raise ModelError(
                    f"{path} is not the file that {sums} lists: it was changed or damaged"
                )


def _listed(sums: Path) -> dict[Path, str]:
    listed: dict[Path, str] = {}
    for number, line in enumerate(read_file(sums).decode(errors="replace").splitlines(), 1):
        match = re.fullmatch(r"([0-9a-f]{64}) [ *](.+)", line)
        if match is None:
            raise ModelError(f"{sums} is damaged: line {number} is not 'hash path'")
        listed[sums.parent / match[2]] = match[1]
    return listed
