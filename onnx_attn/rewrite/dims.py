"""Where the sizes of a value come from.

Shape inference forgets what a Reshape to computed sizes makes of a tensor; exporters write little
else. Here the sizes are followed through the nodes that compute them, so that two tensors can be
told to be of one size, and a mask need not ask the scores for theirs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from .normal import constant
from .sizes import Axis, Size, Sizes, computed, equal, product, quotient, stretched

__all__ = ["Axis", "Dims", "Size", "Sizes", "equal"]

SAME = frozenset(
    [
        "Cast",
        "Identity",
        "Relu",
        "Sigmoid",
        "Tanh",
        "Erf",
        "Exp",
        "Log",
        "Sqrt",
        "Neg",
        "Not",
        "IsNaN",
        "IsInf",
        "Abs",
        "Reciprocal",
        "Softmax",
        "LayerNormalization",
        "Dropout",
        "Clip",
        "Gelu",
        "HardSigmoid",
        "Softplus",
        "LeakyRelu",
        "Elu",
        "Floor",
        "Ceil",
        "Round",
        "Sign",
        "Sin",
        "Cos",
        "Trilu",
        "CumSum",
        "SimplifiedLayerNormalization",
        "RMSNormalization",
        "Celu",
        "Selu",
        "Mish",
    ]
)
BROADCAST = frozenset(
    [
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Pow",
        "And",
        "Or",
        "Xor",
        "Equal",
        "Less",
        "LessOrEqual",
        "Greater",
        "GreaterOrEqual",
        "Where",
        "Min",
        "Max",
        "Sum",
        "Mod",
        "PRelu",
    ]
)


class Dims:
    """The sizes of a model's values, as far as they can be told."""

    def __init__(self, model: ir.Model) -> None:
        self.known: dict[ir.Value, Sizes | None] = {}
        self.vectors: dict[ir.Value, Sizes | None] = {}
        self.named: dict[str, Size] = {}
        for value in model.graph.inputs:
            if value.name in model.graph.initializers or value.shape is None:
                continue
            for axis, dim in enumerate(value.shape):
                if not isinstance(dim, int) and dim.value is not None:
                    self.named.setdefault(str(dim.value), Axis(str(value.name), axis))

    def of(self, value: ir.Value) -> Sizes | None:
        """The sizes of a value's axes, None where one is not known; None for an unknown rank."""
        if value not in self.known:
            self.known[value] = None  # a graph has no cycles; this only ends odd ones
            self.known[value] = self._merged(value)
        return self.known[value]

    def axis(self, value: ir.Value, axis: int) -> Size | None:
        """The size of one axis."""
        sizes = self.of(value)
        return None if sizes is None or axis >= len(sizes) else sizes[axis]

    def _merged(self, value: ir.Value) -> Sizes | None:
        found: Sizes | None = None
        node = value.producer()
        if node is None:
            found = self._declared(value)
        elif (node.domain == "" and node.outputs and node.outputs[0] is value) or (
            node.op_type == "Split"
        ):
            found = self._of_node(node, value)
        if value.shape is None:
            return found
        rank = len(value.shape)
        if found is None or len(found) != rank:
            found = (None,) * rank
        return tuple(
            dim if isinstance(dim, int) else size or self.named.get(str(dim.value))
            for size, dim in zip(found, value.shape, strict=True)
        )

    def _declared(self, value: ir.Value) -> Sizes | None:
        if value.const_value is not None:
            return tuple(value.const_value.shape.numpy())
        if value.shape is None or not value.is_graph_input():
            return None
        return tuple(
            dim
            if isinstance(dim, int)
            else self.named.get(str(dim.value), Axis(str(value.name), i))
            for i, dim in enumerate(value.shape)
        )

    def _of_node(self, node: ir.Node, value: ir.Value) -> Sizes | None:
        kind = node.op_type
        first = node.inputs[0] if node.inputs else None
        sizes = None if first is None else self.of(first)
        if kind in SAME:
            return sizes
        if kind in BROADCAST:
            return self._broadcast([v for v in node.inputs if v is not None])
        if kind in ("Expand", "ConstantOfShape"):
            target = node.inputs[1] if kind == "Expand" else first
            wanted = None if target is None else self.vector(target)
            if wanted is None or kind == "ConstantOfShape":
                return wanted
            return None if sizes is None else stretched([sizes, wanted])
        if kind == "Range":
            return self._range(node)
        if sizes is None or first is None:
            return None
        if kind == "Transpose":
            attribute = node.attributes.get("perm")
            perm = attribute.as_ints() if attribute else list(range(len(sizes)))[::-1]
            return tuple(sizes[axis] for axis in perm)
        if kind in ("MatMul", "Gemm"):
            return self._of_product(node, sizes)
        if kind == "Gather":
            index = None if node.inputs[1] is None else self.of(node.inputs[1])
            axis = _attribute(node, "axis", 0) % len(sizes)
            return None if index is None else (*sizes[:axis], *index, *sizes[axis + 1 :])
        if kind == "GatherND" and node.inputs[1] is not None:
            index = self.of(node.inputs[1])
            if index is None or not isinstance(index[-1], int):
                return None
            return (*index[:-1], *sizes[_attribute(node, "batch_dims", 0) + index[-1] :])
        if kind in ("GlobalAveragePool", "GlobalMaxPool"):
            return (*sizes[:2], *[1] * (len(sizes) - 2))
        if kind.startswith("Reduce"):
            return self._reduced(node, sizes)
        if kind == "GatherElements" and node.inputs[1] is not None:
            return self.of(node.inputs[1])
        if kind in ("Unsqueeze", "Squeeze"):
            return self._squeezed(node, sizes)
        if kind == "Reshape" and node.inputs[1] is not None:
            return self._reshaped(node, sizes)
        if kind == "Flatten":
            axis = _attribute(node, "axis", 1)
            return (product(sizes[:axis]), product(sizes[axis:]))
        if kind == "Concat":
            axis = _attribute(node, "axis", 0) % len(sizes)
            return (*sizes[:axis], None, *sizes[axis + 1 :])
        if kind in ("Slice", "Split"):
            return self._cut(node, sizes, value)
        return None

    def _reduced(self, node: ir.Node, sizes: Sizes) -> Sizes | None:
        axes: Any = constant(node.inputs[1]) if len(node.inputs) > 1 else None
        if axes is None and "axes" in node.attributes:
            axes = np.array(node.attributes["axes"].as_ints())
        if axes is None:
            return None
        gone = {int(axis) % len(sizes) for axis in axes.reshape(-1)}
        if _attribute(node, "keepdims", 1):
            return tuple(1 if index in gone else size for index, size in enumerate(sizes))
        return tuple(size for index, size in enumerate(sizes) if index not in gone)

    def _broadcast(self, values: list[ir.Value]) -> Sizes | None:
        shapes = [self.of(value) for value in values]
        return None if any(s is None for s in shapes) else stretched([s for s in shapes if s])

    def _range(self, node: ir.Node) -> Sizes | None:
        start, limit, delta = node.inputs
        if constant(start) is None or constant(delta) is None or limit is None:
            return (None,)
        if constant(start).item() != 0 or constant(delta).item() != 1:
            return (None,)
        vector = self.vector(limit)
        return vector if vector is not None and len(vector) == 1 else (None,)

    def _of_product(self, node: ir.Node, left: Sizes) -> Sizes | None:
        right = None if node.inputs[1] is None else self.of(node.inputs[1])
        if right is None or len(left) < 2 or len(right) < 2:
            return None
        if node.op_type == "Gemm":
            rows = left[1] if _attribute(node, "transA", 0) else left[0]
            return (rows, right[0] if _attribute(node, "transB", 0) else right[1])
        lead = stretched([left[:-2], right[:-2]])
        return None if lead is None else (*lead, left[-2], right[-1])

    def _squeezed(self, node: ir.Node, sizes: Sizes) -> Sizes | None:
        axes: Any = constant(node.inputs[1]) if len(node.inputs) > 1 else None
        if axes is None:
            return None
        result = list(sizes)
        if node.op_type == "Squeeze":
            gone = {int(axis) % len(sizes) for axis in axes.reshape(-1)}
            return tuple(size for index, size in enumerate(sizes) if index not in gone)
        for axis in sorted(int(axis) % (len(sizes) + axes.size) for axis in axes.reshape(-1)):
            result.insert(axis, 1)
        return tuple(result)

    def _reshaped(self, node: ir.Node, sizes: Sizes) -> Sizes | None:
        target = node.inputs[1]
        assert target is not None
        wanted = self.vector(target)
        if wanted is None:
            return None
        result = list(wanted)
        for index, size in enumerate(result):
            if size == 0 and not _attribute(node, "allowzero", 0) and index < len(sizes):
                result[index] = sizes[index]
        if result.count(-1) == 1:
            place = result.index(-1)
            others = result[:place] + result[place + 1 :]
            result[place] = quotient(sizes, others)  # pyright: ignore[reportArgumentType]
        return tuple(result)

    def _cut(self, node: ir.Node, sizes: Sizes, value: ir.Value) -> Sizes | None:
        if node.op_type == "Split":
            axis = _attribute(node, "axis", 0) % len(sizes)
            lengths: Any = constant(node.inputs[1]) if len(node.inputs) > 1 else None
            length = None
            if lengths is not None:
                length = int(lengths[list(node.outputs).index(value)])
            return (*sizes[:axis], length, *sizes[axis + 1 :])
        axes: Any = constant(node.inputs[3]) if len(node.inputs) > 3 else None
        if axes is None:
            return (None,) * len(sizes)
        result = list(sizes)
        starts, ends = (None if v is None else self.vector(v) for v in node.inputs[1:3])
        steps: Any = constant(node.inputs[4]) if len(node.inputs) > 4 else None
        for place, axis in enumerate(int(axis) % len(sizes) for axis in axes.reshape(-1)):
            result[axis] = None
            plain = steps is None or int(steps.reshape(-1)[place]) == 1
            if plain and starts and ends and len(starts) == len(ends) == axes.size:
                result[axis] = _length(sizes[axis], starts[place], ends[place])
        return tuple(result)

    # Values of small integer tensors

    def vector(self, value: ir.Value) -> Sizes | None:
        """The sizes that an integer vector (or scalar, as one size) holds; None if of no kind."""
        if value not in self.vectors:
            self.vectors[value] = None
            self.vectors[value] = self._vector(value)
        return self.vectors[value]

    def _vector(self, value: ir.Value) -> Sizes | None:
        known: Any = constant(value)
        if known is not None:
            if known.dtype.kind not in "iuf" or known.size > 64 or known.ndim > 1:
                return None
            return tuple(int(n) if n == n // 1 else None for n in known.reshape(-1).tolist())
        node = value.producer()
        if node is None or node.domain != "" or not node.inputs:
            return None
        kind, first = node.op_type, node.inputs[0]
        if first is None:
            return None
        if kind == "Shape":
            sizes = self.of(first)
            if sizes is None:
                return None
            end = node.attributes.get("end")
            return sizes[_attribute(node, "start", 0) : None if end is None else end.as_int()]
        if kind in ("Cast", "Identity", "Unsqueeze", "Squeeze", "Floor"):
            return self.vector(first)
        if kind == "Reshape":
            return self.vector(first)
        if kind == "Concat":
            pieces = [None if v is None else self.vector(v) for v in node.inputs]
            return None if None in pieces else tuple(s for piece in pieces if piece for s in piece)
        if kind == "ConstantOfShape":
            size = self.vector(first)
            filled = node.attributes.get("value")
            number = 0 if filled is None else filled.as_tensor().numpy().reshape(-1)[0]
            if size is None or len(size) != 1 or not isinstance(size[0], int):
                return None
            return (int(number),) * size[0]
        vector = self.vector(first)
        if kind == "Where":
            return self._chosen(node)
        if vector is None:
            return None
        if kind == "Gather":
            index: Any = constant(node.inputs[1])
            if index is None or any(abs(int(i)) > len(vector) for i in index.reshape(-1)):
                return None
            return tuple(vector[int(i)] for i in index.reshape(-1))
        if kind == "Slice":
            return self._sliced(node, vector)
        if kind == "ReduceProd":
            return (product(vector),)
        if kind in ("Mul", "Add", "Sub", "Div", "Max", "Min") and len(node.inputs) == 2:
            other = None if node.inputs[1] is None else self.vector(node.inputs[1])
            if other is None or (len(vector) != len(other) and 1 not in (len(vector), len(other))):
                return None
            count = max(len(vector), len(other))
            left = vector * count if len(vector) == 1 else vector
            right = other * count if len(other) == 1 else other
            return tuple(computed(kind, a, b) for a, b in zip(left, right, strict=True))
        return None

    def _chosen(self, node: ir.Node) -> Sizes | None:
        """Where(target == -1, ones, target), as torch writes the target of an Expand."""
        if None in node.inputs:
            return None
        _, ones, target = (value for value in node.inputs if value is not None)
        chosen, other = self.vector(ones), self.vector(target)
        if chosen is None or other is None or len(chosen) != len(other):
            return None
        if any(size != 1 for size in chosen):
            return None
        return tuple(1 if size == -1 else size for size in other)

    def _sliced(self, node: ir.Node, vector: Sizes) -> Sizes | None:
        bounds: list[Any] = [constant(v) for v in node.inputs[1:]]
        if any(bound is None or bound.size != 1 for bound in bounds):
            return None
        start, end = int(bounds[0].item()), int(bounds[1].item())
        step = int(bounds[3].item()) if len(bounds) > 3 else 1
        return vector[start:end:step] if step == 1 else None


def _length(size: Size | None, start: Size | None, end: Size | None) -> Size | None:
    """The length of a slice of an axis."""
    if isinstance(size, int) and isinstance(start, int) and isinstance(end, int):
        return len(range(size)[start:end])
    if start != 0 or end is None:
        return None
    if isinstance(end, int):
        return size if end > 2**31 - 2 else None
    # A table that is cut to a length holds as much, or what is added to it would not fit.
    return end


def _attribute(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()
