"""The race: original and new model in processes of their own, in turns, until the gain is clear."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from ..errors import OnnxAttnError

LEAST_TIME, LEAST_MEMORY = 0.03, 0.20  # the gains worth a rewrite
FEWEST_TURNS, MOST_TURNS = 5, 40
# Seconds one race may take, and a turn of each side at least.
PATIENCE, TURN_SECONDS = 60.0, 0.05


@dataclass(frozen=True)
class Measured:
    """What one model takes.

    load: seconds of processor time; growth: bytes of peak memory in its first run; seconds: a run,
    the median of turns; size: bytes of the file.
    """

    load: float
    growth: int
    seconds: float
    size: int

    def report(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "milliseconds": round(self.seconds * 1000, 3),
            "memory_growth_bytes": self.growth,
            "load_seconds": round(self.load, 3),
            "bytes": self.size,
        }


@dataclass(frozen=True)
class Outcome:
    """Original against new: how often faster, by the quarter, half and three quarters of turns."""

    before: Measured
    after: Measured
    ratios: tuple[float, float, float]

    @property
    def faster(self) -> bool | None:
        """Whether the new model gains LEAST_TIME; None where turns differ too much to tell."""
        low, middle, high = self.ratios
        if low >= 1 + LEAST_TIME:
            return True
        return False if high < 1 + LEAST_TIME else None if low < 1 <= middle else middle > 1.03

    @property
    def lighter(self) -> bool:
        """Whether the new model's memory grows by a fifth less."""
        return self.after.growth <= (1 - LEAST_MEMORY) * self.before.growth

    @property
    def words(self) -> str:
        """The figures."""
        time_words = f"{self.ratios[1]:.2f} times the speed"
        if self.faster is None:
            time_words += f" (not clear: {self.ratios[0]:.2f} to {self.ratios[2]:.2f} by turns)"
        before, after = (measured.growth / 2**20 for measured in (self.before, self.after))
        return f"{time_words}, memory growth {before:.0f} MB before and {after:.0f} after"


class _Racer:
    """A process that runs one model when told to."""

    def __init__(self, model: Path, folder: Path | None, feeds: Path, threads: int) -> None:
        command = [sys.executable, "-m", f"{__package__}.racer", str(model), str(feeds)]
        command += [str(threads), "" if folder is None else str(folder)]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ask(self, question: Any = None) -> Any:
        """The answer to a question; to None, what it has to say of its first run."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        if question is not None:
            self.process.stdin.write(f"{json.dumps(question)}\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            assert self.process.stderr
            words = " ".join(self.process.stderr.read().split())[-400:]
            raise OnnxAttnError(f"a model could not be raced: its process ended. {words}")
        return json.loads(line)

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()


def race(
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    feeds: Mapping[str, np.ndarray[Any, Any]],
    folder: Path | None,
    sizes: tuple[int, int],
    threads: int = 0,
) -> Outcome:
    """Run two models on `feeds` in turns. `sizes`: bytes of their files, weights included."""
    with tempfile.TemporaryDirectory(prefix="onnx-attn-") as scratch:
        where = Path(scratch)
        np.savez(where / "feeds.npz", allow_pickle=False, **dict(feeds))
        racers: list[_Racer] = []
        try:
            firsts: list[dict[str, Any]] = []
            for name, model in (("before", before), ("after", after)):
                (where / f"{name}.onnx").write_bytes(model.SerializeToString())
                racers.append(_Racer(where / f"{name}.onnx", folder, where / "feeds.npz", threads))
                firsts.append(racers[-1].ask())
            turns = _turns(racers, max(first["seconds"] for first in firsts))
        finally:
            for racer in racers:
                racer.stop()
    measured = [
        Measured(first["load"], first["growth"], float(np.median(times)), size)
        for first, times, size in zip(firsts, turns, sizes, strict=True)
    ]
    return Outcome(measured[0], measured[1], _quartiles(turns))


def _turns(racers: Sequence[_Racer], slowest: float) -> list[list[float]]:
    """Seconds of each turn by racer: until the quartiles lie on one side, or patience ends."""
    runs = max(1, int(TURN_SECONDS / max(slowest, 1e-6)))
    turns: list[list[float]] = [[] for _ in racers]
    begin = time.monotonic()
    while len(turns[0]) < MOST_TURNS:
        order = list(enumerate(racers))
        for index, racer in order if len(turns[0]) % 2 else order[::-1]:
            turns[index].append(racer.ask(runs))
        if len(turns[0]) < FEWEST_TURNS:
            continue
        low, _, high = _quartiles(turns)
        if low >= 1 + LEAST_TIME or high < 1 + LEAST_TIME or time.monotonic() - begin > PATIENCE:
            break
    return turns


def _quartiles(turns: list[list[float]]) -> tuple[float, float, float]:
    ratios = np.array(turns[0]) / np.array(turns[1])
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    return float(low), float(middle), float(high)
