"""The keys of a site, turned as each form of it reads them."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from .dims import Dims, Size
from .products import Operand
from .sites import Site


class Keys:
    """The keys of a site, in the order that each form of it reads.

    `there` is a tensor of the model outside of both: [batch, heads, Tv, dim], or transposed as the
    model has it, where that saves turning it twice.
    """

    def __init__(self, site: Site, dims: Dims, lazy: bool) -> None:
        self.dims = dims
        self.source: Operand | None = None
        self.is_transposed = False
        self.turning: ir.Node | None = None
        self.there: Any = None
        assert site.product is not None
        given = site.product.node.inputs[1]
        plain = site.product.node.op_type == "MatMul" and not site.lead and given is not None
        plain = plain and site.product.query.value is site.product.node.inputs[0]
        if not (lazy and plain) or given is None or site.product.query.rank != 4:
            return
        producer = given.producer()
        turns = producer is not None and producer.op_type == "Transpose"
        if len(given.shape or ()) != 4 or site.product.key.added:
            return
        if turns or site.product.key.perm is not None:
            self.source, self.there, self.is_transposed = site.product.key, given, True
            self.turning = producer if turns else None

    def size(self, axis: int) -> Size | None:
        """The size of batch, heads or Tv."""
        return self.dims.axis(self.there, 3 if axis == 2 and self.is_transposed else axis)

    def length(self, op: Any) -> Any:
        """Tv: int64[1]."""
        axis = 3 if self.is_transposed else 2
        return op.Shape(self.there, start=axis, end=axis + 1)

    def turned(self, op: Any) -> Any:
        """[batch, heads, Tv, dim]."""
        if not self.is_transposed or self.source is None:
            return self.there
        tensor = self.source.value
        return tensor if self.source.perm is None else op.Transpose(tensor, perm=self.source.perm)

    def transposed(self, op: Any) -> Any:
        """[batch, heads, dim, Tv]."""
        if not self.is_transposed:
            return op.Transpose(self.there, perm=[0, 1, 3, 2])
        if self.turning is None:
            return self.there
        attribute = self.turning.attributes.get("perm")
        perm = [3, 2, 1, 0] if attribute is None else attribute.as_ints()
        return op.Transpose(self.turning.inputs[0], perm=perm)
