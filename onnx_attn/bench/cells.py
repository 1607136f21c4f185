"""What is computed: the cells of the benchmark, their inputs, and the numbers they must give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from ..arrays import Array
from ..reference import attention

Padding = Literal["none", "ragged", "front"]

# A result further from the reference, as a share of its largest number, is no result of the cell.
TOLERANCE = 1e-5
# Lengths of the batch rows of a padded cell, in turn, as shares of Tv.
LENGTHS = (0.25, 0.5, 0.75, 1.0)
# Up to this many scores the reference computes every row; above, ROWS_CHECKED of each batch row.
ALL_ROWS_BELOW = 1 << 22
ROWS_CHECKED = 24
# Score matrices above this many bytes are not held by several candidates at once.
HUGE_BYTES = 1 << 29


@dataclass(frozen=True)
class Cell:
    """One shape and mode of float32 attention.

    `padding` is the value mask: "ragged" keeps the first positions of each batch row, "front" the
    last ones, as Keras's pad_sequences does by default. `tiny` cells take some 50 us or less where
    differences count, not ratios: they are run in more processes. `fixed`: files are written for
    this one shape.
    """

    mode: str
    batch: int
    Tq: int
    Tv: int
    dim: int
    causal: bool = False
    padding: Padding = "none"
    scores: bool = False
    tiny: bool = False
    fixed: bool = False

    @property
    def shape(self) -> str:
        """batch x Tq x Tv x dim."""
        return f"{self.batch}x{self.Tq}x{self.Tv}x{self.dim}"

    @property
    def name(self) -> str:
        """Mode and shape, as `--cell` takes it."""
        return f"{self.mode} {self.shape}"

    @property
    def huge(self) -> bool:
        """Whether one score matrix is too big to let every candidate hold its own."""
        return 4 * self.batch * self.Tq * self.Tv >= HUGE_BYTES

    @property
    def visible_share(self) -> float:
        """Share of the scores that Keras's output depends on; a fully masked row needs all."""
        mask = value_mask(self)
        if mask is None:
            mask = np.ones((self.batch, self.Tv), np.bool_)
        if not self.causal:
            seen = np.repeat(mask.sum(1)[:, None], self.Tq, 1)
        else:
            seen = np.cumsum(mask, 1)[:, np.minimum(np.arange(self.Tq), self.Tv - 1)]
        return float(np.where(fully_masked(self), self.Tv, seen).mean() / self.Tv)


def _cells() -> tuple[Cell, ...]:
    plain = [Cell("plain", 1, 16, 16, 64, tiny=True)]
    sizes = (
        (32, 128, 64),
        (1, 512, 64),
        (16, 512, 64),
        (4, 2048, 64),
        (1, 4096, 64),
        (1, 2048, 512),
        (1, 16384, 64),
    )
    plain += [Cell("plain", batch, T, T, dim) for batch, T, dim in sizes]
    decode = [
        Cell("decode", 64, 1, 50, 512, tiny=True),
        Cell("decode", 1, 1, 4096, 64, tiny=True),
        Cell("decode ragged", 64, 1, 50, 512, padding="ragged", tiny=True),
    ]
    causal = [Cell("causal", batch, T, T, dim, causal=True) for batch, T, dim in sizes]
    ragged = [
        Cell("ragged", batch, T, T, 64, padding="ragged")
        for batch, T in ((32, 128), (16, 512), (4, 2048))
    ]
    both = [
        Cell("causal ragged", batch, T, T, 64, causal=True, padding="ragged")
        for batch, T in ((16, 512), (4, 2048))
    ]
    rest = [
        Cell("causal front", 16, 512, 512, 64, causal=True, padding="front"),
        Cell("scores", 16, 512, 512, 64, scores=True),
        Cell("causal scores", 16, 512, 512, 64, causal=True, scores=True),
    ]
    fixed = [
        Cell("fixed", 1, 16, 16, 64, tiny=True, fixed=True),
        Cell("fixed", 1, 512, 512, 64, fixed=True),
        Cell("fixed causal", 16, 512, 512, 64, causal=True, fixed=True),
    ]
    return (*plain, *decode, *causal, *ragged, *both, *rest, *fixed)


CELLS = _cells()
# Small enough to run through in about a minute, and every mode is there.
QUICK_CELLS = (
    Cell("plain", 1, 16, 16, 64, tiny=True),
    Cell("plain", 4, 128, 128, 64),
    Cell("fixed", 1, 16, 16, 64, tiny=True, fixed=True),
    Cell("decode", 8, 1, 50, 64, tiny=True),
    Cell("causal", 1, 512, 512, 64, causal=True),
    Cell("ragged", 4, 256, 256, 64, padding="ragged"),
    Cell("causal ragged", 4, 256, 256, 64, causal=True, padding="ragged"),
    Cell("causal front", 4, 64, 64, 64, causal=True, padding="front"),
    Cell("causal scores", 4, 64, 64, 64, causal=True, scores=True),
)


def lengths(cell: Cell) -> Array:
    """Positions that are not padding, per batch row: int64[batch]."""
    shares = np.resize(np.array(LENGTHS), cell.batch)
    return np.maximum(1, (shares * cell.Tv).astype(np.int64))


def value_mask(cell: Cell) -> Array | None:
    """bool[batch, Tv], or None where the cell has no padding."""
    if cell.padding == "none":
        return None
    positions = np.arange(cell.Tv)
    if cell.padding == "front":
        return positions >= (cell.Tv - lengths(cell))[:, None]
    return positions < lengths(cell)[:, None]


def inputs(cell: Cell, alignment: int = 64) -> dict[str, Array]:
    """query, value, key and, with padding, value_mask: the same numbers in every process.

    Queries are scaled by dim ** -0.5, so that scores have unit variance, as after training.
    Each array starts `alignment` bytes behind a multiple of 64, or at one for alignment=64.
    """
    random = np.random.default_rng(7)
    tensors = {
        "query": random.standard_normal((cell.batch, cell.Tq, cell.dim), np.float32)
        * np.float32(cell.dim**-0.5),
        "value": random.standard_normal((cell.batch, cell.Tv, cell.dim), np.float32),
        "key": random.standard_normal((cell.batch, cell.Tv, cell.dim), np.float32),
    }
    mask = value_mask(cell)
    if mask is not None:
        tensors["value_mask"] = mask
    return {name: aligned(tensor, alignment) for name, tensor in tensors.items()}


def aligned(array: Array, alignment: int) -> Array:
    """A copy of `array` whose first byte lies at `alignment` modulo 64."""
    buffer = np.empty(array.nbytes + 128, np.uint8)
    start = -buffer.ctypes.data % 64 + alignment % 64
    copy = buffer[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def checked_rows(cell: Cell) -> Array:
    """Query positions whose results are compared: all, or first, last and some between."""
    if cell.batch * cell.Tq * cell.Tv <= ALL_ROWS_BELOW:
        return np.arange(cell.Tq)
    drawn = np.random.default_rng(3).choice(cell.Tq, ROWS_CHECKED - 6, replace=False)
    edges = (0, 1, 127, 128, cell.Tq // 2, cell.Tq - 1)
    return np.unique(np.concatenate([drawn, np.minimum(edges, cell.Tq - 1)]))


def expected(cell: Cell) -> dict[str, Array]:
    """The reference's output (and attention_scores) at `checked_rows`: float64[batch, rows, ...].

    Where only some rows are computed, causal is said row by row: as a value mask that hides key j
    of row i where j > i.
    """
    tensors = inputs(cell)
    rows = checked_rows(cell)
    query, value, key = (tensors[name] for name in ("query", "value", "key"))
    mask = value_mask(cell)
    if len(rows) == cell.Tq:
        output, weights = attention(query, value, key, value_mask=mask, causal=cell.causal)
    elif not cell.causal:
        output, weights = attention(query[:, rows], value, key, value_mask=mask)
    else:
        seen = np.ones((cell.batch, cell.Tv), np.bool_) if mask is None else mask
        by_row = [
            attention(query[:, [row]], value, key, value_mask=seen & (np.arange(cell.Tv) <= row))
            for row in rows
        ]
        output, weights = (np.concatenate(parts, 1) for parts in zip(*by_row, strict=True))
    return {"output": output, "attention_scores": weights} if cell.scores else {"output": output}


def fully_masked(cell: Cell) -> Array:
    """Rows that may see no key: bool[batch, Tq]."""
    mask = value_mask(cell)
    if mask is None:
        return np.zeros((cell.batch, cell.Tq), np.bool_)
    if not cell.causal:
        return np.repeat(mask.sum(1)[:, None] == 0, cell.Tq, 1)
    last = np.minimum(np.arange(cell.Tq), cell.Tv - 1)
    return np.cumsum(mask, 1)[:, last] == 0


class Errors(NamedTuple):
    """Largest errors as shares of the largest number; inf for a NaN or a wrong shape."""

    of_all: float
    where_keys_are_seen: float


def largest_errors(results: dict[str, Array], cell: Cell, wanted: dict[str, Array]) -> Errors:
    """Errors of `results` at the rows that `wanted`, from `expected`, holds."""
    rows = checked_rows(cell)
    seeing = ~fully_masked(cell)[:, rows]
    worst = Errors(0.0, 0.0)
    for name, reference in wanted.items():
        columns = cell.dim if name == "output" else cell.Tv
        result = results.get(name)
        if result is None or result.shape != (cell.batch, cell.Tq, columns):
            return Errors(np.inf, np.inf)
        error = np.abs(result[:, rows].astype(np.float64) - reference) / np.abs(reference).max()
        error = np.where(np.isnan(error), np.inf, error)
        worst = Errors(
            max(worst.of_all, float(error.max())),
            max(worst.where_keys_are_seen, float(error[seeing].max(initial=0.0))),
        )
    return worst
