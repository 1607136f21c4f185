"""Made inputs for anybody's model: several lengths, and masks of every kind.

Integers stay within the tables they index; padding goes to the masks, and to the ids that a model
compares with to find it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from ..errors import InputError
from .expressions import Known
from .normal import constant
from .scores import parts
from .sites import Site

Feeds = dict[str, np.ndarray[Any, Any]]
MASKS = ("none", "tails", "front", "gaps", "an empty row")
BATCH_WORDS = re.compile(r"batch|^[bn]$|^bs|_b$", re.IGNORECASE)
LENGTH_WORDS = re.compile(r"seq|len|time|token|^[tls]$|width|height", re.IGNORECASE)
THROUGH = frozenset(
    [
        "Cast",
        "Identity",
        "Unsqueeze",
        "Squeeze",
        "Reshape",
        "Slice",
        "Expand",
        "Flatten",
        "Clip",
        "Max",
        "Min",
        "Where",
        "Transpose",
        "Concat",
        "Add",
        "Split",
        "Tile",
        "Mul",
        "Sub",
    ]
)
SHAPES_ONLY = frozenset(["Shape", "Size"])


@dataclass(frozen=True)
class Input:
    """One input of a model and what it is used for.

    table: the length of the shortest table it indexes; pads: the numbers it is compared with;
    masks: whether scores are hidden by it; additive: whether it is added to them as it is.
    """

    name: str
    dtype: ir.DataType
    dims: tuple[int | str, ...]
    table: int | None = None
    pads: tuple[int, ...] = ()
    masks: bool = False
    additive: bool = False


@dataclass(frozen=True)
class Sample:
    """Inputs, and words for them."""

    words: str
    feeds: Feeds = field(repr=False)


class Sampler:
    """Makes inputs for one model."""

    def __init__(self, model: ir.Model, sites: Iterable[Site]) -> None:
        hiding, adding, seeing = _what_masks(sites)
        self.inputs: list[Input] = []
        for value in model.graph.inputs:
            if value.name in model.graph.initializers:
                continue
            name, kind = str(value.name), value.dtype or ir.DataType.FLOAT
            dims = tuple(
                dim if isinstance(dim, int) else str(dim.value or f"{name}.{axis}")
                for axis, dim in enumerate(value.shape or ())
            )
            table, pads = _uses(value)
            floats = kind.is_floating_point()
            masks = value in hiding and (not floats or value not in seeing)
            self.inputs.append(
                Input(name, kind, dims, table, pads, masks, floats and value in adding)
            )
        dims = (dim for given in self.inputs for dim in given.dims)
        self.names = list(dict.fromkeys(dim for dim in dims if isinstance(dim, str)))
        self.roles = {name: self._role(name) for name in self.names}

    @property
    def has_masks(self) -> bool:
        """Whether some input can hide positions."""
        return any(self._pads(given) for given in self.inputs)

    def _role(self, name: str) -> str:
        if BATCH_WORDS.search(name):
            return "batch"
        if LENGTH_WORDS.search(name):
            return "length"
        first = any(given.dims[:1] == (name,) and len(given.dims) > 1 for given in self.inputs)
        later = any(name in given.dims[1:] for given in self.inputs)
        return "batch" if first and not later else "length"

    def sizes(self, batch: int, length: int, at: Mapping[str, int] | None = None) -> dict[str, int]:
        """A size for every named dim. Raises InputError for a name in `at` that no input has."""
        wanted = dict(at or {})
        for name in wanted:
            if name not in self.names:
                known = ", ".join(self.names) or "none"
                raise InputError(f"at: no input has a dim named {name!r}; there are: {known}")
        sizes = {
            name: wanted.get(name, batch if self.roles[name] == "batch" else length)
            for name in self.names
        }
        for name in self.names:  # names like "past + seq", which exporters write
            terms = [term.strip() for term in name.split("+")]
            if name not in wanted and len(terms) > 1:
                known = [sizes.get(term, int(term) if term.isdecimal() else -1) for term in terms]
                if min(known) >= 0:
                    sizes[name] = sum(known)
        return sizes

    def make(self, sizes: Mapping[str, int], mask: str = "none", seed: int = 0) -> Feeds:
        """Inputs of these sizes under a kind of mask."""
        random = np.random.default_rng(seed)
        return {given.name: self._array(given, sizes, mask, random) for given in self.inputs}

    def samples(self, batch: int, length: int, at: Mapping[str, int] | None) -> Iterator[Sample]:
        """Inputs of one size under masks of every kind."""
        sizes = self.sizes(batch, length, at)
        words = ", ".join(f"{name}={size}" for name, size in sizes.items()) or "fixed sizes"
        for mask in MASKS if self.has_masks else MASKS[:1]:
            yield Sample(f"{words}, mask: {mask}", self.make(sizes, mask))

    def _pads(self, given: Input) -> bool:
        return given.masks and (
            given.dtype == ir.DataType.BOOL
            or given.additive
            or given.table is None
            or bool(given.pads)
        )

    def _array(
        self, given: Input, sizes: Mapping[str, int], mask: str, random: np.random.Generator
    ) -> Any:
        shape = [dim if isinstance(dim, int) else sizes[dim] for dim in given.dims]
        dtype = given.dtype.numpy()
        shown = _shown(shape, mask, random)
        if given.dtype == ir.DataType.BOOL:
            return shown if given.masks else np.ones(shape, np.bool_) if shape else np.array(False)
        if given.dtype == ir.DataType.STRING:
            return np.full(shape, "a", dtype=object)
        if given.dtype.is_floating_point():
            if not given.masks:
                return random.standard_normal(shape).astype(dtype)
            if given.additive:
                added = random.standard_normal(shape) if mask == "gaps" else np.zeros(shape)
                return np.where(shown, added, -1e9).astype(dtype)
            return shown.astype(dtype)
        if given.table is not None:
            lowest = 1 if given.table > 2 else 0
            ids = random.integers(lowest, given.table, shape).astype(dtype)
            pads = [pad for pad in given.pads if 0 <= pad < given.table]
            if not pads or not given.masks:
                return ids
            ids[np.isin(ids, pads)] = next(n for n in range(given.table) if n not in pads)
            return np.where(shown, ids, pads[0]).astype(dtype)
        if len(shape) < 2:
            longest = max((size for name, size in sizes.items() if self._long(name)), default=1)
            return random.integers(1, longest + 1, shape).astype(dtype)
        return shown.astype(dtype)

    def _long(self, name: str) -> bool:
        return self.roles[name] == "length"


def _shown(shape: list[int], mask: str, random: np.random.Generator) -> np.ndarray[Any, Any]:
    """True where a position counts: by batch row and position, the same for what lies between."""
    if not shape or 0 in shape:
        return np.ones(shape, np.bool_)
    rows, length = shape[0] if len(shape) > 1 else 1, shape[-1]
    shown = np.ones((rows, length), np.bool_)
    for row in range(rows):
        hidden = length * (row + 1) // (rows + 2)
        if mask == "tails":
            shown[row, length - hidden :] = False
        elif mask == "front":
            shown[row, :hidden] = False
        elif mask == "gaps":
            shown[row] = random.random(length) < 0.7
            shown[row, 0] = True
        elif mask == "an empty row" and row == 0:
            shown[row] = False
    shown = shown.reshape(rows, *[1] * (len(shape) - 2), length) if len(shape) > 1 else shown[0]
    return np.array(np.broadcast_to(shown, shape))


def _what_masks(
    sites: Iterable[Site],
) -> tuple[set[ir.Value], set[ir.Value], set[ir.Value]]:
    """The inputs that biases are made of, those that are one as they are, and those of q, k, v."""
    hiding, adding, seeing = set[ir.Value](), set[ir.Value](), set[ir.Value]()
    for site in sites:
        if site.scores is None or site.product is None or site.sum is None:
            continue
        given = parts(site.scores.bias)
        hiding |= _inputs_of(given)
        for value in given:
            if isinstance(site.scores.bias, Known) or value.dtype == ir.DataType.FLOAT:
                adding |= _inputs_of([value], through=THROUGH - {"Where", "Mul", "Sub"})
        seeing |= _inputs_of(
            [site.product.query.value, site.product.key.value, site.sum.value.value]
        )
    return hiding, adding, seeing


def _inputs_of(values: Iterable[ir.Value], through: frozenset[str] | None = None) -> set[ir.Value]:
    """The model's inputs that values are computed from, not counting their shapes."""
    found, seen, waiting = set[ir.Value](), set[ir.Value](), list(values)
    while waiting:
        value = waiting.pop()
        if value in seen:
            continue
        seen.add(value)
        node = value.producer()
        if node is None:
            if value.is_graph_input() and value.const_value is None:
                found.add(value)
        elif node.op_type not in SHAPES_ONLY and (through is None or node.op_type in through):
            waiting += [v for v in node.inputs if v is not None]
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.GRAPH:
                    for inner in attribute.as_graph():
                        waiting += [v for v in inner.inputs if v is not None]
    return found


def _uses(value: ir.Value) -> tuple[int | None, tuple[int, ...]]:
    """The length of the shortest table an integer input indexes, and what it is compared with."""
    table: int | None = None
    pads: list[int] = []
    seen, waiting = set[ir.Value](), [value]
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        for usage in current.uses():
            node = usage.node
            first = node.inputs[0]
            if node.op_type in ("Gather", "GatherElements") and usage.idx == 1:
                known = first is not None and first.const_value is not None
                if known and first is not None and first.shape is not None:
                    axis = node.attributes.get("axis")
                    size = first.shape[0 if axis is None else axis.as_int()]
                    if isinstance(size, int):
                        table = size if table is None else min(table, size)
            elif node.op_type == "OneHot" and usage.idx == 0:
                depth: Any = constant(node.inputs[1])
                if depth is not None:
                    size = int(depth.reshape(-1)[0])
                    table = size if table is None else min(table, size)
            elif node.op_type in ("Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual"):
                other: Any = constant(node.inputs[1 - usage.idx])
                if (
                    other is not None
                    and other.size == 1
                    and float(other.reshape(-1)[0]).is_integer()
                ):
                    pads.append(int(other.reshape(-1)[0]))
            elif node.op_type in THROUGH:
                waiting += node.outputs
    return table, tuple(dict.fromkeys(pads))
