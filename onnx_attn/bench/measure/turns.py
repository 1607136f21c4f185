"""Workers taking turns: every candidate in a process of its own, one running at a time."""

from __future__ import annotations

import json
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..candidate import Candidate
from ..report.stats import is_far
from ..tasks import Task, difference_words, expected, tolerance

ANSWER_SECONDS = 300
CAN_PAUSE = hasattr(signal, "SIGSTOP")

Progress = Callable[[str], None]


class RefusedError(Exception):
    """A worker did not do what it was asked: `status` is cannot or failed."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True)
class Turns:
    """How thoroughly something is measured.

    Args:
        threads: threads of every candidate.
        processes: generations of processes for tiny cells.
        big_processes: generations for the others. Inputs lie 64-byte aligned in the first, third,
            ... generation and 16 bytes off in the second, fourth, ..., for all candidates alike.
        rounds: turns every candidate takes in each generation, in a new order each time; one
            less for tiny cells, which have more processes, and one alone for huge ones. While
            cores exchange data slowly (`stats.is_far`), up to as many again.
        seconds: what a turn lasts, longer where three runs take longer.
    """

    threads: int = 1
    processes: int = 8
    big_processes: int = 2
    rounds: int = 3
    seconds: float = 0.1


@dataclass(frozen=True)
class Plan:
    """What is measured in turns.

    Args:
        cells: what is computed.
        candidates: by whom; those that are missing here are left out before.
        turns: how thoroughly.
    """

    cells: Sequence[Task]
    candidates: Sequence[Candidate]
    turns: Turns = field(default_factory=Turns)

    def generations(self, cell: Task) -> int:
        """Processes of each candidate that run `cell`."""
        turns = self.turns
        return turns.processes if cell.tiny else min(turns.processes, turns.big_processes)

    def rounds_of(self, cell: Task) -> int:
        """Turns of each candidate in each generation that runs `cell`."""
        rounds = self.turns.rounds
        return 1 if cell.huge else max(1, rounds - 1) if cell.tiny else rounds

    @property
    def steps(self) -> int:
        """Turns in all, for a progress bar."""
        turns = sum(self.generations(cell) * self.rounds_of(cell) for cell in self.cells)
        return turns * len(self.candidates)


class Worker:
    """A process that answers requests; it may be paused while others are timed."""

    def __init__(self, threads: int) -> None:
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  closed in `close`
        # Unbound, OpenMP's threads may spin on one CPU, each waiting for the other: 8 ms a call.
        settings = {
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "KERAS_BACKEND": "tensorflow",
            "OMP_NUM_THREADS": str(threads),
            "OMP_PROC_BIND": "true",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "onnx_attn.bench.measure.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env={**os.environ, **settings},
        )

    def send(self, request: dict[str, Any]) -> None:
        """Ask, without waiting."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise self._ended() from error

    def receive(self) -> Any:
        """The answer to the request sent before; raises RefusedError if it is none."""
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], ANSWER_SECONDS)
        if not ready:
            self.close()
            raise RefusedError("failed", f"no answer in {ANSWER_SECONDS} s")
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        answer = json.loads(line)
        if "error" in answer:
            raise RefusedError(answer["error"], answer["reason"])
        return answer["ok"]

    def ask(self, request: dict[str, Any]) -> Any:
        """Send and receive."""
        self.send(request)
        return self.receive()

    def pause(self) -> None:
        """Stop the process, so that threads that spin when idle disturb nobody."""
        self._signal("SIGSTOP")

    def resume(self) -> None:
        """Let it go on."""
        self._signal("SIGCONT")

    def _signal(self, name: str) -> None:
        if CAN_PAUSE and self._process.poll() is None:
            self._process.send_signal(getattr(signal, name))

    def _ended(self) -> RefusedError:
        code = self._process.wait()
        self._stderr.seek(0)
        said = self._stderr.read().decode(errors="replace").strip().splitlines()
        last = f": {said[-1][:200]}" if said else ""
        return RefusedError("failed", f"the process ended with code {code}{last}")

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._stderr.close()


@contextmanager
def worker(threads: int) -> Generator[Worker]:
    """A worker that is ended at the end."""
    started = Worker(threads)
    try:
        yield started
    finally:
        started.close()


def run_cells(
    plan: Plan, progress: Progress, keep: Callable[[list[dict[str, Any]]], None] = lambda _: None
) -> list[dict[str, Any]]:
    """Measure every cell by every candidate; `keep` is given the results of each generation.

    Returns for each cell its fields and `results`: by candidate name `status` (ok, differs,
    cannot, failed), `reason`, `error` (of the result, as a share of the largest number) and
    `turns`: median, q1, q3 in microseconds, runs, process, alignment, and exchange, how fast the
    cores handed data over just then (`probes.Exchange`).
    """
    measured: list[dict[str, Any]] = [
        {
            "name": cell.name,
            "visible_share": cell.visible_share,
            **asdict(cell),
            "results": {
                candidate.name: {"status": "ok", "reason": None, "error": None, "turns": []}
                for candidate in plan.candidates
            },
        }
        for cell in plan.cells
    ]
    with tempfile.TemporaryDirectory() as folder:
        for process in range(plan.turns.processes):
            turn = _Generation(plan, process, Path(folder), progress)
            turn.run(list(zip(plan.cells, measured, strict=True)))
            keep(measured)
    return measured


class _Generation:
    """One process per candidate, through all cells that this generation runs."""

    def __init__(self, plan: Plan, process: int, folder: Path, progress: Progress) -> None:
        self._plan = plan
        self._process = process
        self._folder = folder
        self._progress = progress
        self._alignment = 64 if process % 2 == 0 else 16
        self._order = random.Random(process)
        self._workers: dict[str, Worker] = {}
        self._probe: Worker | None = None

    def run(self, cells: list[tuple[Task, dict[str, Any]]]) -> None:
        with ExitStack() as stack:
            if self._plan.turns.threads > 1:
                self._probe = stack.enter_context(worker(self._plan.turns.threads))
            for number, (cell, measured) in enumerate(cells):
                if self._process >= self._plan.generations(cell):
                    continue
                results = measured["results"]
                self._start_missing(stack)
                wanted = self._wanted(number, cell)
                if not cell.huge:
                    self._prepare(self._plan.candidates, cell, wanted, results)
                for _ in range(self._plan.rounds_of(cell)):
                    self._round(cell, wanted, results, self._progress)
                for _ in range(self._plan.rounds_of(cell)):
                    if not any(map(self._lacks_a_near_turn, results.values())):
                        break
                    self._round(cell, wanted, results, lambda _: None)
                for candidate in self._plan.candidates:
                    self._drop(candidate.name)

    def _start_missing(self, stack: ExitStack) -> None:
        for candidate in self._plan.candidates:
            running = self._workers.get(candidate.name)
            if running is None or not running.alive:
                self._workers[candidate.name] = stack.enter_context(
                    worker(self._plan.turns.threads)
                )

    def _wanted(self, number: int, cell: Task) -> str:
        path = self._folder / f"{number}.npz"
        if not path.exists():
            np.savez(path, allow_pickle=False, **expected(cell))
        return str(path)

    def _prepare(
        self,
        candidates: Sequence[Candidate],
        cell: Task,
        wanted: str,
        results: dict[str, dict[str, Any]],
    ) -> None:
        """Load and check, all at once: nothing is timed here."""
        asked: list[Candidate] = []
        for candidate in candidates:
            if results[candidate.name]["status"] in ("cannot", "failed"):
                continue
            running = self._workers[candidate.name]
            running.resume()
            request = {
                "do": "prepare",
                "candidate": candidate.name,
                "cell": asdict(cell),
                "threads": self._plan.turns.threads,
                "alignment": self._alignment,
                "wanted": wanted,
            }
            with _noting(results[candidate.name]):
                running.send(request)
                asked.append(candidate)
        for candidate in asked:
            result = results[candidate.name]
            with _noting(result):
                errors = self._workers[candidate.name].receive()
                error = errors["of_all"]
                result["error"] = max(error, result["error"] or 0.0)
                if not error <= tolerance(cell):
                    result["status"] = "differs"
                    result["reason"] = difference_words(errors, cell)
            self._workers[candidate.name].pause()

    def _lacks_a_near_turn(self, result: dict[str, Any]) -> bool:
        turns = [turn for turn in result["turns"] if turn["process"] == self._process]
        return bool(turns) and all(map(is_far, turns))

    def _round(
        self, cell: Task, wanted: str, results: dict[str, dict[str, Any]], progress: Progress
    ) -> None:
        order = list(self._plan.candidates)
        self._order.shuffle(order)
        before = self._exchange()
        for candidate in order:
            result, running = results[candidate.name], self._workers[candidate.name]
            if cell.huge and running.alive:
                self._prepare([candidate], cell, wanted, results)
            if result["status"] in ("ok", "differs"):
                running.resume()
                with _noting(result):
                    turn = running.ask({"do": "time", "seconds": self._plan.turns.seconds})
                    running.pause()
                    after = self._exchange()
                    about = {
                        "process": self._process,
                        "alignment": self._alignment,
                        "exchange": max(before, after),
                    }
                    before = after
                    result["turns"].append(about | turn)
                running.pause()
            if cell.huge:
                self._drop(candidate.name)
            progress(f"{cell.name}: {candidate.label}")

    def _exchange(self) -> float:
        """How fast cores hand data over: time of all threads over that of one; 0 for one thread."""
        if self._probe is None:
            return 0.0
        self._probe.resume()
        ratio = self._probe.ask({"do": "exchange", "threads": self._plan.turns.threads})
        self._probe.pause()
        return round(ratio, 4)

    def _drop(self, name: str) -> None:
        running = self._workers[name]
        if not running.alive:
            return
        running.resume()
        running.ask({"do": "drop"})
        running.pause()


@contextmanager
def _noting(result: dict[str, Any]) -> Generator[None]:
    """A refusal becomes the result's status and reason: it is shown, and the others go on."""
    try:
        yield
    except RefusedError as refused:
        result["status"], result["reason"] = refused.status, str(refused)
