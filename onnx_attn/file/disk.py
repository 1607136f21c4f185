"""Bytes from and to disk: read with a clear error, written whole or not at all.

Every file that the package reads or writes goes through here; what fails is a ModelError.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import sys
from collections.abc import Generator
from pathlib import Path

from ..errors import InputError, ModelError

if sys.platform != "win32":
    import fcntl


def as_path(path: object) -> Path:
    """`path` as a Path; raises InputError for anything that is no path."""
    try:
        return Path(os.fsdecode(path))  # pyright: ignore[reportArgumentType]
    except TypeError as error:
        raise InputError(
            f"path: expected a str or a Path; received {type(path).__name__}"
        ) from error


def read_file(path: object, fix: str = "", limit: int | None = None) -> bytes:
    """The bytes of the file at `path`.

    Args:
        path: a str or a Path.
        fix: what to do where there is no such file.
        limit: the most bytes that are read.

    Raises ModelError if it is missing, no file, larger than `limit`, or cannot be read.
    """
    where = as_path(path)
    data = _read(where, -1 if limit is None else limit + 1, fix)
    if limit is not None and len(data) > limit:
        raise ModelError(f"{where} is over {limit >> 20} MiB: refused")
    return data


def read_start(path: object, count: int) -> bytes:
    """The first `count` bytes of the file at `path`; raises ModelError as `read_file`."""
    return _read(as_path(path), count, "")


def _read(where: Path, count: int, fix: str) -> bytes:
    try:
        # Reading a pipe could wait for ever, and a device could never end.
        if where.exists() and not where.is_file():
            raise ModelError(f"{where} is no file, but a {_kind(where)}")
        with where.open("rb") as file:
            return file.read(count)
    except FileNotFoundError as error:
        raise ModelError(f"{where} does not exist. {fix}".rstrip(" .")) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ModelError(f"{where} cannot be read: {_reason(error)}") from error


def read_text(path: object) -> str:
    """The text of a UTF-8 file; raises ModelError as `read_file`, or if it is no such text."""
    try:
        return read_file(path).decode()
    except UnicodeDecodeError as error:
        raise ModelError(f"{as_path(path)} is damaged: it is no UTF-8 text") from error


def write_text(path: object, text: str) -> Path:
    """As `write_file`, `text` in UTF-8."""
    return write_file(path, text.encode())


def write_file(path: object, data: bytes) -> Path:
    """Write `data` to `path`, whole or not at all; returns the path.

    The bytes go to a temporary file beside `path` that then takes its name in one step, so a
    reader sees the old file or the new one, even if the process is killed or the disk is full.
    A temporary file that a killed process left behind is removed by the next write to `path`.
    Where `path` is a link, the file it points at is written. A device, pipe or socket is refused:
    there is no whole or not at all.

    Raises ModelError if the file cannot be written.
    """
    given = as_path(path)
    try:
        # Asked of the name given: /dev/stdout leads to names that are not there.
        if given.exists() and not given.is_file():
            raise ModelError(
                f"{given} cannot be written: it is a {_kind(given)}. Give the name of a file"
            )
        # A link keeps its name and its target gets the bytes, as with open(path, "wb").
        target = Path(os.path.realpath(given))
        _remove_leftovers(target)
        with _temporary_beside(target) as (temporary, handle):
            _write_all(handle, data)
            with contextlib.suppress(FileNotFoundError):
                os.chmod(temporary, stat.S_IMODE(target.stat().st_mode))
            if sys.platform == "win32":
                os.close(handle)  # Windows renames no open file
            os.replace(temporary, target)
        _sync_folder(target.parent)
    except FileNotFoundError as error:
        raise ModelError(f"{given} cannot be written: there is no folder {given.parent}") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{given} cannot be written: {_reason(error)}") from error
    return given


def _write_all(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]
    os.fsync(handle)


@contextlib.contextmanager
def _temporary_beside(target: Path) -> Generator[tuple[Path, int]]:
    """A new locked file in the folder of `target`, removed unless it has been renamed."""
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_BINARY", 0)
    while True:
        temporary = target.with_name(f"{_prefix(target)}{os.urandom(8).hex()}.part")
        handle = os.open(temporary, flags, 0o666)
        if _locked(handle) and temporary.exists():
            break
        # Another export took the file, not locked yet, for a leftover.
        os.close(handle)
    try:
        yield temporary, handle
    finally:
        with contextlib.suppress(OSError):
            os.close(handle)
        temporary.unlink(missing_ok=True)


def _locked(handle: int) -> bool:
    """Whether this process now holds the file's lock, which the system drops when it dies.

    Windows needs none: there an open file cannot be removed.
    """
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # a file system without locks: nothing can be told apart, nothing is removed
    return True


def _remove_leftovers(target: Path) -> None:
    """Remove temporary files of `target` whose writer is dead."""
    pattern = re.compile(re.escape(_prefix(target)) + r"[0-9a-f]{16}\.part")
    for leftover in target.parent.iterdir():
        if not pattern.fullmatch(leftover.name):
            continue
        try:
            if sys.platform == "win32":
                leftover.unlink()
                continue
            handle = os.open(leftover, os.O_RDWR)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                leftover.unlink()
            finally:
                os.close(handle)
        except OSError:
            continue  # still being written, already gone, or another user's


def _prefix(target: Path) -> str:
    # File names end at 255 bytes.
    return f".{target.name[:50]}."


def _sync_folder(folder: Path) -> None:
    """Make the new name survive a power cut, where the system can."""
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        pass  # some file systems cannot: the file is whole all the same
    finally:
        os.close(handle)


def _kind(path: Path) -> str:
    if path.is_dir():
        return "folder"
    return "device, pipe or socket"


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
