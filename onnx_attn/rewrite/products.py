"""The two products of attention, in every spelling: query by key, and weights by value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from .normal import constant
from .scores import UnreadableError

PRODUCTS = ("MatMul", "Einsum", "Gemm", "FusedMatMul", "TransposeMatMul")


@dataclass(frozen=True)
class Operand:
    """A tensor of the model and how its axes are turned to [..., length, features].

    added: how many axes of length 1 go in front.
    """

    value: ir.Value
    perm: tuple[int, ...] | None = None
    added: int = 0

    @property
    def rank(self) -> int:
        """Axes, those that are added included."""
        return rank_of(self.value) + self.added


@dataclass(frozen=True)
class Product:
    """scores[..., Tq, Tv] = query[..., Tq, dim] @ key[..., Tv, dim]^T."""

    node: ir.Node
    query: Operand
    key: Operand
    number: float = 1.0

    def turned(self) -> Product:
        """The product whose scores are these, transposed: query and key change places."""
        return replace(self, query=self.key, key=self.query)


@dataclass(frozen=True)
class Sum:
    """output[..., Tq, value_dim] = weights @ value[..., Tv, value_dim].

    perm: how the model turns the axes of the output afterwards.
    """

    value: Operand
    perm: tuple[int, ...] | None = None


def rank_of(value: ir.Value) -> int:
    """The rank of a value. Raises UnreadableError where it is unknown."""
    if value.shape is None:
        raise UnreadableError(f"the rank of {value.name!r} is unknown")
    return len(value.shape)


def read_product(node: ir.Node) -> Product:
    """Query and key of the product that makes the scores. Raises UnreadableError."""
    left, right = _two(node)
    if node.op_type == "MatMul":
        ranks = rank_of(left), rank_of(right)
        if min(ranks) < 2:
            raise UnreadableError("the product is of a vector")
        rank = max(ranks)
        return Product(node, Operand(left, added=rank - ranks[0]), _turned(right, rank - ranks[1]))
    if node.op_type == "Gemm":
        alpha = _gemm(node)
        query = Operand(left, (1, 0)) if _flag(node, "transA") else Operand(left)
        key = Operand(right) if _flag(node, "transB") else _turned(right)
        return Product(node, query, key, alpha)
    first, second, result = _letters(node)
    queries, keys = result[-2], result[-1]
    if queries not in first:
        left, right, first, second = right, left, second, first
    features = [letter for letter in first if letter in second and letter not in result]
    lead = result[:-2]
    if len(features) != 1 or keys in first or queries in second or queries not in first:
        raise UnreadableError("the product is an Einsum of another kind")
    return Product(
        node,
        _arranged(left, first, [*lead, queries, features[0]]),
        _arranged(right, second, [*lead, keys, features[0]]),
    )


def read_turned_sum(node: ir.Node, weights: ir.Value) -> Sum:
    """The value of value^T @ weights^T, `weights` being the transposed ones. Raises."""
    left, right = _two(node)
    ranks = rank_of(left), rank_of(right)
    if right is not weights or ranks[0] != ranks[1]:
        raise UnreadableError("its weights are transposed")
    rank = ranks[0]
    return Sum(_turned(left), (*range(rank - 2), rank - 1, rank - 2))


def read_sum(node: ir.Node, weights: ir.Value) -> Sum:
    """The value that `weights` are multiplied with. Raises UnreadableError."""
    left, right = _two(node)
    if node.op_type == "MatMul":
        if left is not weights:
            raise UnreadableError("the weights are the second operand of a product")
        ranks = rank_of(left), rank_of(right)
        if ranks[1] > ranks[0] or ranks[1] < 2:
            raise UnreadableError("weights and value are of different ranks")
        return Sum(Operand(right, added=ranks[0] - ranks[1]))
    if node.op_type == "Gemm":
        if left is not weights or _flag(node, "transA") or _gemm(node) != 1.0:
            raise UnreadableError("the weights enter a Gemm of another kind")
        return Sum(_turned(right) if _flag(node, "transB") else Operand(right))
    first, second, result = _letters(node)
    if left is not weights:
        left, right, first, second = right, left, second, first
    queries, keys = first[-2], first[-1]
    features = [letter for letter in second if letter not in first]
    lead = first[:-2]
    plain = [*lead, queries, *features]
    if len(features) != 1 or keys in result or sorted(plain) != sorted(result):
        raise UnreadableError("the weights enter an Einsum of another kind")
    perm = tuple(plain.index(letter) for letter in result)
    value = _arranged(right, second, [*lead, keys, features[0]])
    return Sum(value, None if perm == tuple(range(len(perm))) else perm)


def _two(node: ir.Node) -> tuple[ir.Value, ir.Value]:
    if node.domain != "":
        raise UnreadableError(
            f"its product is {node.domain}.{node.op_type}, written by an optimizer: "
            "rewrite the model before it is optimised"
        )
    values = [value for value in node.inputs if value is not None]
    if len(values) != 2:
        raise UnreadableError(f"the product, {node.op_type}, has {len(values)} operands")
    return values[0], values[1]


def _letters(node: ir.Node) -> tuple[list[str], list[str], list[str]]:
    text = node.attributes["equation"].as_string().replace(" ", "")
    operands, arrow, result = text.partition("->")
    first, _, second = operands.partition(",")
    parts = [first, second, result]
    if "..." in text and arrow:
        # The axes that it stands for, as many of both operands, by letters of their own.
        counts = {
            rank_of(value) - len(part.replace("...", ""))
            for value, part in zip(_two(node), (first, second), strict=True)
        }
        if len(counts) != 1 or any("..." not in part for part in parts):
            raise UnreadableError(f"the product is an Einsum that broadcasts: {text}")
        lead = "".join(chr(ord("0") + axis) for axis in range(counts.pop()))
        parts = [part.replace("...", lead) for part in parts]
    letters = [list(part) for part in parts]
    if not arrow or "." in "".join(parts) or any(len(set(p)) != len(p) for p in letters):
        raise UnreadableError(f"the product is an Einsum that is not read: {text}")
    if len(letters[2]) < 2:
        raise UnreadableError(f"the product is an Einsum of another kind: {text}")
    return letters[0], letters[1], letters[2]


def _arranged(value: ir.Value, letters: Sequence[str], wanted: Sequence[str]) -> Operand:
    """An Einsum's operand with its axes in the order wanted."""
    if sorted(letters) != sorted(wanted):
        raise UnreadableError("the product is an Einsum that broadcasts")
    perm = tuple(letters.index(letter) for letter in wanted)
    return Operand(value, None if perm == tuple(range(len(perm))) else perm)


def _turned(value: ir.Value, added: int = 0) -> Operand:
    """The transpose of the last two axes, undoing one that is there."""
    rank = rank_of(value)
    perm = (*range(rank - 2), rank - 1, rank - 2)
    node = value.producer()
    if node is not None and node.domain == "" and node.op_type == "Transpose":
        attribute = node.attributes.get("perm")
        given = attribute.as_ints() if attribute else range(rank)[::-1]
        source = node.inputs[0]
        if source is not None and source.shape is not None:
            perm = tuple(given[axis] for axis in perm)
            value = source
    return Operand(value, None if perm == tuple(range(rank)) else perm, added)


def _flag(node: ir.Node, name: str) -> bool:
    attribute = node.attributes.get(name)
    return attribute is not None and bool(attribute.as_int())


def _gemm(node: ir.Node) -> float:
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        raise UnreadableError("the product is a Gemm with a third operand")
    attribute = node.attributes.get("alpha")
    return 1.0 if attribute is None else attribute.as_float()


def axes_of(node: ir.Node, rank: int) -> list[int] | None:
    """The axes of a Squeeze, Unsqueeze or reduction, in the larger tensor; None if not known."""
    axes: Any = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if axes is None and "axes" in node.attributes:
        axes = np.array(node.attributes["axes"].as_ints())
    if axes is None:
        return None
    return sorted(int(axis) % rank for axis in axes.reshape(-1))
