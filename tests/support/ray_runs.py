"""Runs of examples/batch/ray_data.py in which something happens, in one Ray; a child of the tests.

    PYTHONPATH=examples/batch python tests/support/ray_runs.py FOLDER RUN...

FOLDER has the sets `small` and `large`. Each RUN leaves FOLDER/RUN.json: what was seen, or the
error that ended it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray_data
from ray.data import DataContext

from batch_sets import write_with_a_null
from onnx_attn import OnnxAttnError

Before = Callable[[int], None]


def noting(notes: Path, before: Before = lambda _: None) -> type[ray_data.Attend]:
    """The stage of the example, which notes its start and the ids of each call as notes/PID.

    `before` is told the number of each call of a process, from 1, before it is computed.
    """
    notes.mkdir()

    class Noting(ray_data.Attend):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self._note = notes / str(os.getpid())
            self._note.touch()
            self._calls = 0

        def __call__(self, table: pa.Table) -> pa.Table:
            self._calls += 1
            before(self._calls)
            result = super().__call__(table)
            with self._note.open("a") as file:
                file.write(json.dumps(table["id"].to_pylist()) + "\n")
            return result

    return Noting


def noted(notes: Path) -> dict[str, list[list[str]]]:
    """By process: the ids of each of its calls."""
    return {
        path.name: [json.loads(line) for line in path.read_text().splitlines()]
        for path in notes.iterdir()
        if path.name.isdigit()
    }


def killed(folder: Path) -> dict[str, Any]:
    """One of two actors kills itself, as the system would, in its third call."""
    notes, mark = folder / "killed.notes", folder / "killed.mark"

    def die_once(call: int) -> None:
        if call == 3:
            try:
                mark.touch(exist_ok=False)
            except FileExistsError:
                return
            os.kill(os.getpid(), signal.SIGKILL)

    attend(folder, "small", "killed", actors=2, stage=noting(notes, die_once))
    return {"processes": noted(notes), "died": mark.exists()}


def stopped(folder: Path) -> dict[str, Any]:
    """A run whose driver is killed, as the system would, once some rows are written."""
    driver = os.getpid()

    def kill_the_driver(call: int) -> None:
        until = time.monotonic() + 60
        while call > 1 and time.monotonic() < until:
            if ids_written(folder / "resumed"):
                os.kill(driver, signal.SIGKILL)
            time.sleep(0.02)

    stage = noting(folder / "stopped.notes", kill_the_driver)
    attend(folder, "small", "resumed", actors=1, stage=stage)
    return {"error": "it came to its end"}


def resumed(folder: Path) -> dict[str, Any]:
    """The run after `stopped`."""
    notes = folder / "resumed.notes"
    written = ids_written(folder / "resumed")
    attend(folder, "small", "resumed", actors=1, stage=noting(notes))
    computed = [row for calls in noted(notes).values() for call in calls for row in call]
    return {"written": written, "computed": computed}


def refused(folder: Path) -> dict[str, Any]:
    """A set whose row 77 of one file holds a null among its vectors."""
    source = next((folder / "small").glob("*.parquet"))
    row = write_with_a_null(source, folder / "refused.data" / "part.parquet", 77)
    try:
        attend(folder, "refused.data", "refused", actors=1, stage=ray_data.Attend)
    except OnnxAttnError as error:
        return {"said": str(error), "id": row}
    return {"said": "nothing"}


def memory(folder: Path) -> dict[str, Any]:
    """Most private memory of the actor, bytes, over its size before the first call."""
    peaks: dict[str, int] = {}
    for size in ("small", "large"):
        note = folder / f"memory.{size}.peak"
        attend(folder, size, f"memory.{size}", actors=1, stage=measuring(note))
        peaks[size] = int(note.read_text())
    return {"peaks": peaks}


def measuring(note: Path) -> type[ray_data.Attend]:
    """The stage of the example, watched by a thread. Blocks of other actors are shared memory."""

    def private() -> int:
        words = Path("/proc/self/status").read_text().split("RssAnon:")[1].split()
        return int(words[0]) << 10

    class Measuring(ray_data.Attend):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self._start, self._peak = private(), 0
            threading.Thread(target=self._watch, daemon=True).start()

        def _watch(self) -> None:
            while True:
                self._peak = max(self._peak, private() - self._start)
                time.sleep(0.002)

        def __call__(self, table: pa.Table) -> pa.Table:
            result = super().__call__(table)
            note.write_text(str(self._peak))
            return result

    return Measuring


def attend(folder: Path, data: str, out: str, actors: int, stage: type[ray_data.Attend]) -> None:
    """`ray_data.attend` over a set of `folder`."""
    ray_data.attend(folder / "attention.onnx", folder / data, folder / out, actors, stage=stage)


def ids_written(out: Path) -> list[str]:
    """Ids of the rows whose files are whole, as Ray keeps them for the next run."""
    return [
        row
        for path in out.with_name(f"{out.name}.done").glob("*.parquet")
        if ".pending" not in path.name
        for row in pq.read_table(path)["id"].to_pylist()
    ]


RUNS = {run.__name__: run for run in (stopped, resumed, killed, refused, memory)}


def main() -> None:
    folder = Path(sys.argv[1])
    # Ray's CPUs are words: two actors and their reader fit on any machine.
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    DataContext.get_current().enable_progress_bars = False
    for name in sys.argv[2:]:
        start = time.monotonic()
        try:
            seen = RUNS[name](folder)
        except Exception:
            seen = {"error": traceback.format_exc()}
        seen["seconds"] = round(time.monotonic() - start, 1)
        (folder / f"{name}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
