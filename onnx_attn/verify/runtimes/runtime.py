"""What a runtime is asked, what it answers, and how it says that it is not there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from ...arrays import Array
from ...configuration import LayerConfig
from ...contract import Contract, LayerFile
from ...errors import OnnxAttnError

Outputs = dict[str, Array]
Report = Callable[[str], None]


class RuntimeMissingError(OnnxAttnError):
    """A runtime is not on this machine: says what is missing and how to get it."""


@dataclass(frozen=True)
class Feed:
    """One test set to feed, `times` over.

    `files` are the set's input files, for runtimes that read them with code of their own;
    `inputs` is what this package reads in them. `training` replaces the input of that name.
    """

    files: tuple[Path, ...]
    inputs: dict[str, Array]
    training: bool | None = None
    times: int = 1

    @property
    def arrays(self) -> dict[str, Array]:
        """The inputs, `training` in its place."""
        changed = {} if self.training is None else {"training": np.array(self.training)}
        return {**self.inputs, **changed}


@dataclass(frozen=True)
class Task:
    """One model file and everything it is to be fed in one session."""

    model: Path
    feeds: tuple[Feed, ...]


class Answer(NamedTuple):
    """What a runtime made of a task: outputs per feed and time, or its error."""

    outputs: list[list[Outputs]]
    error: str | None = None


class ModelFacts(NamedTuple):
    """What decides whether a runtime can run a file."""

    file: LayerFile
    operators: frozenset[str]

    @property
    def config(self) -> LayerConfig:
        """The layer's configuration."""
        return self.file.config

    @property
    def contract(self) -> Contract:
        """The file's inputs and outputs."""
        return self.file.contract

    @property
    def optional_inputs(self) -> list[str]:
        """Inputs that are overridable initializers."""
        return [name for name, spec in self.contract.inputs.items() if spec.optional]


def foreign_limit(facts: ModelFacts) -> str | None:
    """The limit of runtimes that know ONNX's own operators alone."""
    foreign = sorted(name for name in facts.operators if "." in name)
    return f"does not know {', '.join(foreign)}" if foreign else None


def bfloat16_limit(facts: ModelFacts) -> str | None:
    """The limit of bindings that take arrays whose type NumPy or JavaScript must know."""
    if facts.config.floats.tensor == "bfloat16":
        return "its binding takes no bfloat16 arrays"
    return None


class Runtime(Protocol):
    """A program that runs ONNX files."""

    name: str
    title: str

    def start(self, install: bool, report: Report) -> str:
        """Make it ready; the version that will run.

        `install` allows downloads into this package's cache; `report` is told of each.
        Raises RuntimeMissingError if it is not there.
        """
        ...

    def run(self, tasks: Sequence[Task]) -> Iterator[Answer]:
        """One answer per task, in order, each as soon as it is there."""
        ...

    def limit(self, facts: ModelFacts) -> str | None:
        """Why this runtime is known not to give this file's numbers, or None if it must."""
        ...


def one_line(error: object) -> str:
    """An error's message without line breaks."""
    return " ".join(str(error).split())
