"""Reads what lies between the product of query and key and a Softmax, backward from the Softmax."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from . import scores
from .expressions import ZERO, Expression, expression, minus, negated, uniform
from .normal import constant
from .products import PRODUCTS, axes_of, rank_of
from .scores import Fixed, Form, Linear, Select, Step, UnreadableError

# Between the product and its Softmax; each in `Reader.form`.
SHAPING = ("Reshape", "Squeeze", "Unsqueeze")
THROUGH = (*SHAPING, "Transpose", "ReduceMax")
ELEMENTWISE = ("Add", "Sub", "Mul", "Div", "Neg", "Where", "Max", "Sum", "Cast", "Identity")


@dataclass(frozen=True)
class Shaping:
    """A Reshape, Squeeze or Unsqueeze of the scores that keeps queries and keys as last axes.

    picked: for each axis before them, the index in the Reshape's target; None: length 1.
    """

    target: ir.Value
    picked: tuple[int | None, ...]


def products(value: ir.Value) -> Iterator[ir.Node]:
    """The products that reach `value` through operators that act on each number alone."""
    waiting, seen = [value], set[ir.Node]()
    while waiting:
        node = waiting.pop().producer()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.op_type in PRODUCTS:
            yield node
        elif node.domain == "" and node.op_type in ("Where",):
            waiting += [v for v in node.inputs[1:] if v is not None]
        elif node.domain == "" and node.op_type in ELEMENTWISE:
            waiting += [v for v in node.inputs if v is not None]
        elif node.domain == "" and node.op_type in THROUGH and node.inputs[0] is not None:
            waiting.append(node.inputs[0])


def likelihood(node: ir.Node) -> tuple[bool, int]:
    """Products of queries and keys first: masks too are sometimes made by a product."""
    floats = all(v is not None and v.dtype == ir.DataType.FLOAT for v in node.inputs)
    first = node.inputs[0]
    width = first.shape[-1] if first is not None and first.shape else None
    weights = sum(_learned(value, 12) for value in node.inputs if value is not None)
    return (not floats or width == 1, -weights)


def _learned(value: ir.Value, depth: int) -> bool:
    """Whether a value is computed from float weights, as far as `depth` nodes tell."""
    waiting, seen = [(value, depth)], set[ir.Value]()
    while waiting:
        value, left = waiting.pop()
        node = value.producer()
        if node is None:
            if value.const_value is not None and value.dtype == ir.DataType.FLOAT:
                size = value.const_value.size
                if size > 1:
                    return True
            continue
        if left == 0 or value in seen:
            continue
        seen.add(value)
        waiting += [(v, left - 1) for v in node.inputs if v is not None]
    return False


class Reader:
    """Reads the values between one product and a Softmax as forms."""

    def __init__(self, product: ir.Value) -> None:
        self.product = product
        self.later = _dependents(product)
        self.forms: dict[ir.Value, Form | None] = {product: Linear()}
        self.chain: list[ir.Value] = [product]
        self.nodes: set[ir.Node] = set()
        self.lead: list[Shaping] = []
        self.reshaped_later = False
        self.turned = False
        self.shapings: dict[ir.Value, Form] = {}

    def form(self, value: ir.Value) -> Form | None:
        """What `value` makes of the product; None where it does not depend on it."""
        if value not in self.forms:
            found = None
            if value in self.later:
                node = value.producer()
                assert node is not None
                found = self._of_node(node)
            self.forms[value] = found
            if found is not None:
                self.chain.append(value)
                self.nodes.add(value.producer())  # pyright: ignore[reportArgumentType]
        return self.forms[value]

    def _of_node(self, node: ir.Node) -> Form:
        kind = node.op_type
        if node.domain != "":
            raise UnreadableError(f"between its product and its Softmax is {named(node)}")
        if kind in ("QuantizeLinear", "DequantizeLinear"):
            raise UnreadableError("its scores are quantised")
        if kind in SHAPING:
            return self._shaped(node)
        if kind == "ReduceMax":
            return self._largest(node)
        if kind == "Transpose":
            return self._turned(node)
        if kind not in ELEMENTWISE:
            raise UnreadableError(f"between its product and its Softmax is {named(node)}")
        values = [value for value in node.inputs if value is not None]
        if kind in ("Cast", "Identity"):
            if values[0].dtype is None or node.outputs[0].dtype != values[0].dtype:
                raise UnreadableError(f"its scores are cast to {dtype_name(node.outputs[0])}")
            return self._given(values[0])
        if kind == "Neg":
            return self._negative(self._given(values[0]))
        if kind == "Where":
            return self._where(*values)
        if kind == "Sum":
            return self._sum(values)
        if kind == "Max":
            return self._max(values)
        left, right = values
        one, other = self.form(left), self.form(right)
        if kind == "Sub":
            if other is None:
                assert one is not None
                return scores.shifted(one, minus(self._beside(right)))
            if one is not None and self._is_largest(right, left):
                return one
            other = self._negative(other)
            kind = "Add"
        if kind == "Add":
            if one is not None and other is not None:
                return scores.together(one, other)
            if one is not None:
                return scores.shifted(one, self._beside(right))
            assert other is not None
            return scores.shifted(other, self._beside(left))
        if one is not None and other is None:
            self._same_frame(right)
            return scores.scaled(one, right, kind == "Div")
        if kind == "Mul" and other is not None and one is None:
            self._same_frame(left)
            return scores.scaled(other, left)
        raise UnreadableError("its scores are multiplied with or divided by themselves")

    def _beside(self, value: ir.Value) -> Expression:
        """What is added to the scores, or stands in their place."""
        self._same_frame(value)
        return expression(value)

    def _same_frame(self, value: ir.Value) -> None:
        """Raises where scores were reshaped between two masks, which then differ in their axes."""
        if self.reshaped_later and uniform(value) is None:
            raise UnreadableError("its scores are reshaped between two masks")

    def _is_largest(self, value: ir.Value, of: ir.Value) -> bool:
        """Whether a value is the largest score of each query: without it the weights are equal."""
        node = value.producer()
        assert node is not None
        if node.op_type != "ReduceMax" or node.inputs[0] is not of:
            return False
        self.nodes.add(node)
        return True

    def _given(self, value: ir.Value) -> Form:
        form = self.form(value)
        assert form is not None
        return form

    def _negative(self, form: Form) -> Form:
        if isinstance(form, Select):
            return Select(form.condition, self._negative(form.chosen), self._negative(form.other))
        bias = minus(form.bias) if form.bias != ZERO else form.bias
        if isinstance(form, Fixed):
            return Fixed(bias)
        return Linear((*form.steps, Step("Mul", -1.0)), form.factors, bias)

    def _where(self, condition: ir.Value, chosen: ir.Value, other: ir.Value) -> Form:
        if condition in self.later:
            raise UnreadableError("a condition that depends on its scores changes them")
        self._same_frame(condition)
        source, turned = negated(condition)
        if turned:
            chosen, other = other, chosen
        sides: list[Form] = []
        for value, truth in ((chosen, True), (other, False)):
            form = self.form(value)
            if form is None:
                form = Fixed(self._beside(value))
            sides.append(scores.restrict(form, source, truth))
        return Select(source, sides[0], sides[1])

    def _sum(self, values: list[ir.Value]) -> Form:
        forms = [form for value in values if (form := self.form(value)) is not None]
        total = forms[0]
        for form in forms[1:]:
            total = scores.together(total, form)
        for value in values:
            if self.form(value) is None:
                total = scores.shifted(total, self._beside(value))
        return total

    def _max(self, values: list[ir.Value]) -> Form:
        forms = [form for value in values if (form := self.form(value)) is not None]
        numbers = [uniform(value) for value in values if self.form(value) is None]
        if len(forms) != 1 or any(number is None or number > -1e30 for number in numbers):
            raise UnreadableError("its scores are bounded by Max")
        return scores.lifted(forms[0], max(number for number in numbers if number is not None))

    def _largest(self, node: ir.Node) -> Form:
        """The largest score of each query, which is read by `_is_largest` alone."""
        source = node.inputs[0]
        assert source is not None
        axes = axes_of(node, rank_of(source))
        keeps = node.attributes.get("keepdims")
        kept = keeps is None or keeps.as_int() == 1
        only = all(
            usage.node.op_type == "Sub" and usage.node.inputs[0] is source and usage.idx == 1
            for usage in node.outputs[0].uses()
        )
        if axes != [rank_of(source) - 1] or not kept or not only:
            raise UnreadableError(f"between its product and its Softmax is {named(node)}")
        return self._given(source)

    def _turned(self, node: ir.Node) -> Form:
        """A transposed product: of key and query in the place of query and key."""
        source = node.inputs[0]
        assert source is not None
        attribute = node.attributes.get("perm")
        rank = rank_of(source)
        perm = list(range(rank))[::-1] if attribute is None else list(attribute.as_ints())
        form = self._given(source)
        plain = isinstance(form, Linear) and form.bias == ZERO and not form.factors
        if perm != [*range(rank - 2), rank - 1, rank - 2] or not plain or self.lead:
            raise UnreadableError("its scores are transposed")
        self.turned = not self.turned
        return form

    def _shaped(self, node: ir.Node) -> Form:
        """A change of shape that keeps queries and keys the last two axes (but for lone ones)."""
        source, output = node.inputs[0], node.outputs[0]
        assert source is not None
        form = self._given(source)
        masked = not isinstance(form, Linear) or form.bias != ZERO or form.factors
        if masked or self.reshaped_later:
            self.reshaped_later = True
            return form
        if node.op_type == "Reshape":
            target = node.inputs[1]
            assert target is not None
            known = target.shape[0] if target.shape else None
            rank = known if isinstance(known, int) else rank_of(output)
            self.lead.append(Shaping(target, tuple(range(rank))))
            return form
        if not self.lead:
            start = Shaping(source, tuple(range(rank_of(source))))
            self.lead.append(start)
        last = self.lead[-1]
        picked = list(last.picked)
        rank = len(picked)
        if node.op_type == "Squeeze":
            axes = axes_of(node, rank)
            if axes is None:
                raise UnreadableError("its scores are squeezed of axes that are not known")
            picked = [axis for index, axis in enumerate(picked) if index not in axes]
        else:
            known = constant(node.inputs[1]) if len(node.inputs) > 1 else None
            if known is None:
                raise UnreadableError("its scores are unsqueezed along axes that are not known")
            full = rank + known.size
            for axis in sorted(int(axis) % full for axis in known.reshape(-1)):
                picked.insert(axis, None)  # pyright: ignore[reportArgumentType]
        self.lead[-1] = Shaping(last.target, tuple(picked))
        return form


def _dependents(value: ir.Value) -> set[ir.Value]:
    """`value` and what is computed from it, its shape apart."""
    found, waiting = {value}, [value]
    while waiting:
        for node in readers(waiting.pop()):
            if node.op_type in ("Shape", "Size"):
                continue
            for output in node.outputs:
                if output not in found:
                    found.add(output)
                    waiting.append(output)
            if len(found) > 20000:
                return found
    return found


def readers(value: ir.Value) -> list[ir.Node]:
    """The nodes that read a value, each once."""
    return list(dict.fromkeys(usage.node for usage in value.uses()))


def origin(value: ir.Value) -> str:
    """The operator that a value comes from, in words."""
    node = value.producer()
    return "an input" if node is None else named(node)


def named(node: ir.Node | None) -> str:
    """An operator in words."""
    if node is None:
        return "an input"
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type


def dtype_name(value: ir.Value) -> str:
    """A value's type in words."""
    return "of unknown type" if value.dtype is None else value.dtype.name
