"""The stage: a table of ragged rows in, the same table with their attention out."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays import Array
from ..configuration import numpy_dtype
from ..contract import TensorSpec
from ..errors import InputError, OnnxAttnError
from ..file.disk import as_path, read_file
from ..file.metadata import read_metadata
from ..file.protobuf import metadata_of
from ..session import AttentionSession
from .calls import Call, Limits, Rows, calls
from .columns import (
    Layout,
    RaggedColumn,
    RowNames,
    arrow,
    column_index,
    read_column,
    write_column,
    write_matrices,
)


class AttendBatch:
    """Attention for every row of a table, as a callable that engines can send to workers.

    Rows of like length are put together, padded, masked with value_mask and run in one call of an
    `AttentionSession`; padding leaves no trace in the result. The session is opened at the first
    call, in the process that calls: what is pickled is these arguments alone.

    Args:
        model: path of a file that `Attention.export` wrote, or its bytes. A path must name the
            file on every machine; bytes travel with the stage.
        query: name of the column of queries, `list<fixed_size_list<float>[dim]>` (read without
            a copy), `list<list<float>>`, or their large_list kinds: Tq vectors a row.
        value: name of the column of values, Tv vectors of value_dim a row; None takes the
            queries (self-attention).
        key: name of the column of keys, Tv vectors of dim a row; None takes the values.
        output: name of the new column: Tq vectors of value_dim a row. It is a list or large_list
            as the query column is, of lists as the value column has them.
        scores: name of a second new column for the attention scores, Tq lists of Tv numbers a
            row; None leaves them out. Needs a file exported with return_attention_scores=True.
        rows: most rows of one call.
        threads: threads inside an operator; None takes all this process may use.
        row_id: column whose value messages name beside the row's number, where there is one.
        cast: take columns of any float type and round their numbers to the file's. A bfloat16
            file needs it, as Arrow has no such type: its output is float32, no digit lost.
        max_elements: most numbers of one call: padded query, value, key, output, and the scores
            where they come out or the file is dense. Fewer rows are put together to keep to it,
            and a row that alone exceeds it is an error.
        max_length: longest Tq or Tv taken; None takes every length that max_elements allows.
        device: "cpu", "cuda", ... as in `AttentionSession`.

    The rule for rows that are not ordinary:
        a null in query, value or key: a null comes out;
        an empty query: an empty list comes out;
        an empty value: Tq vectors of zeros come out, as Keras gives for Tv = 0;
        a null inside a row, as a vector or a number: an error that names the row.

    A file without value_mask cannot tell padding: there only rows of one Tv share a call. Fixed
    dims of the file are filled up where a mask can say so. A file with a bias is run without one,
    a file with heads is refused. All other columns, the order of the rows and the metadata stay.
    The same table gives the same bits; in another table a row may stand beside others, be padded
    to another length, and differ in the last bit.

    Raises:
        ModelError: the model is missing, broken or not ours.
        InputError: an argument is no possible value, or does not fit the file.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | bytes,
        *,
        query: str = "query",
        value: str | None = None,
        key: str | None = None,
        output: str = "output",
        scores: str | None = None,
        rows: int = 32,
        threads: int | None = 1,
        row_id: str = "id",
        cast: bool = False,
        max_elements: int = 2**24,
        max_length: int | None = None,
        device: str = "cpu",
    ) -> None:
        arrow()
        self._session: AttentionSession | None = None
        self._model = model if isinstance(model, bytes) else os.fspath(as_path(model).absolute())
        where = "the model" if isinstance(self._model, bytes) else self._model
        data = self._model if isinstance(self._model, bytes) else read_file(self._model)
        found = read_metadata(metadata_of(data, where), where)
        specs = found.contract
        self._names = _checked_names(query, value, key, output, scores)
        self._inputs, self._outputs = specs.inputs, specs.outputs
        self._rows, self._threads = _positive("rows", rows), threads
        self._max_elements = _positive("max_elements", max_elements)
        self._max_length = None if max_length is None else _positive("max_length", max_length)
        self._row_id, self._cast, self._device = row_id, cast, device
        self._dtype = numpy_dtype(specs.inputs["query"].dtype)
        self._config, self._options = found.config, found.options
        self._check_file()

    def _check_file(self) -> None:
        if len(self._inputs["query"].dims) != 3:
            raise InputError(
                f"AttendBatch takes files of {TensorSpec('query', 'float', ('batch', 'Tq', 'dim'))}"
                f"; this one takes {self._inputs['query']}"
            )
        if self._names.key is not None and "key" not in self._inputs:
            raise InputError(
                f"key={self._names.key!r}: this file was exported with key=False and uses value "
                "for both. Export it with key=True"
            )
        if self._names.scores is not None and "attention_scores" not in self._outputs:
            raise InputError(
                f"scores={self._names.scores!r}: this file does not return the scores. Export it "
                "with return_attention_scores=True"
            )
        if self._dtype.name == "bfloat16" and not self._cast:
            raise InputError(
                "this file takes bfloat16, which Arrow has not. Give cast=True: columns of any "
                "float type are rounded to it, and the output is float32"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_session": None}

    def __repr__(self) -> str:
        model = f"<{len(self._model)} bytes>" if isinstance(self._model, bytes) else self._model
        return f"AttendBatch({model!r}, {self._names})"

    def __call__(self, table: Any) -> Any:
        """The table with the columns `output` and, where asked for, `scores` added.

        Raises:
            InputError: the table lacks a column or has one too many, a column is of another type,
                or a row does not fit; the message names the column, the row and its id.
            OnnxAttnError: the runtime failed, memory above all; the message names the rows.
        """
        pa = arrow()
        if not isinstance(table, pa.Table):
            raise InputError(
                f"expected a pyarrow.Table; received {type(table).__name__}. In Ray Data give "
                "batch_format='pyarrow'; of a record batch make pa.Table.from_batches([batch])"
            )
        for name in (self._names.output, self._names.scores):
            if name is not None and name in table.column_names:
                raise InputError(
                    f"the table already has a column named {name!r}. Give another name for the "
                    "output, or drop that column"
                )
        return self._with_results(table, self._read(table))

    def _read(self, table: Any) -> Rows:
        """The columns of the table, checked against each other and the file."""
        names = RowNames(table, self._row_id)
        read: dict[str, RaggedColumn] = {}
        for name in self._names.columns:
            if name not in read:
                column_index(table, name)
                read[name] = read_column(table, name, names)
                self._check_dtype(read[name])
        query, value, key = (read[name] for name in self._names.columns)
        self._check_dim(query, "query", "dim")
        self._check_dim(value, "value", "value_dim")
        if query.dim is not None and key.dim is not None and query.dim != key.dim:
            raise InputError(
                f"columns {query.name!r} and {key.name!r} have vectors of {query.dim} and "
                f"{key.dim} numbers: query and key must have the same dim"
            )
        null = query.null | value.null | key.null
        unequal = np.flatnonzero(~null & (value.lengths != key.lengths))
        if len(unequal):
            row = unequal[0]
            raise InputError(
                f"columns {value.name!r} and {key.name!r}, {names.of(row)}: "
                f"{value.lengths[row]} values and {key.lengths[row]} keys; there must be one "
                "value for each key"
            )
        found = Rows(names, query, value, key, null)
        self._check_lengths(found)
        return found

    def _check_dtype(self, column: RaggedColumn) -> None:
        if column.layout.dtype != self._dtype.name and not self._cast:
            raise InputError(
                f"column {column.name!r} holds {column.layout.dtype}, and this file takes "
                f"{self._dtype.name}. Cast the column, give cast=True, or export the layer with "
                f"dtype={column.layout.dtype!r}"
            )

    def _check_dim(self, column: RaggedColumn, tensor: str, dim: str) -> None:
        fixed = self._inputs[tensor].dims[2]
        if isinstance(fixed, int) and column.dim not in (None, fixed):
            raise InputError(
                f"column {column.name!r} has vectors of {column.dim} numbers, and this file was "
                f"exported with {dim} fixed at {fixed}"
            )

    def _check_lengths(self, rows: Rows) -> None:
        for column, tensor, dim in ((rows.query, "query", "Tq"), (rows.value, "value", "Tv")):
            fixed = self._inputs[tensor].dims[1]
            limits = [
                (self._max_length, f"max_length is {self._max_length}"),
                (fixed if isinstance(fixed, int) else None, f"this file has {dim}={fixed}"),
            ]
            for limit, words in limits:
                if limit is not None:
                    beyond = np.flatnonzero(~rows.null & (column.lengths > limit))
                    if len(beyond):
                        raise InputError(
                            f"column {column.name!r}, {rows.names.of(beyond[0])}: "
                            f"{column.lengths[beyond[0]]} vectors, and {words}"
                        )
        fixed = self._inputs["value"].dims[1]
        if isinstance(fixed, int) and not self._pads_values:
            shorter = np.flatnonzero(rows.computed & (rows.value.lengths != fixed))
            if len(shorter):
                raise InputError(
                    f"column {rows.value.name!r}, {rows.names.of(shorter[0])}: "
                    f"{rows.value.lengths[shorter[0]]} vectors, and this file has Tv={fixed} and "
                    "no value_mask to pad with"
                )

    @property
    def _pads_values(self) -> bool:
        """Whether the file has a value_mask that can tell padding in each row."""
        mask = self._inputs.get("value_mask")
        if mask is None:
            return False
        sizes = zip(mask.dims, self._inputs["value"].dims[:2], strict=True)
        return all(not isinstance(size, int) or size == whole for size, whole in sizes)

    def _with_results(self, table: Any, rows: Rows) -> Any:
        heights = np.where(rows.null, 0, rows.query.lengths)
        widths = np.where(rows.null, 0, rows.value.lengths)
        value_dim = self._value_dim(rows)
        starts = np.concatenate([[0], np.cumsum(heights)])
        output = np.zeros((starts[-1], value_dim), self._dtype)  # rows without a key stay 0
        wanted = ["output"]
        matrix_starts = np.concatenate([[0], np.cumsum(heights * widths)])
        scores = np.zeros(0, self._dtype)
        if self._names.scores is not None:
            wanted.append("attention_scores")
            scores = np.zeros(matrix_starts[-1], self._dtype)
        for call in calls(rows, self._limits(rows, value_dim)):
            results = self._run(rows, call, wanted)
            for place, row in enumerate(call.rows):
                height, width = heights[row], widths[row]
                output[starts[row] : starts[row + 1]] = results["output"][place, :height]
                if self._names.scores is not None:
                    weights = results["attention_scores"][place, :height, :width]
                    scores[matrix_starts[row] : matrix_starts[row + 1]] = weights.reshape(-1)
        shown = np.dtype("float32") if self._dtype.name == "bfloat16" else self._dtype
        of_query, of_value = rows.query.layout, rows.value.layout
        layout = Layout(of_query.large, of_value.inner_large, of_value.dim, shown.name)
        column = write_column(heights, rows.null, output.astype(shown, copy=False), layout)
        table = table.append_column(self._names.output, column)
        if self._names.scores is None:
            return table
        scores = scores.astype(shown, copy=False)
        column = write_matrices(heights, widths, rows.null, scores, layout)
        return table.append_column(self._names.scores, column)

    def _value_dim(self, rows: Rows) -> int:
        """Numbers of an output vector, also where no row holds a value."""
        if rows.value.dim is not None:
            return rows.value.dim
        fixed = self._outputs["output"].dims[-1]
        if isinstance(fixed, int):
            return fixed
        if self._names.key is None and rows.query.dim is not None:
            return rows.query.dim  # the value is the key
        without = np.flatnonzero(~rows.null & (rows.query.lengths > 0))
        if len(without):
            raise InputError(
                f"column {rows.value.name!r}: no row of this table holds a vector, so nothing "
                f"tells value_dim, and {rows.names.of(without[0])} wants zeros of it. Make the "
                "column list<fixed_size_list<float>[value_dim]>"
            )
        return 0

    def _limits(self, rows: Rows, value_dim: int) -> Limits:
        batch, Tq, dim = self._inputs["query"].dims
        dim = rows.query.dim or 0
        key_dim = 0 if self._names.key is None else dim
        return Limits(
            rows=self._rows,
            elements=self._max_elements,
            per_query=dim + value_dim,
            per_value=value_dim + key_dim,
            per_pair=self._per_pair(dim),
            batch=_fixed(batch),
            Tq=_fixed(Tq),
            Tv=_fixed(self._inputs["value"].dims[1]),
            pads_values=self._pads_values,
        )

    def _per_pair(self, dim: int) -> int:
        """Numbers that a call holds for each query and value: scores, and their features."""
        if self._options.schedule != "dense":
            return int("attention_scores" in self._outputs)
        dot = self._config.layer == "Attention" and self._config.score_mode == "dot"
        return 1 if dot else 1 + dim

    def _run(self, rows: Rows, call: Call, wanted: list[str]) -> dict[str, Array]:
        def padded(column: RaggedColumn, length: int) -> Array:
            return column.padded(call.rows, call.batch, length, self._dtype, rows.names)

        feeds = {"query": padded(rows.query, call.Tq), "value": padded(rows.value, call.Tv)}
        if self._names.key is not None:
            feeds["key"] = padded(rows.key, call.Tv)
        lengths = np.full(call.batch, call.Tv)  # rows that only fill a fixed batch hide nothing
        lengths[: len(call.rows)] = rows.value.lengths[call.rows]
        if (lengths < call.Tv).any():
            feeds["value_mask"] = np.arange(call.Tv) < lengths[:, None]
        if self._session is None:
            self._session = AttentionSession(
                self._model, device=self._device, threads=self._threads, spin=False
            )
        try:
            return self._session.run(feeds, wanted)
        except OnnxAttnError as error:
            columns = ", ".join(map(repr, dict.fromkeys(self._names.columns)))
            raise type(error)(
                f"column{'s' * (columns.count(',') > 0)} {columns}, "
                f"{rows.names.of(*call.rows)}: {error}"
            ) from error


@dataclass(frozen=True)
class _Names:
    """The columns asked for."""

    query: str
    value: str | None
    key: str | None
    output: str
    scores: str | None

    @property
    def columns(self) -> tuple[str, str, str]:
        """Where query, value and key come from."""
        value = self.query if self.value is None else self.value
        return self.query, value, value if self.key is None else self.key


def _fixed(dim: str | int) -> int | None:
    return dim if isinstance(dim, int) else None


def _positive(name: str, value: object) -> int:
    if type(value) is not int or value < 1:
        raise InputError(f"{name} must be a positive integer; received {value!r}")
    return value


def _checked_names(
    query: object, value: object, key: object, output: object, scores: object
) -> _Names:
    given = {"query": query, "value": value, "key": key, "output": output, "scores": scores}
    for name, column in given.items():
        optional = name in ("value", "key", "scores")
        if not isinstance(column, str) and not (optional and column is None):
            raise InputError(
                f"{name} must be the name of a column{' or None' * optional}; received {column!r}"
            )
    if key is not None and value is None:
        raise InputError(f"key={key!r} without a value: give the column of values as well")
    if output == scores:
        raise InputError(f"output and scores are both named {output!r}: give two names")
    return _Names(**given)  # pyright: ignore[reportArgumentType]
