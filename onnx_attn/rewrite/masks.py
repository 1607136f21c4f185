"""What hides keys from a site, in words."""

from __future__ import annotations

from .dims import Dims, Sizes
from .expressions import Choice, Computed, Expression, Known, Number
from .scores import HIDDEN_BELOW
from .sites import Site


def words_of(site: Site, dims: Dims) -> str | None:
    """`none`, or by which axes of the scores the bias of a site differs; None if it has none."""
    if site.scores is None:
        return None
    bias = site.scores.bias
    if isinstance(bias, Number):
        return "none"
    sizes = bias_sizes(bias, dims)
    kind = "mask" if _hides_only(bias) else "bias"
    if sizes is None:
        return kind
    axes = ("heads", "queries", "keys") if len(sizes) > 3 else ("queries", "keys")
    named = zip(axes, sizes[-len(axes) :], strict=False)
    differing = [axis for axis, size in named if size != 1]
    if len(sizes) > 2 and sizes[0] != 1:
        differing.insert(0, "batch")
    return f"{kind} by {', '.join(differing)}" if differing else kind


def bias_sizes(expression: Expression, dims: Dims) -> Sizes | None:
    """The sizes of a bias; None where its rank is unknown."""
    if isinstance(expression, Known):
        return dims.of(expression.value)
    if isinstance(expression, Number):
        return ()
    if isinstance(expression, Computed):
        found = [bias_sizes(operand, dims) for operand in expression.operands]
    else:
        found = [dims.of(expression.condition)]
        found += [bias_sizes(side, dims) for side in (expression.chosen, expression.other)]
    if any(sizes is None for sizes in found):
        return None
    rank = max(len(sizes) for sizes in found if sizes is not None)
    result = [1] * rank
    for sizes in found:
        for axis, size in enumerate(reversed(sizes or ())):
            if size != 1:
                result[rank - 1 - axis] = size  # pyright: ignore
    return tuple(result)


def _hides_only(expression: Expression) -> bool:
    """Whether the bias is known to be 0 where it does not hide."""
    if isinstance(expression, Number):
        return expression.number == 0.0 or expression.number < HIDDEN_BELOW
    if isinstance(expression, Choice):
        return _hides_only(expression.chosen) and _hides_only(expression.other)
    if isinstance(expression, Computed) and expression.op in ("Add", "Max"):
        return all(_hides_only(operand) for operand in expression.operands)
    return False
