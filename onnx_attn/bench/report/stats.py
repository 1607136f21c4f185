"""From turns to numbers: medians over processes, differences in pairs, ratios, bounds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

# All threads over one in `probes.Exchange`. Of 2,594 turns in benchmarks/results.json 1,079 took
# 0.55 to 0.65, 1,508 from 0.75 on, 7 between.
FAR = 0.7
# Below this, microseconds are compared by difference: launching nodes is all there is.
TINY_MICROSECONDS = 50.0
# Nothing nearer to 1 than this is told from noise between runs.
LEVEL = (0.97, 1.03)


class Time(NamedTuple):
    """Microseconds: median of the processes' medians, and the quartiles of all turns."""

    median: float
    q1: float
    q3: float


class Best(NamedTuple):
    """The fastest peer that gives the cell's numbers."""

    name: str
    time: Time


def is_far(turn: dict[str, Any]) -> bool:
    """Whether cores exchanged data slowly during a turn, as if they shared no cache."""
    return turn.get("exchange", 0.0) > FAR


def is_all_far(result: dict[str, Any]) -> bool:
    """Whether every turn was one with cores that exchanged data slowly."""
    return bool(result["turns"]) and all(is_far(turn) for turn in result["turns"])


def turns_of(result: dict[str, Any], *, far: bool = False) -> list[dict[str, Any]]:
    """The turns with cores near each other, or far; where there were no near ones, all."""
    chosen = [turn for turn in result["turns"] if is_far(turn) == far]
    return chosen if chosen or far else result["turns"]


def by_process(result: dict[str, Any], *, far: bool = False) -> dict[int, float]:
    """Median of a candidate's turns in each process, microseconds."""
    turns: defaultdict[int, list[float]] = defaultdict(list)
    for turn in turns_of(result, far=far):
        turns[turn["process"]].append(turn["median"])
    return {process: float(np.median(found)) for process, found in turns.items()}


def time_of(result: dict[str, Any] | None, *, far: bool = False) -> Time | None:
    """What a candidate took for a cell; None where it was not timed."""
    turns = [] if result is None else turns_of(result, far=far)
    if result is None or not turns:
        return None
    q1, q3 = (float(q) for q in np.percentile([turn["median"] for turn in turns], [25, 75]))
    return Time(float(np.median(list(by_process(result, far=far).values()))), q1, q3)


def difference(result: dict[str, Any], other: dict[str, Any]) -> Time | None:
    """result - other in microseconds, paired by process."""
    ours, theirs = by_process(result), by_process(other)
    pairs = [ours[process] - theirs[process] for process in ours if process in theirs]
    if not pairs:
        return None
    q1, median, q3 = (float(value) for value in np.percentile(pairs, [25, 50, 75]))
    return Time(median, q1, q3)


class Results:
    """A run's results, asked by name."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data
        self.cells: list[dict[str, Any]] = data.get("cells", [])
        self.headline: str = data["settings"]["headline"]

    def names(self, kind: str) -> list[str]:
        """Candidates of a kind: ours, peer or bound."""
        return [name for name, about in self.data["candidates"].items() if about["kind"] == kind]

    def label(self, name: str) -> str:
        """What the tables call a candidate."""
        return self.data["candidates"][name]["label"]

    def time(self, cell: dict[str, Any], name: str, *, far: bool = False) -> Time | None:
        """What `name` took for `cell`, if it gave the right numbers; with cores near or far."""
        result = cell["results"].get(name)
        if result is None or result["status"] != "ok":
            return None
        return time_of(result, far=far)

    def best_peer(self, cell: dict[str, Any], *, far: bool = False) -> Best | None:
        """The fastest right peer of a cell."""
        timed = ((name, self.time(cell, name, far=far)) for name in self.names("peer"))
        found = [Best(name, time) for name, time in timed if time is not None]
        return min(found, key=lambda best: best.time.median, default=None)

    def bound(self, cell: dict[str, Any]) -> float | None:
        """The faster form of the two MatMuls times the share of scores that count, microseconds."""
        found = [time for name in self.names("bound") if (time := self.time(cell, name))]
        if not found:
            return None
        return min(time.median for time in found) * cell["visible_share"]

    def ratio(self, cell: dict[str, Any], ours: str) -> float | None:
        """Best peer's median over ours: above 1 we are faster."""
        best, time = self.best_peer(cell), self.time(cell, ours)
        return None if best is None or time is None else best.time.median / time.median

    def ratios(self, ours: str) -> Iterator[tuple[dict[str, Any], float]]:
        """Cells with their ratios, where there is one."""
        for cell in self.cells:
            ratio = self.ratio(cell, ours)
            if ratio is not None:
                yield cell, ratio


def geometric_mean(values: list[float]) -> float:
    """exp(mean(log(values)))."""
    return float(np.exp(np.mean(np.log(values))))


def session_adds(data: dict[str, Any]) -> dict[str, float]:
    """Microseconds that AttentionSession.run adds, median over the processes, by masks."""
    return {
        masks: float(np.median([process["ours"] - process["bare"] for process in found]))
        for masks, found in data["session"]["run"].items()
    }


def import_ratio(data: dict[str, Any]) -> float:
    """Import with AttentionSession over import without, medians."""
    without, with_ours = (np.median(found) for found in data["session"]["imports"].values())
    return float(with_ours / without)


def verdict(ratio: float, peer: str) -> str:
    """`best peer / ours` in words: who is faster, and by how much."""
    if LEVEL[0] <= ratio <= LEVEL[1]:
        return f"level with {peer}"
    if ratio > 1:
        return f"{ratio:.2f} times as fast as {peer}"
    return f"slower: {peer} is {1 / ratio:.2f} times as fast"
