"""What every schedule is made of: the layer's tensors and the steps between them.

A step is plain Python that writes nodes through an onnxscript `OpBuilder`; the formulas
themselves are the onnxscript functions of `formulas.py`, inlined where they are called.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from ..configuration import LayerConfig
from . import formulas


@dataclass(frozen=True)
class Tensors:
    """The values a schedule reads, floats already in the type of the arithmetic.

    `value_mask`, `query_mask`, `scale`, `concat_score_weight` and `training` are None where the
    file has none of them.
    """

    query: ir.Value
    value: ir.Value
    key: ir.Value
    query_mask: ir.Value | None = None
    value_mask: ir.Value | None = None
    scale: ir.Value | None = None
    concat_score_weight: ir.Value | None = None
    training: ir.Value | None = None


@dataclass(frozen=True)
class Steps:
    """The layer's formulas for one configuration, on whole tensors or on blocks of them."""

    config: LayerConfig
    tensors: Tensors

    @property
    def compute(self) -> ir.DataType:
        """The type of the arithmetic."""
        return ir.DataType.from_numpy(np.dtype(self.config.floats.compute))

    @property
    def has_dot_scores(self) -> bool:
        """Whether scores are products, not sums over pairs of features."""
        return self.config.layer == "Attention" and self.config.score_mode == "dot"

    def unmasked(self):
        """The same layer, its masks left out."""
        return Steps(self.config, replace(self.tensors, query_mask=None, value_mask=None))

    def number(self, op, number):
        """A constant scalar in the type of the arithmetic."""
        return op.Constant(value=ir.tensor(np.array(number, self.config.floats.compute)))

    def prepare_query(self, op, query):
        """Work that is done once per query row, not once per score."""
        if self.has_dot_scores and self.tensors.scale is not None:
            return op.call_inline(
                formulas.scaled_query, query, self.tensors.scale, _outputs=["query_scaled"]
            )
        return query

    def scores(self, op, query, key):
        """Scores of prepared queries and keys: [batch, Tq, dim], [batch, Tv, dim]."""
        scale, weight = self.tensors.scale, self.tensors.concat_score_weight
        if self.has_dot_scores:
            float64 = self.compute == ir.DataType.DOUBLE
            formula = formulas.dot_scores_float64 if float64 else formulas.dot_scores
            scores = op.call_inline(formula, query, key, _outputs=["scores"])
            scores.producer().name = "scores__query_and_key_must_have_the_same_dim"
            return scores
        features = op.call_inline(formulas.query_key_features, query, key, _outputs=["features"])
        column = op.call_inline(formulas.feature_column, query, key, _outputs=["feature_column"])
        if self.config.layer == "AdditiveAttention" and scale is not None:
            # Concat takes equal lengths only; ORT would fold a Reshape of scale to this shape.
            ones = op.Expand(self.one(op), column, _outputs=["ones_of_dim"])
            scale_column = op.Unsqueeze(scale, [1], _outputs=["scale_column"])  # [dim, 1]
            columns = op.Concat(scale_column, ones, axis=1, _outputs=["scale_and_ones"])
            columns.producer().name = "scale_query_and_key_must_have_the_same_dim"
            feature_weights = op.Slice(columns, [0], [1], [1], _outputs=["feature_weights"])
        else:
            if scale is not None:
                features = op.Mul(features, scale, _outputs=["features_scaled"])
            weight = self.one(op) if weight is None else weight
            feature_weights = op.Expand(weight, column, _outputs=["feature_weights"])
        scores = op.call_inline(
            formulas.additive_scores, features, feature_weights, _outputs=["scores"]
        )
        weighing = scores.producer().inputs[0].producer()
        weighing.name = "scores__query_and_key_must_have_the_same_dim"
        return scores

    def one(self, op):
        """The number 1 in the type of the arithmetic."""
        return op.Constant(value=ir.tensor(np.ones((), self.compute.numpy())))

    def attend(self, op, query, key, value, bias):
        """softmax(scores + bias) @ value: the attended values and the weights."""
        scores = self.scores(op, query, key)
        if bias is not None:
            scores = self.masked(op, scores, bias)
        weights = op.call_inline(formulas.softmax_weights, scores, _outputs=["weights"])
        weights = self.drop(op, weights)
        return self.weighted_sum(op, weights, value), weights

    def masked(self, op, scores, bias):
        """scores + bias, of the shape of the scores; another is the runtime's error.

        A key of length 1 would be broadcast to a longer mask, and so fit a longer value; a batch of
        1 to that of the mask.
        """
        masked = op.call_inline(formulas.masked_scores, scores, bias, _outputs=["scores_masked"])
        if self.tensors.value_mask is None:
            return masked
        checked = op.Reshape(masked, op.Shape(scores), _outputs=["scores_checked"])
        checked.producer().name = "scores__value_mask_must_fit_the_key"
        return checked

    def weighted_sum(self, op, weights, value):
        """weights @ value: [batch, Tq, Tv] x [batch, Tv, value_dim] -> [batch, Tq, value_dim]."""
        attended = op.call_inline(formulas.weighted_sum, weights, value, _outputs=["attended"])
        attended.producer().name = "weighted_sum__key_and_value_must_have_the_same_length"
        return attended

    def block_scores(self, op, query, key, bias=None):
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
            scores.producer().name = "scores__query_and_key_must_have_the_same_dim"
            return scores
        queries, keys = op.Unsqueeze(query, [0]), op.Unsqueeze(key, [0])
        scores = op.Squeeze(self.scores(op, queries, keys), [0])
        if bias is None:
            return scores
        return op.call_inline(formulas.masked_scores, scores, bias, _outputs=["scores_masked"])

    def drop(self, op, weights, rank=3, draw=0):
        """In training: weights dropped at `dropout`, the kept ones times 1/(1-dropout).

        Nodes of the same seed draw the same numbers: `draw` tells those of one graph apart.
        Not the Dropout operator: ONNX Runtime's optimizer deletes it, whatever training_mode says.
        """
        if self.tensors.training is None:
            return weights
        rate, dims = self.config.dropout, [None] * rank

        def dropped(op):
            seed = self.config.seed
            attributes = {} if seed is None else {"seed": float(seed + draw)}
            drawn = op.RandomUniformLike(
                weights, dtype=int(self.compute), _outputs=["drawn"], **attributes
            )
            kept = op.GreaterOrEqual(drawn, rate, _outputs=["kept"])
            grown = op.Mul(weights, 1.0 / (1.0 - rate), _outputs=["grown"])
            return op.Where(kept, grown, 0.0)

        return op.If(
            self.tensors.training,
            then_branch=subgraph(op, dropped, [self.value_named("weights_dropped", *dims)]),
            else_branch=subgraph(
                op,
                lambda op: op.Identity(weights),
                [self.value_named("weights_kept", *dims)],
            ),
            _outputs=["weights_in_training"],
        )

    def value_named(self, name, *dims):
        """A declaration of a subgraph output in the type of the arithmetic."""
        return ir.Value(name=name, shape=ir.Shape(dims), type=ir.TensorType(self.compute))


def branches(op, steps, condition, forms, scores_wanted):
    """If(condition): the first of `forms` (name -> writer of nodes), else the second.

    Each writes the output [batch, Tq, value_dim] and, where wanted, the weights [batch, Tq, Tv].
    """

    def declared(name):
        outputs = [steps.value_named(f"attended_{name}", "batch", "Tq", "value_dim")]
        if scores_wanted:
            outputs.append(steps.value_named(f"weights_{name}", "batch", "Tq", "Tv"))
        return outputs

    then_branch, else_branch = (
        subgraph(op, write, declared(name)) for name, write in forms.items()
    )
    results = op.If(
        condition,
        then_branch=then_branch,
        else_branch=else_branch,
        _outputs=["attended", "weights"][: 1 + scores_wanted],
    )
    return tuple(results) if scores_wanted else (results,)


def subgraph(op, trace, outputs, inputs=()):
    """A subgraph for If, Scan or Loop: `trace(op, *inputs)` writes its nodes."""
    return op.builder.subgraph(trace, list(inputs), list(outputs), name=outputs[0].name)
