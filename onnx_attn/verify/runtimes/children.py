"""Runtimes in a process of their own: a job goes in as JSON, answers come back line by line.

A process first says that it is ready, so that a runtime which cannot start is told from one that
dies of a model. The latter takes only that model with it: the rest go to a new process.
"""

from __future__ import annotations

import base64
import json
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .runtime import Answer, Outputs, Task, one_line

SECONDS_PER_TASK = 120


def run_children(command: Sequence[str], tasks: Sequence[Task]) -> Iterator[Answer]:
    """Answers of the program `command`, called with the paths of a job and a results file."""
    pending = list(tasks)
    while pending:
        answers = _run_child(command, pending)
        yield from answers
        pending = pending[len(answers) :]


def _run_child(command: Sequence[str], tasks: Sequence[Task]) -> list[Answer]:
    """Answers of one process, at least one: that of the task it died at, if it died.

    All of them, the same, if it could not start.
    """
    with tempfile.TemporaryDirectory() as folder:
        job, results, noise = (Path(folder) / name for name in ("job", "results", "noise"))
        job.write_text(
            json.dumps([_task_json(task, Path(folder), n) for n, task in enumerate(tasks)])
        )
        results.touch()
        with noise.open("wb") as output:
            death = _wait([*command, str(job), str(results)], output, len(tasks))
        # What follows the last line break is a line that the process did not live to end.
        lines = results.read_text().split("\n")[:-1]
        last = one_line(noise.read_bytes().decode(errors="replace")[-500:])
    answers = [_answer(json.loads(line)) for line in lines[1:]]
    if len(answers) < len(tasks):
        died = Answer([], f"{death}: {last}" if last else death)
        answers += [died] * (1 if lines else len(tasks))
    return answers


def _wait(command: list[str], output: Any, tasks: int) -> str:
    """Run `command`; how it ended, in words."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=SECONDS_PER_TASK * tasks,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {SECONDS_PER_TASK * tasks} s"
    return ending(done.returncode)


def ending(code: int) -> str:
    """How a process ended, in words."""
    if code < 0:
        return f"the process died of signal {-code}"
    return f"the process ended with exit code {code}"


def _task_json(task: Task, folder: Path, number: int) -> dict[str, Any]:
    feeds: list[dict[str, Any]] = []
    for feed in task.feeds:
        arrays = folder / f"{number}-{len(feeds)}.npz"
        np.savez(arrays, **feed.arrays)  # pyright: ignore[reportArgumentType]
        feeds.append(
            {
                "files": [str(path.resolve()) for path in feed.files],
                "arrays": str(arrays),
                "training": feed.training,
                "times": feed.times,
            }
        )
    return {"model": str(task.model.resolve()), "feeds": feeds}


def _answer(line: dict[str, Any]) -> Answer:
    if "error" in line:
        return Answer([], one_line(line["error"]))
    return Answer([[_outputs(time) for time in feed] for feed in line["outputs"]])


def _outputs(encoded: dict[str, dict[str, Any]]) -> Outputs:
    return {
        name: np.frombuffer(base64.b64decode(array["data"]), array["dtype"]).reshape(array["shape"])
        for name, array in encoded.items()
    }
