"""The files the tools go over, and the calls that show whether they are still right."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np

from ...configuration import Schedule
from ...layer import Attention
from ...reference import attention
from .tool import Array, Arrays, Call, Case

SMALL = {"batch": 2, "Tq": 7, "Tv": 7, "dim": 8, "value_dim": 8}
# Long enough that "auto" and "tiled" walk in blocks, with a rest.
LONG = {"batch": 1, "Tq": 601, "Tv": 703, "dim": 8, "value_dim": 8}

SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)


def case_names() -> list[str]:
    """Names of the files, as `make_cases` makes them."""
    return [name for name, _, _, _ in _grid()]


def make_cases(folder: Path) -> list[Case]:
    """Export every file to `folder`; fused has no causal form."""
    return [
        _case(folder, name, schedule, masks, causal) for name, schedule, masks, causal in _grid()
    ]


def answer(feeds: Arrays, causal: bool) -> Array:
    """The reference's output: float64[batch, Tq, value_dim]."""
    masks: dict[str, Any] = {name: feeds.get(name) for name in ("query_mask", "value_mask")}
    return attention(feeds["query"], feeds["value"], feeds["key"], causal=causal, **masks)[0]


def _grid() -> list[tuple[str, Schedule, bool, bool]]:
    return [
        (schedule + " masks" * masks + " causal" * causal, schedule, masks, causal)
        for schedule in SCHEDULES
        for masks in (False, True)
        for causal in (False, True)
        if not (causal and schedule == "fused")
    ]


def _case(folder: Path, name: str, schedule: Schedule, masks: bool, causal: bool) -> Case:
    path = folder / f"{name.replace(' ', '-')}.onnx"
    chosen = "both" if masks else "none"
    Attention(causal=causal).export(path, schedule=schedule, masks=chosen)
    calls = tuple(_call(sizes, masks, causal) for sizes in (SMALL, LONG))
    sizes = dict(SMALL)
    if masks:
        for mask, length in (("query_mask", "Tq"), ("value_mask", "Tv")):
            sizes |= {f"{mask}_batch": SMALL["batch"], f"{mask}_{length}": SMALL[length]}
    return Case(name, path, causal, sizes, calls)


def _call(sizes: dict[str, int], masks: bool, causal: bool) -> Call:
    rng = np.random.default_rng(12)

    def tensor(length: str, dim: str) -> Array:
        shape = (sizes["batch"], sizes[length], sizes[dim])
        return rng.standard_normal(shape).astype(np.float32)

    feeds: Arrays = {
        "query": tensor("Tq", "dim"),
        "value": tensor("Tv", "value_dim"),
        "key": tensor("Tv", "dim"),
    }
    if masks:
        for mask, length in (("query_mask", "Tq"), ("value_mask", "Tv")):
            feeds[mask] = rng.random((sizes["batch"], sizes[length])) < 0.7
            # A row without a visible key depends on -1e9, which no float16 file can hold.
            feeds[mask][:, 0] = True
    return Call(feeds, (answer(feeds, causal),))
