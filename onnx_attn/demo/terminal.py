"""The demo in a terminal: attention scores as a coloured table, and plain lines."""

from __future__ import annotations

import numpy as np
from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from ..arrays import Array
from ..plot import weight_text

# The anchors of matplotlib's "viridis", so that terminal and picture look alike.
_COLOURS = np.array([[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]])


def heatmap(
    scores: Array, query_tokens: list[str], value_tokens: list[str], last: list[str]
) -> Table:
    """`scores` `[Tq, Tv]` as a table for the terminal, with a `last` word for each row."""
    widths = [max(len(token) + 2, 6) for token in value_tokens]
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, collapse_padding=True)
    table.add_column("", justify="right", no_wrap=True)
    # One cell a row for all weights: padding between columns would cut the colours apart.
    table.add_column(_joined(value_tokens, widths, Style(bold=True)), no_wrap=True)
    table.add_column(Text("looks at", style="italic"), no_wrap=True)
    for token, row, word in zip(query_tokens, scores, last, strict=True):
        weights = Text()
        for weight, width in zip(row.tolist(), widths, strict=True):
            weights.append(weight_text(weight).center(width), style=_heat(weight))
        table.add_row(Text(token, style="bold"), weights, Text(word, style="italic"))
    return table


def _joined(tokens: list[str], widths: list[int], style: Style) -> Text:
    centred = (token.center(width) for token, width in zip(tokens, widths, strict=True))
    return Text("".join(centred), style=style)


def _heat(weight: float) -> Style:
    """The colour of a weight; none for a small one, so that the rest stands out."""
    if weight < 0.05:
        return Style(dim=True)
    place = weight * (len(_COLOURS) - 1)
    red, green, blue = (
        int(np.interp(place, np.arange(len(_COLOURS)), _COLOURS[:, channel]))
        for channel in range(3)
    )
    # Not "black" and "white": themes of terminals redefine those.
    foreground = "rgb(0,0,0)" if weight > 0.6 else "rgb(255,255,255)"
    return Style(color=foreground, bgcolor=f"rgb({red},{green},{blue})")


class Voice:
    """Prints plain text: brackets in tokens and paths are no markup."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def line(self, text: str = "", *, wrap: bool = True) -> None:
        """One paragraph; with `wrap=False` long lines are left to the terminal."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=not wrap)

    def table(self, table: Table) -> None:
        """A table between two empty lines."""
        self._console.print()
        self._console.print(table)
        self._console.print()
