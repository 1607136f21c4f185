"""What a candidate is: someone who computes a cell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal, NamedTuple

from ..arrays import Array

Kind = Literal["ours", "peer", "bound", "original"]


class CannotError(Exception):
    """A candidate has no way to say a cell; the message is the reason shown in the tables."""


class Prepared(NamedTuple):
    """A cell made ready: `run()` computes it once, `arrays(result)` are its outputs by name."""

    run: Callable[[], Any]
    arrays: Callable[[Any], dict[str, Array]]


# (task, inputs, threads); a task is a Cell, or for candidates of whole models a Whole.
Prepare = Callable[[Any, dict[str, Array], int], Prepared]


@dataclass(frozen=True)
class Candidate:
    """One way to compute cells.

    `prepare(cell, tensors, threads)` raises CannotError where the candidate has no way to say the
    cell. `packages` are the distributions it needs; each is (names, any of which will do).
    """

    name: str
    label: str
    kind: Kind
    prepare: Prepare
    packages: tuple[tuple[str, ...], ...] = ()

    @property
    def missing(self) -> str | None:
        """Why the candidate cannot run here, or None."""
        for names in self.packages:
            if not any(installed(name) for name in names):
                return f"{names[0]} is not installed: pip install 'onnx_attn[bench]'"
        return None


def installed(distribution: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
