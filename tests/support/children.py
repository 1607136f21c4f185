"""Child processes that start processes of their own: ended with all of them, in time."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path


def run(
    *command: str | os.PathLike[str],
    seconds: float,
    code: int = 0,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: str | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command for at most `seconds`; its exit code must be `code`.

    What is left of its process group is killed.
    """
    with subprocess.Popen(
        [os.fspath(part) for part in command],
        cwd=cwd,
        stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as child:
        try:
            out, err = child.communicate(stdin, timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            out, err = child.communicate()
            raise AssertionError(f"not ended after {seconds} s\n{out}\n{err}") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
    assert child.returncode == code, f"exit code {child.returncode}\n{out}\n{err}"
    return subprocess.CompletedProcess(command, child.returncode, out, err)
