"""Sizes as they are computed: a number, an axis of one of the model's inputs, or made of others."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Axis:
    """The size of an axis of a model's input."""

    name: str
    axis: int


@dataclass(frozen=True)
class Made:
    """A size made of others by an operator."""

    op: str
    sizes: tuple[Size, ...]


Size = int | Axis | Made
Sizes = tuple["Size | None", ...]


def stretched(shapes: list[Sizes]) -> Sizes | None:
    """The shape that broadcasting makes of several."""
    rank = max((len(shape) for shape in shapes), default=0)
    result: list[Size | None] = []
    for axis in range(-rank, 0):
        sizes = [shape[axis] for shape in shapes if len(shape) >= -axis]
        others = {size for size in sizes if size != 1}
        if not others:
            result.append(1)
        elif None in others:
            # A known size other than 1 is the result, unless the other is larger, an error.
            fixed = [size for size in others if isinstance(size, int)]
            result.append(fixed[0] if fixed else None)
        else:
            fixed = [size for size in others if isinstance(size, int)]
            result.append(fixed[0] if fixed else others.pop() if len(others) == 1 else None)
    return tuple(result)


def _factors(sizes: list[Size | None]) -> tuple[int, list[Size]] | None:
    number, rest = 1, list[Size]()
    for size in sizes:
        if size is None:
            return None
        if isinstance(size, int):
            number *= size
        elif isinstance(size, Made) and size.op == "Mul":
            inner = _factors(list(size.sizes))
            if inner is None:
                return None
            number *= inner[0]
            rest += inner[1]
        else:
            rest.append(size)
    return number, sorted(rest, key=repr)


def product(sizes: Sizes) -> Size | None:
    """The product of sizes; None where one is not known."""
    factors = _factors(list(sizes))
    if factors is None:
        return None
    number, rest = factors
    if not rest:
        return number
    if number == 1 and len(rest) == 1:
        return rest[0]
    return Made("Mul", (number, *rest))


def quotient(sizes: Sizes, others: list[Size | None]) -> Size | None:
    """The size that `others` leave of `sizes`: what -1 stands for in a Reshape."""
    whole, taken = _factors(list(sizes)), _factors(others)
    if whole is None or taken is None or taken[0] == 0 or whole[0] % taken[0]:
        return None
    rest = list(whole[1])
    for size in taken[1]:
        if size not in rest:
            return None
        rest.remove(size)
    return product((whole[0] // taken[0], *rest))


def computed(op: str, left: Size | None, right: Size | None) -> Size | None:
    """What an operator makes of two sizes; None where that is not known."""
    if left is None or right is None:
        return None
    if op == "Mul":
        return product((left, right))
    if isinstance(left, int) and isinstance(right, int):
        if op == "Div":
            return left // right if right else None
        return {"Add": left + right, "Sub": left - right, "Max": max(left, right)}.get(
            op, min(left, right)
        )
    if op in ("Max", "Min") and left == right:
        return left
    if op in ("Add", "Sub") and right == 0:
        return left
    if op == "Div":
        return quotient((left,), [right])
    return Made(op, (left, right))


def equal(left: Size | None, right: Size | None) -> bool:
    """Whether two sizes are known to be one."""
    return left is not None and left == right
