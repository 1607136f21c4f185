"""What is made on demand: a Python with one library in it, a folder of npm packages, a program.

They lie in this user's cache, named after what they hold, and appear there whole or not at all.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from .runtime import Report, RuntimeMissingError, one_line

SECONDS_TO_INSTALL = 900


def cache_folder() -> Path:
    """Where environments are kept: ONNX_ATTN_CACHE, or the platform's folder for caches."""
    if given := os.environ.get("ONNX_ATTN_CACHE"):
        return Path(given)
    if os.name == "nt":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData/Local")) / "onnx_attn"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "onnx_attn"


def python_with(requirements: Sequence[str], title: str, install: bool, report: Report) -> Path:
    """The interpreter of a virtual environment that holds exactly `requirements`.

    Raises RuntimeMissingError if it is not there and `install` is False, or cannot be made.
    """
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    key = hashlib.sha256("\n".join([version, *requirements]).encode()).hexdigest()[:12]
    python = Path("Scripts/python.exe" if os.name == "nt" else "bin/python")

    def make(folder: Path) -> None:
        call([sys.executable, "-m", "venv", str(folder)], folder)
        pip = [str(folder / python), "-m", "pip", "install", "--quiet", "--only-binary", ":all:"]
        call([*pip, "--disable-pip-version-check", *requirements], folder)

    wanted = f"pip install {' '.join(repr(r) if '<' in r else r for r in requirements)}"
    return made(f"python-{key}", title, wanted, install, report, make) / python


def node_packages(source: Path, install: bool, report: Report) -> Path:
    """A copy of the programs in `source` with the packages of its lock file beside them.

    Raises RuntimeMissingError as `python_with`, and if Node.js or npm is not there.
    """
    npm = shutil.which("npm")
    if shutil.which("node") is None or npm is None:
        raise RuntimeMissingError("Node.js is not there: install node 20 or later, with npm")
    files = sorted(path for path in source.iterdir() if path.is_file())

    def make(folder: Path) -> None:
        for path in files:
            shutil.copyfile(path, folder / path.name)
        call([npm, "ci", "--no-audit", "--no-fund", "--silent"], folder)

    name = f"node-{digest_of({path.name: path for path in files})}"
    return made(name, "the npm packages", "npm ci", install, report, make)


def digest_of(files: Mapping[str, Path], *others: str) -> str:
    """A short digest of files, by names and bytes, and of whatever else a folder depends on."""
    digest = hashlib.sha256("\0".join(others).encode())
    for name, path in files.items():
        digest.update(name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def made(
    name: str,
    title: str,
    wanted: str,
    install: bool,
    report: Report,
    make: Callable[[Path], None],
) -> Path:
    """The folder `name` of the cache, filled by `make` if it is not there: whole or not at all.

    Raises RuntimeMissingError as `python_with`; `wanted` says what `make` does.
    """
    folder = cache_folder() / name
    if folder.is_dir():
        return folder
    if not install:
        raise RuntimeMissingError(
            f"{title} not installed: run verify without --no-install, which does "
            f"'{wanted}' in {folder}"
        )
    report(f"installing {title}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}.") as temporary:
            made = Path(temporary) / name
            made.mkdir()
            make(made)
            if not folder.is_dir():  # another process may have been faster
                made.rename(folder)
    except OSError as error:
        raise RuntimeMissingError(
            f"{title} cannot be installed: {error.filename or folder}: {error.strerror or error}"
        ) from error
    return folder


def call(command: Sequence[str], folder: Path) -> None:
    """Run a step of `make` in `folder`; raises RuntimeMissingError with its last words."""
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=SECONDS_TO_INSTALL,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeMissingError(
            f"'{' '.join(command[1:])}' did not end within {SECONDS_TO_INSTALL} s"
        ) from error
    if done.returncode:
        said = one_line(done.stdout.decode(errors="replace")[-400:])
        raise RuntimeMissingError(f"'{' '.join(command[1:])}' failed: {said}")
