"""Damaged files: opened and run in child processes, no crash, no hang, no exception but ours."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import mutations

A_FILE = 5.0  # seconds; one takes some milliseconds, a file that hangs takes for ever


def open_all(folder: Path) -> Counter[str]:
    """What came of opening and running each file of `folder` in a child process.

    A crash or a hang ends the child: the file is named and a new child goes on behind it.
    """
    came: Counter[str] = Counter()
    waiting = sorted(path.name for path in folder.iterdir())
    while waiting:
        names = waiting[:500]
        child = subprocess.Popen(
            [sys.executable, mutations.__file__, str(folder), names[0], names[-1]],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            said, trouble = child.communicate(timeout=60 + A_FILE * len(names) / 10)
            ended = f"crashed with {child.returncode}"
        except subprocess.TimeoutExpired:
            child.kill()
            said, trouble = child.communicate()
            ended = "hung"
        answers = [line.split(" ", 1) for line in said.splitlines()]
        for name, *answer in answers:
            came[answer[0] if answer else f"{ended}: {name}"] += 1
        if "raised" in came:
            raise AssertionError(trouble[-2000:])
        assert answers, f"the child said nothing: {trouble[-2000:]}"
        waiting = waiting[len(answers) :]
    return came


def write_mutations(folder: Path, count: int, seed: int) -> Path:
    for number, data in enumerate(mutations.mutations(count, seed)):
        (folder / f"{number:05}").write_bytes(data)
    return folder


def test_whole_files_run(tmp_path: Path) -> None:
    for number, data in enumerate(mutations.catalogue()):
        (tmp_path / f"{number}").write_bytes(data)
    assert open_all(tmp_path) == {mutations.RAN: len(mutations.catalogue())}


def test_broken_files(tmp_path: Path) -> None:
    came = open_all(write_mutations(tmp_path, 300, seed=1))
    assert set(came) == {mutations.RAN, mutations.REFUSED}
    assert came.total() == 300
    assert came[mutations.REFUSED] > 150


@pytest.mark.soak
def test_5000_broken_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    came = open_all(write_mutations(tmp_path, 5000, seed=2))
    with capsys.disabled():
        sys.stdout.write(f"\nbroken files: {came.total()}: {dict(came)}\n")
    assert set(came) == {mutations.RAN, mutations.REFUSED}
    assert came.total() == 5000


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import os; os.abort()", "crashed with -6"),
        ("raise KeyError('x')", "KeyError"),
    ],
)
def test_this_test_can_fail(
    code: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child that dies on a file, or raises what is not ours, is seen."""
    script = tmp_path / "child.py"
    folder = tmp_path / "files"
    folder.mkdir()
    for name in "abc":
        (folder / name).write_bytes(name.encode())
    body = Path(mutations.__file__).read_text()
    script.write_text(
        body.replace(
            "    try:\n        with AttentionSession",
            f"    if data == b'b': {code}\n    try:\n        with AttentionSession",
        )
    )
    monkeypatch.setattr(mutations, "__file__", str(script))
    if "KeyError" in found:
        with pytest.raises(AssertionError, match=found):
            open_all(folder)
    else:
        assert open_all(folder) == Counter({"refused": 2, f"{found}: b": 1})


def test_mutations_are_the_same_each_time() -> None:
    first, second = (list(mutations.mutations(12, seed=3)) for _ in range(2))
    assert first == second
    assert len(set(first)) == 12
    np.testing.assert_array_less(0, [len(data) for data in mutations.catalogue()])
