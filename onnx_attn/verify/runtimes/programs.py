"""Runtimes that are programs in other languages, by a protocol of paths.

`PROGRAM MODEL SET OUT [SET OUT ...]` opens a model once and, for each pair of folders, reads
SET/input_N.pb and writes OUT/output_N.pb. An error is one line on stderr, and an exit code.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ...errors import ModelError
from ..vectors import parse_tensor, tensor_bytes
from .children import SECONDS_PER_TASK, ending
from .runtime import Answer, Feed, Outputs, Task, one_line


def run_programs(
    command: Sequence[str], environment: Mapping[str, str], tasks: Sequence[Task]
) -> Iterator[Answer]:
    """Answers of the program `command`, one process for each task."""
    for task in tasks:
        yield _answer(command, environment, task)


def _answer(command: Sequence[str], environment: Mapping[str, str], task: Task) -> Answer:
    with tempfile.TemporaryDirectory() as temporary:
        results: list[list[Path]] = []
        pairs: list[str] = []
        for number, feed in enumerate(task.feeds):
            folder = Path(temporary) / str(number)
            _write_set(folder / "set", feed)
            results.append([folder / f"out{time}" for time in range(feed.times)])
            for out in results[-1]:
                out.mkdir()
                pairs += [str(folder / "set"), str(out)]
        error = _run([*command, str(task.model.resolve()), *pairs], environment)
        if error is not None:
            return Answer([], error)
        try:
            return Answer([[_read_outputs(out) for out in outs] for outs in results])
        except ModelError as damage:
            return Answer([], one_line(damage))


def _run(command: list[str], environment: Mapping[str, str]) -> str | None:
    """Run `command`; what went wrong, or None."""
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=SECONDS_PER_TASK,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {SECONDS_PER_TASK} s"
    except OSError as error:
        return f"{command[0]} cannot be run: {error.strerror or error}"
    if done.returncode == 0:
        return None
    lines = done.stdout.decode(errors="replace").strip().splitlines()
    said = one_line(lines[-1]) if lines else ""
    # A program that found an error ended by itself: its line says all.
    if said.startswith("error: "):
        return said.removeprefix("error: ")
    return f"{ending(done.returncode)}: {said}" if said else ending(done.returncode)


def _write_set(folder: Path, feed: Feed) -> None:
    folder.mkdir(parents=True)
    # The set's own files, not written anew: reading them is part of what is tested.
    for number, (name, file) in enumerate(zip(feed.inputs, feed.files, strict=True)):
        path = folder / f"input_{number}.pb"
        if name == "training" and feed.training is not None:
            path.write_bytes(tensor_bytes(name, feed.arrays[name]))
        else:
            shutil.copyfile(file, path)


def _read_outputs(folder: Path) -> Outputs:
    files = (folder / f"output_{number}.pb" for number in range(len(list(folder.iterdir()))))
    try:
        return dict(parse_tensor(file.read_bytes(), file) for file in files)
    except OSError as error:
        raise ModelError(f"{error.filename} cannot be read: {error.strerror}") from error
