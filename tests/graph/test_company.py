"""Promise: files of known sizes, and files between neighbours of known sizes, load and are right.

All of it runs in child processes, since ONNX Runtime has crashed on such files.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SUPPORT = Path(__file__).parents[1] / "support"


def run_in_child(code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(SUPPORT), *filter(None, sys.path)])},
    )
    last = (done.stdout.splitlines() or ["nothing"])[-1]
    assert done.returncode == 0, f"exit {done.returncode} at {last}: {done.stderr[-1500:]}"


def test_random_sizes_fixed_at_export() -> None:
    run_in_child("import fixed_files; fixed_files.check_all(0, 60)")


@pytest.mark.soak
@pytest.mark.parametrize("part", range(10))
def test_2000_files_of_random_sizes_fixed_at_export(part: int) -> None:
    run_in_child(f"import fixed_files; fixed_files.check_all(1000 + {part} * 200, 200)")


@pytest.mark.parametrize("where", ["behind", "before", "make_dim_param_fixed"])
def test_a_causal_file_among_neighbours_of_every_length(where: str) -> None:
    run_in_child(f"import neighbours; neighbours.check_all({where!r}, range(1, 41))")
