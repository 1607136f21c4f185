"""The facts of biases and masks, found once for all sites that share them.

Each stands in an If, so that short sequences, which take the nodes that were there, do not pay.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from ..graph.builder import subgraph
from ..graph.nodes import numbered, one_number, view
from ..graph.schedules.bias_walk import Facts, bias_facts, step_size
from .dims import equal
from .expressions import Expression
from .keys import Keys
from .scores import Scores
from .shared import Shared
from .triangles import Masks, known_masks

FLOAT, INT64 = ir.DataType.FLOAT, ir.DataType.INT64


class SharedFacts:
    """The facts that sites of one model share."""

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self.dims = shared.dims
        self.facts: dict[tuple[Any, ...], tuple[Facts, Any]] = {}

    def of_bias(
        self, expression: Expression, query: Any, keys: Keys, bias: Any
    ) -> tuple[Facts, Any]:
        """The facts of a bias, or of none, and whether they were found."""
        sizes = self.dims.axis(query, 1), self.dims.axis(query, 2), keys.size(2)
        known = (expression, *sizes) if None not in sizes else (expression, query, keys.there)
        if known not in self.facts:
            op = self.shared.op
            long = self.shared.long(query, keys)
            made: list[Facts] = []

            def found(op: Any) -> Any:
                sizes = _sizes(op, query, keys)
                alike = bias is None or self.dims.axis(bias, 2) == 1
                made.append(bias_facts(op, bias, *sizes, step_size(op, *sizes, alike=alike)))
                return made[0].table, made[0].kept

            def none(op: Any) -> tuple[Any, Any]:
                return _no_tables(op, made[0])

            table, kept = op.If(
                long,
                then_branch=subgraph(op, found, _tables("found")),
                else_branch=subgraph(op, none, _tables("none")),
                _outputs=["facts", "kept"],
            )
            facts = replace(made[0], table=table, kept=kept)
            self.facts[known] = facts, long
        return self.facts[known]

    def known_masks(self, scores: Scores, query: Any, keys: Keys, value: Any) -> Masks | None:
        """The masks of a site, where nothing about it has to be asked at run time."""
        sizes, of_value = self.dims.of(query), self.dims.of(value)
        if scores.faithful is not None or sizes is None or of_value is None:
            return None
        masks = known_masks(scores.bias, self.dims, sizes[2], keys.size(2))
        if masks is None or not equal(keys.size(2), of_value[2]):
            return None
        for axis in (0, 1):
            if not (equal(sizes[axis], keys.size(axis)) and equal(sizes[axis], of_value[axis])):
                return None
        if masks.key_mask is not None:
            batch = self.dims.axis(masks.key_mask, 0)
            if batch != 1 and not equal(batch, sizes[0]):
                return None
        return masks

    def of_masks(self, masks: Masks, query: Any, keys: Keys) -> tuple[Facts, Any]:
        """The facts of known masks where sequences are long, their bias where they are short."""
        known = (masks, self.dims.axis(query, 1), self.dims.axis(query, 2), keys.size(2))
        if known in self.facts:
            return self.facts[known]
        made: list[Facts] = []

        def key_mask(op: Any) -> Any:
            """The mask as the walk reads it, [batch or 1, Tv]."""
            assert masks.key_mask is not None
            sizes = self.dims.of(masks.key_mask)
            assert sizes is not None
            shown = self.shared.condition(masks.key_mask)
            shown = op.Squeeze(shown, list(range(1, len(sizes) - 1)))
            return op.Not(shown) if masks.turned else shown

        def found(op: Any) -> Any:
            sizes = _sizes(op, query, keys)
            shown = None if masks.key_mask is None else key_mask(op)
            facts = bias_facts(
                op,
                None,
                *sizes,
                step_size(op, *sizes, alike=not masks.causal),
                causal=masks.causal,
                key_mask=shown,
                penalty=masks.penalty,
            )
            made.append(facts)
            rest = [part for part in (facts.triangle, facts.mask) if part is not None]
            return facts.table, facts.kept, _zeros(op, 1, 1, 1, 1, dtype=FLOAT), *rest

        def short(op: Any) -> Any:
            shown = None
            if masks.causal:
                rows = numbered(op, op.Shape(query, start=2, end=3))
                columns = numbered(op, keys.length(op))
                shown = op.LessOrEqual(columns, op.Unsqueeze(rows, [1]))
                shown = op.Unsqueeze(shown, [0, 1])
            if masks.key_mask is not None:
                by_key = op.Unsqueeze(key_mask(op), [1, 2])
                shown = by_key if shown is None else op.And(shown, by_key)
            penalty = one_number(op, masks.penalty, FLOAT)
            bias = op.Where(shown, one_number(op, 0.0, FLOAT), penalty)
            rest = [part for part in (made[0].triangle, made[0].mask) if part is not None]
            return *_no_tables(op, made[0]), bias, *(_zeros(op, 1, 1, dtype=FLOAT) for _ in rest)

        def outputs(name: str) -> list[ir.Value]:
            matrices = [view(f"{name}_bias", FLOAT, "bias_batch", 1, "bias_rows", "Tv")]
            matrices += [view(f"{name}_triangle", FLOAT, "block", "width")] * masks.causal
            matrices += [view(f"{name}_mask", FLOAT, "rows", "Tv")] * (masks.key_mask is not None)
            return [*_tables(name), *matrices]

        op = self.shared.op
        names = ["facts", "kept", "short_bias", "triangle", "key_mask"]
        count = 3 + masks.causal + (masks.key_mask is not None)
        table, kept, bias, *rest = op.If(
            self.shared.long(query, keys),
            then_branch=subgraph(op, found, outputs("found")),
            else_branch=subgraph(op, short, outputs("short")),
            _outputs=names[:count],
        )
        triangle = rest.pop(0) if masks.causal else None
        mask = rest.pop(0) if masks.key_mask is not None else None
        facts = replace(made[0], table=table, kept=kept, triangle=triangle, mask=mask)
        self.facts[known] = facts, bias
        return self.facts[known]


def _sizes(op: Any, query: Any, keys: Keys) -> tuple[Any, Any, Any]:
    """Heads, Tq and Tv: int64[1] each."""
    return op.Shape(query, start=1, end=2), op.Shape(query, start=2, end=3), keys.length(op)


def _tables(name: str) -> list[ir.Value]:
    table = view(f"{name}_table", INT64, "batch", "heads", "blocks", "facts")
    return [table, view(f"{name}_kept", INT64, "heads_of_step", "kept")]


def _no_tables(op: Any, facts: Facts) -> tuple[Any, Any]:
    """What stands for the tables of facts where nothing walks."""
    return _zeros(op, 1, 1, 1, sum(facts.columns.values())), _zeros(op, 1, 1)


def _zeros(op: Any, *dims: int, dtype: ir.DataType = INT64) -> Any:
    return op.Constant(value=ir.tensor(np.zeros(dims, dtype.numpy())))
