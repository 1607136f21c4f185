"""Which rows of a table share a call: like lengths together, within stated limits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..arrays import Array
from ..errors import InputError
from .columns import RaggedColumn, RowNames

# Rows sorted by the length of their values are then sorted by that of their queries, in stretches
# of so many calls: else one long query would pad all queries of its call.
STRETCH = 8


@dataclass(frozen=True)
class Rows:
    """The columns of one table that feed a file; `null` bool[rows] where any of them is."""

    names: RowNames
    query: RaggedColumn
    value: RaggedColumn
    key: RaggedColumn
    null: Array

    @property
    def computed(self) -> Array:
        """bool[rows]: the rows whose result is not known without the file."""
        return ~self.null & (self.query.lengths > 0) & (self.value.lengths > 0)


@dataclass(frozen=True)
class Limits:
    """What bounds a call.

    Args:
        rows: most rows.
        elements: most numbers, where a padded query takes `per_query`, a padded value `per_value`
            and each pair of them `per_pair`.
        batch, Tq, Tv: sizes that the file fixes; filled up by padding.
        pads_values: the file can be told padded values; if not, a call has rows of one Tv.
    """

    rows: int
    elements: int
    per_query: int
    per_value: int
    per_pair: int
    batch: int | None = None
    Tq: int | None = None
    Tv: int | None = None
    pads_values: bool = True

    def elements_of(self, call: Call) -> int:
        """Numbers of one call."""
        pairs = self.per_pair * call.Tq * call.Tv
        return call.batch * (self.per_query * call.Tq + self.per_value * call.Tv + pairs)


@dataclass(frozen=True)
class Call:
    """The rows of one call, by number, and what they are padded to."""

    rows: Array
    batch: int
    Tq: int
    Tv: int


def calls(rows: Rows, limits: Limits) -> Iterator[Call]:
    """The calls that compute `rows`, each of them in one.

    Raises InputError for a row that exceeds limits.elements alone.
    """
    query, value = rows.query.lengths, rows.value.lengths
    most = limits.batch or limits.rows

    def call(taken: list[int]) -> Call:
        batch = limits.batch or len(taken)
        Tq, Tv = limits.Tq or int(query[taken].max()), limits.Tv or int(value[taken].max())
        return Call(np.array(taken), batch, Tq, Tv)

    taken: list[int] = []
    for row in map(int, _order(rows, limits.pads_values, most)):
        apart = taken and not limits.pads_values and value[row] != value[taken[0]]
        over = taken and limits.elements_of(call([*taken, row])) > limits.elements
        if apart or over or len(taken) == most:
            yield call(taken)
            taken = []
        if not taken:
            alone = limits.elements_of(call([row]))
            if alone > limits.elements:
                raise InputError(
                    f"{rows.names.of(row)}: Tq={query[row]}, Tv={value[row]} makes a call of "
                    f"{alone} numbers even alone, and max_elements is {limits.elements}"
                )
        taken.append(row)
    if taken:
        yield call(taken)


def _order(rows: Rows, pads_values: bool, most: int) -> Array:
    """The rows to compute, like lengths side by side."""
    computed = np.flatnonzero(rows.computed)
    query, value = rows.query.lengths, rows.value.lengths
    by_value = computed[np.lexsort((query[computed], value[computed]))]
    if not pads_values:
        return by_value
    stretches = np.arange(len(by_value)) // (most * STRETCH)
    return by_value[np.lexsort((value[by_value], query[by_value], stretches))]
