"""examples/batch/ray_data.py with a real Ray: no row lost, none twice, the plain loop's bits.

Needs the extra test-ray; a stage of its own in CI, of about a minute on two cores.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import children
from batch_sets import EXAMPLE, check_written, example

pytestmark = pytest.mark.ray

ROOT = Path(__file__).resolve().parents[2]
RUNS = ROOT / "tests" / "support" / "ray_runs.py"
SMALL, LARGE, BLOCK = 2_000, 20_000, 256
MB = 2**20


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A set of 2,000 rows in 16 small files, one ten times as large, and what a loop makes of one.

    Close to the root: Ray keeps sockets there, whose names may be 107 characters long.
    """
    made = Path(tempfile.mkdtemp(prefix="ray"))
    try:
        for name, rows in (("small", SMALL), ("large", LARGE)):
            example("make_data.py", made / name, "--rows", str(rows), "--files", "16")
        example("plain.py", made / "small", made / "plain")
        yield made
    finally:
        shutil.rmtree(made)


@pytest.fixture(scope="module")
def environment(folder: Path) -> dict[str, str]:
    return {
        "PYTHONPATH": str(EXAMPLE),
        "RAY_TMPDIR": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def ray_data(
    environment: dict[str, str], *arguments: str | Path, code: int = 0, seconds: float = 120
) -> Any:
    """examples/batch/ray_data.py with a Ray of its own."""
    return example("ray_data.py", *arguments, code=code, seconds=seconds, environment=environment)


@pytest.fixture(scope="module")
def seen(folder: Path, environment: dict[str, str]) -> dict[str, Any]:
    """What `ray_runs` saw in each of its runs."""
    names = ("resumed", "killed", "refused", "memory")
    command = (sys.executable, RUNS, folder)
    children.run(*command, "stopped", code=-signal.SIGKILL, seconds=120, environment=environment)
    children.run(*command, *names, seconds=300, environment=environment)
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in names}


def test_the_command_writes_what_a_plain_loop_writes(
    folder: Path, environment: dict[str, str]
) -> None:
    out = folder / "command"
    done = ray_data(environment, folder / "small", out, "--actors", "1", "--cpus", "2")
    assert done.stdout.splitlines()[-1].startswith(f"{SMALL} rows computed in ")
    check_written(out, folder / "plain")
    # 16 small files are blocks of 256 rows, not one of all.
    sizes = [pq.read_metadata(path).num_rows for path in out.glob("*.parquet")]
    assert max(sizes) <= BLOCK
    assert len(sizes) >= SMALL / BLOCK


def test_a_killed_actor_loses_no_row_and_doubles_none(folder: Path, seen: dict[str, Any]) -> None:
    found = seen["killed"]
    assert "error" not in found, found["error"]
    assert found["died"]
    assert len(found["processes"]) == 3, "two actors, and one in place of the dead one"
    check_written(folder / "killed", folder / "plain")


def test_blocks_go_to_both_actors(seen: dict[str, Any]) -> None:
    calls = seen["killed"]["processes"].values()
    assert sum(len(each) > 0 for each in calls) >= 2


def test_a_run_that_was_stopped_goes_on_where_it_was(folder: Path, seen: dict[str, Any]) -> None:
    found = seen["resumed"]
    assert "error" not in found, found["error"]
    written, computed = set(found["written"]), set(found["computed"])
    assert 0 < len(written) < SMALL
    assert not written & computed
    assert len(written) + len(found["computed"]) == SMALL
    check_written(folder / "resumed", folder / "plain")


def test_memory_of_an_actor_is_bounded_at_ten_times_the_data(seen: dict[str, Any]) -> None:
    found = seen["memory"]
    assert "error" not in found, found["error"]
    peaks = found["peaks"]
    # 20,000 rows are 220 MB of vectors; allocators keep some.
    assert peaks["large"] < peaks["small"] + 8 * MB, peaks


def test_a_row_that_is_refused_is_named(seen: dict[str, Any]) -> None:
    found = seen["refused"]
    assert "error" not in found, found["error"]
    line = f"column 'value', row 77 (id {found['id']!r}): holds a null instead of a vector"
    assert found["said"] == line


def test_more_actors_than_cpus_are_an_error_not_a_standstill(
    folder: Path, environment: dict[str, str]
) -> None:
    arguments = (folder / "small", folder / "none", "--actors", "2", "--cpus", "2")
    done = ray_data(environment, *arguments, code=2, seconds=60)
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: 2 actors of 1 CPU and 1 CPU to read and write need 3 CPUs")
    assert not (folder / "none").exists()
