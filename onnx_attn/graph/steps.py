"""What every schedule is made of: the layer's tensors and the steps between them.

A step is plain Python that writes nodes through an `OpBuilder`; the formulas themselves are the
onnxscript functions of `formulas.py`, inlined where they are called.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, cast

import numpy as np
import onnx_ir as ir

from ..configuration import LayerConfig
from . import formulas
from .builder import Form, OpBuilder, Results, branching, chosen_name, subgraph
from .guards import Misfit, Rule, fits, misfit, refused_unless_zero, rule
from .sizes import Size, Truth

AXES = {
    "batch": ("query", 0),
    "Tq": ("query", 1),
    "dim": ("query", 2),
    "Tv": ("key", 1),
    "value_dim": ("value", 2),
}


@dataclass(frozen=True)
class Tensors:
    """The values a schedule reads.

    `value_mask`, `query_mask`, `scale`, `concat_score_weight`, `training` and `bias` are None where
    the file has none of them.
    """

    query: ir.Value
    value: ir.Value
    key: ir.Value
    query_mask: ir.Value | None = None
    value_mask: ir.Value | None = None
    scale: ir.Value | None = None
    concat_score_weight: ir.Value | None = None
    training: ir.Value | None = None
    bias: ir.Value | None = None


@dataclass(frozen=True)
class Steps:
    """The layer's formulas for one configuration, on whole tensors or on blocks of them.

    `known` holds the sizes that are fixed in the file, by dim name. `weights` are the trained
    values that bodies may read (see `tied`). `heads`: whether the tensors have an axis of heads
    after the batch. `renamed`: what declared dims are called where heads are rows of the batch.
    `filled`: whether all tensors are known to have elements.
    """

    config: LayerConfig
    tensors: Tensors
    scores_wanted: bool = False
    known: Mapping[str, int] = field(default_factory=dict[str, int])
    weights: tuple[tuple[ir.Value, int], ...] = ()
    heads: bool = False
    renamed: Mapping[str, str] = field(default_factory=dict[str, str])
    filled: bool = False

    @property
    def compute(self) -> ir.DataType:
        """The type of the arithmetic."""
        return ir.DataType.from_numpy(np.dtype(self.config.floats.compute))

    @property
    def has_dot_scores(self) -> bool:
        """Whether scores are products, not sums over pairs of features."""
        return self.config.layer == "Attention" and self.config.score_mode == "dot"

    @property
    def plain(self) -> bool:
        """Whether no key is ever hidden."""
        return not self.config.causal and self.tensors.value_mask is None

    @property
    def masks(self) -> list[ir.Value]:
        """The masks of the file."""
        both = (self.tensors.query_mask, self.tensors.value_mask)
        return [mask for mask in both if mask is not None]

    def unmasked(self) -> Steps:
        """The same layer, its masks left out."""
        return replace(self, tensors=replace(self.tensors, query_mask=None, value_mask=None))

    def knows(self, *dims: str) -> bool:
        """Whether all of these sizes are fixed in the file."""
        return all(dim in self.known for dim in dims)

    def size(self, op: OpBuilder, dim: str, name: str | None = None) -> Size:
        """The size called `dim`: as fixed in the file, or else of the tensor at hand."""
        if dim in self.known:
            return self.known[dim]
        tensor, axis = AXES[dim]
        names = [name or f"{dim}_size"]
        return op.Shape(getattr(self.tensors, tensor), start=axis, end=axis + 1, _outputs=names)

    def elements(self, op: OpBuilder, tensor: str, *dims: str) -> Size:
        """How many elements `tensor` has, whose dims are `dims`."""
        if self.knows(*dims):
            return int(np.prod([self.known[dim] for dim in dims]))
        return self.count(op, getattr(self.tensors, tensor), f"{tensor}_size")

    def count(self, op: OpBuilder, tensor: ir.Value, name: str) -> ir.Value:
        """How many elements `tensor` has: int64[]."""
        if tensor.dtype != ir.DataType.BFLOAT16:
            return op.Size(tensor, _outputs=[name])
        # ONNX Runtime has no Size of bfloat16.
        return op.ReduceProd(op.Shape(tensor), keepdims=0, _outputs=[name])

    def in_arithmetic(self, op: OpBuilder) -> Steps:
        """The same layer, floats cast to the type of the arithmetic: each form casts its own."""
        cast_values: dict[ir.Value, ir.Value] = {}

        def arithmetic(value: ir.Value | None) -> ir.Value | None:
            if value is None or value.dtype in (ir.DataType.BOOL, self.compute):
                return value
            if value not in cast_values:
                name = f"{chosen_name(value)}_{self.config.floats.compute}"
                cast_values[value] = op.Cast(value, to=self.compute, _outputs=[name])
            return cast_values[value]

        tensors = {f.name: arithmetic(getattr(self.tensors, f.name)) for f in fields(Tensors)}
        return replace(self, tensors=Tensors(**cast("dict[str, Any]", tensors)))

    def tied(self, op: OpBuilder, number: int) -> ir.Value:
        """`number`, int64[], made from the weights' sizes where the file has weights.

        Bodies read weights by name only. A tool that follows the inputs of nodes, as
        `onnx.utils.extract_model` does, would drop them: here nodes of the main graph take them.
        Runtimes compute it once, when they open the file.
        """
        if op.builder.parent is not None or not self.weights:
            return op.Constant(value=ir.tensor(number))
        sizes_of_weights = [self.count(op, weight, "weight_size") for weight, _ in self.weights]
        rest = op.Constant(value=ir.tensor(number - sum(count for _, count in self.weights)))
        for size in sizes_of_weights:
            rest = op.Add(rest, size, _outputs=["tied_to_weights"])
        return rest

    def number(self, op: OpBuilder, number: float) -> ir.Value:
        """A constant scalar in the type of the arithmetic."""
        return op.Constant(value=ir.tensor(np.array(number, self.config.floats.compute)))

    def prepare_query(self, op: OpBuilder, query: ir.Value) -> ir.Value:
        """Work that is done once per query row, not once per score."""
        if self.has_dot_scores and self.tensors.scale is not None:
            scale = self.tensors.scale
            if self.compute == ir.DataType.DOUBLE:
                # ONNX Runtime takes a constant scalar into MatMul, as an attribute of 32 bits; one
                # number for a single feature is a scalar to it as well.
                if self.known.get("dim") == 1:
                    return op.MatMul(query, op.Reshape(scale, [1, 1]), _outputs=["query_scaled"])
                dim = op.Slice(op.Shape(query), [-1], [2**31 - 1], _outputs=["dim_of_query"])
                scale = op.Expand(scale, dim, _outputs=["scale_of_features"])
            return op.call_inline(formulas.scaled_query, query, scale, _outputs=["query_scaled"])
        return query

    def scores(self, op: OpBuilder, query: ir.Value, key: ir.Value) -> ir.Value:
        """Scores of prepared queries and keys: [batch, Tq, dim], [batch, Tv, dim]."""
        if self.has_dot_scores:
            float64 = self.compute == ir.DataType.DOUBLE
            formula = cast("Any", formulas.dot_scores_float64 if float64 else formulas.dot_scores)
            scores = op.call_inline(formula, query, key, _outputs=["scores"])
            return rule(scores, "scores", Rule.DIMS, Rule.BATCHES)
        scale, weight = self.tensors.scale, self.tensors.concat_score_weight
        features = op.call_inline(formulas.query_key_features, query, key, _outputs=["features"])
        rule(features, "features", Rule.DIMS, Rule.BATCHES)
        if self.knows("dim"):
            column = [self.known["dim"], 1]
        else:
            column = op.call_inline(formulas.feature_column, query, key, _outputs=["column"])
        one = self.number(op, 1.0)
        if self.config.layer == "AdditiveAttention" and scale is not None:
            feature_weights = op.Unsqueeze(scale, [1], _outputs=["scale_column"])  # [dim, 1]
            if not self.knows("dim"):
                wrong = misfit(op, op.Shape(feature_weights), column, Rule.SCALE_DIM)
                feature_weights = refused_unless_zero(
                    op, feature_weights, 2, [wrong], "feature_weights"
                )
        else:
            if scale is not None:
                features = op.Mul(features, scale, _outputs=["features_scaled"])
            weight = one if weight is None else weight
            feature_weights = op.Expand(weight, column, _outputs=["feature_weights"])
        scores = op.call_inline(
            formulas.additive_scores, features, feature_weights, _outputs=["scores"]
        )
        rule(scores.producer().inputs[0], "scores", Rule.DIMS)
        return scores

    def attend(
        self,
        op: OpBuilder,
        query: ir.Value,
        key: ir.Value,
        value: ir.Value,
        bias: ir.Value | None,
        misfits: Sequence[Misfit] = (),
    ) -> Results:
        """softmax(scores + bias) @ value, with the weights where they are wanted.

        The value bears all `misfits`: ONNX Runtime then still knows the shape of scores and weights
        before a run, and its memory planning gives both a place beforehand
        (https://onnxruntime.ai/docs/performance/tune-performance/memory.html), worth 0.5 of 6 ms
        at 16x512x512x64.
        """
        scores = masked = self.scores(op, query, key)
        if bias is not None:
            masked = op.call_inline(
                formulas.masked_scores, scores, bias, _outputs=["scores_masked"]
            )
        if bias is not None and self.tensors.value_mask is not None:
            if self.may_be_empty("batch", "Tq", "Tv") and not self.mask_is_known_to_fit:
                shapes = op.Shape(masked), op.Shape(scores)
                misfits = [*misfits, misfit(op, *shapes, Rule.VALUE_MASK)]
            masked = self.of_scores(op, masked, scores)
        weights = op.call_inline(formulas.softmax_weights, masked, _outputs=["weights"])
        weights = self.drop(op, weights)
        if misfits:
            value = refused_unless_zero(op, value, 3, misfits, "value")
        attended = self.weighted_sum(op, weights, value)
        return (attended, weights) if self.scores_wanted else (attended,)

    def of_scores(
        self, op: OpBuilder, masked: ir.Value, scores: ir.Value, queries: Size | None = None
    ) -> ir.Value:
        """`masked`, which is scores and a value mask, in the shape of the scores.

        Another is the runtime's error: a key of length 1 would be broadcast to a longer mask, and
        so fit a longer value; a batch of 1 to that of the mask. Of scores without elements
        it is not. `queries`: how many rows the scores have, where they are not of all queries.
        """
        rule(masked, "scores", Rule.VALUE_MASK)
        if self.mask_is_known_to_fit:
            return masked
        rows = self.known.get("Tq") if queries is None else queries
        if self.knows("batch", "Tv") and isinstance(rows, int):
            shape: Any = [self.known["batch"], rows, self.known["Tv"]]
        else:
            shape = op.Shape(scores)
        checked = op.Reshape(masked, shape, _outputs=["scores_checked"])
        return rule(checked, "scores", Rule.VALUE_MASK)

    @property
    def mask_is_known_to_fit(self) -> bool:
        """Whether the dims of the value mask are fixed in the file, and fit."""
        mask = self.tensors.value_mask
        return mask is not None and fits(mask, (self.known.get("batch"), self.known.get("Tv")))

    def may_be_empty(self, *dims: str) -> bool:
        """Whether a tensor of these dims may have no elements. A fixed size is 1 at least."""
        return not self.filled and not self.knows(*dims)

    def weighted_sum(self, op: OpBuilder, weights: ir.Value, value: ir.Value) -> ir.Value:
        """weights @ value: [batch, Tq, Tv] x [batch, Tv, value_dim] -> [batch, Tq, value_dim]."""
        attended = op.call_inline(formulas.weighted_sum, weights, value, _outputs=["attended"])
        return rule(attended, "weighted_sum", Rule.LENGTHS, Rule.BATCHES)

    def block_scores(
        self, op: OpBuilder, query: ir.Value, key: ir.Value, bias: ir.Value | None = None
    ) -> ir.Value:
        """Scores of one batch row's queries: [block, dim], [keys, dim] -> [block, keys].

        `bias`, [keys] or [block, keys], enters with the sum: only for queries that see a key.
        """
        if self.has_dot_scores:
            if bias is None:
                scores = op.call_inline(formulas.dot_row_scores, query, key, _outputs=["scores"])
            else:
                scores = op.call_inline(
                    formulas.masked_dot_row_scores, query, key, bias, _outputs=["scores_masked"]
                )
            return rule(scores, "scores", Rule.DIMS)
        queries, keys = op.Unsqueeze(query, [0]), op.Unsqueeze(key, [0])
        scores = op.Squeeze(self.scores(op, queries, keys), [0])
        if bias is None:
            return scores
        return op.call_inline(formulas.masked_scores, scores, bias, _outputs=["scores_masked"])

    def drop(self, op: OpBuilder, weights: ir.Value, rank: int = 3, draw: int = 0) -> ir.Value:
        """In training: weights dropped at `dropout`, the kept ones times 1/(1-dropout).

        Nodes of the same seed draw the same numbers: `draw` tells those of one graph apart.
        Not the Dropout operator: ONNX Runtime's optimizer deletes it, whatever training_mode says.
        """
        if self.tensors.training is None:
            return weights
        rate, dims = self.config.dropout, [None] * rank
        wanted = self.tensors.training
        if op.builder.parent is None:
            # As in `tied`: what the branches read has to be an input of the main graph's nodes.
            count = self.count(op, weights, "weight_count")
            some = op.Cast(count, to=ir.DataType.BOOL, _outputs=["there_are_weights"])
            wanted = op.And(wanted, some, _outputs=["dropping"])

        def dropped(op: OpBuilder) -> ir.Value:
            seed = self.config.seed
            attributes = {} if seed is None else {"seed": float(seed + draw)}
            drawn = op.RandomUniformLike(
                weights, dtype=int(self.compute), _outputs=["drawn"], **attributes
            )
            kept = op.GreaterOrEqual(drawn, rate, _outputs=["kept"])
            grown = op.Mul(weights, 1.0 / (1.0 - rate), _outputs=["grown"])
            return op.Where(kept, grown, 0.0)

        def kept(op: OpBuilder) -> ir.Value:
            return op.Identity(weights)

        (result,) = branching(
            op,
            wanted,
            subgraph(op, dropped, [self.value_named("weights_dropped", *dims)]),
            subgraph(op, kept, [self.value_named("weights_kept", *dims)]),
            ["weights_in_training"],
        )
        return result

    def value_named(self, name: str, *dims: str | None) -> ir.Value:
        """A declaration of a subgraph's input or output in the type of the arithmetic."""
        return ir.Value(name=name, shape=self.shape(*dims), type=ir.TensorType(self.compute))

    def shape(self, *dims: str | None) -> ir.Shape:
        """A declared shape, in fixed sizes where the file fixes them."""
        return ir.Shape([dim and self.known.get(dim, self.renamed.get(dim, dim)) for dim in dims])

    def branches(
        self,
        op: OpBuilder,
        condition: Truth,
        then: tuple[str, Form],
        otherwise: tuple[str, Form],
    ) -> Results:
        """If(condition): one of two forms, each a name and what writes its nodes.

        A condition that is known leaves the form it chooses, and no If.
        """
        if isinstance(condition, bool):
            return (then if condition else otherwise)[1](op)

        def branch(name: str, form: Form) -> ir.Graph:
            outputs = [self.value_named(f"attended_{name}", "batch", "Tq", "value_dim")]
            if self.scores_wanted:
                outputs.append(self.value_named(f"weights_{name}", "batch", "Tq", "Tv"))
            return subgraph(op, form, outputs)

        names = ["attended", "weights"][: 1 + self.scores_wanted]
        return branching(op, condition, branch(*then), branch(*otherwise), names)
