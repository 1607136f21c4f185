"""Attention scores as a picture.

matplotlib is imported only when a picture is asked for: it comes with the extra `plot`, and
nothing else in the package needs it.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import InputError, OnnxAttnError
from .file.disk import write_file

INSTALL_HINT = "pip install 'onnx_attn[plot]'"

# Above this many rows or columns neither numbers nor labels can be read in a cell.
_MAX_WRITTEN = 24


def can_plot() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def require_matplotlib(what: str = "a picture") -> None:
    """Raise OnnxAttnError if matplotlib is not installed; `what` needs it."""
    if not can_plot():
        raise OnnxAttnError(f"{what} needs matplotlib. Fix: {INSTALL_HINT}")


def save_heatmap(
    scores: npt.NDArray[Any],
    path: str | Path,
    *,
    query_labels: Sequence[str] | None = None,
    value_labels: Sequence[str] | None = None,
    title: str | None = None,
    query_mask: npt.NDArray[np.bool_] | None = None,
    value_mask: npt.NDArray[np.bool_] | None = None,
) -> Path:
    """Write the attention scores of one batch row as a heatmap.

    Args:
        scores: `[Tq, Tv]`, any real dtype: the weight of each value position (column) for each
            query position (row), between 0 and 1.
        path: the picture to write; its suffix says the format (`.png`, `.svg`, `.pdf`).
        query_labels: a name for each of the Tq rows.
        value_labels: a name for each of the Tv columns.
        title: a line above the picture.
        query_mask: bool `[Tq]`; rows where it is False are striped and marked "output 0".
        value_mask: bool `[Tv]`; columns where it is False are striped.

    Returns:
        The path written.

    Raises:
        InputError: `scores` is not `[Tq, Tv]` or is empty, labels or a mask have another length,
            or the suffix names no picture format.
        OnnxAttnError: matplotlib is not installed.
        ModelError: the file cannot be written.
    """
    scores = np.asarray(scores)
    path = Path(path)
    if scores.ndim != 2 or not scores.size:
        raise InputError(
            "scores: expected the scores of one batch row, [Tq, Tv] with at least one query and "
            f"one value position; received {list(scores.shape)}. "
            "Fix: choose a row of the batch, as in attention_scores[0]."
        )
    for name, given, length in (
        ("query_labels", query_labels, scores.shape[0]),
        ("value_labels", value_labels, scores.shape[1]),
        ("query_mask", query_mask, scores.shape[0]),
        ("value_mask", value_mask, scores.shape[1]),
    ):
        if given is not None and len(given) != length:
            raise InputError(
                f"{name}: expected {length} for scores {list(scores.shape)}; "
                f"received {len(given)}. Fix: give one for each position."
            )
    require_matplotlib()
    from matplotlib.figure import Figure

    rows, columns = scores.shape
    written = max(rows, columns) <= _MAX_WRITTEN
    size = (2.4 + 0.62 * columns, 1.9 + 0.46 * rows) if written else (8.0, 7.0)
    # Any: matplotlib's own stubs leave the keyword arguments of most methods untyped.
    figure: Any = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    # bfloat16 and float16 have no colour mapping of their own.
    weights = scores.astype(np.float32)
    image = axes.imshow(weights, cmap="viridis", vmin=0.0, vmax=1.0, aspect="auto")
    axes.set_xlabel("value (looked at)")
    axes.set_ylabel("query (looks)")
    axes.xaxis.set_label_position("top")
    axes.xaxis.tick_top()
    if title is not None:
        figure.suptitle(title)
    if written:
        if value_labels is None:
            axes.set_xticks(range(columns))
        else:
            axes.set_xticks(
                range(columns), labels=value_labels, rotation=45, ha="left", rotation_mode="anchor"
            )
        axes.set_yticks(range(rows), labels=range(rows) if query_labels is None else query_labels)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        for (row, column), weight in np.ndenumerate(weights):
            colour = "black" if weight > 0.6 else "white"
            axes.text(
                column, row, weight_text(float(weight)), ha="center", va="center", color=colour
            )
    for row in _hidden(query_mask):
        _stripe(axes, (-0.5, row - 0.5), columns, 1)
        axes.text(columns - 0.4, row, "output 0", va="center", fontstyle="italic")
    for column in _hidden(value_mask):
        _stripe(axes, (column - 0.5, -0.5), 1, rows)
    figure.colorbar(image, ax=axes, label="attention")

    formats = figure.canvas.get_supported_filetypes()
    if path.suffix.lstrip(".").lower() not in formats:
        raise InputError(
            f"{path}: expected a picture format as suffix, received {path.suffix or 'none'!r}. "
            f"Fix: use one of {', '.join('.' + name for name in sorted(formats))}."
        )
    picture = io.BytesIO()
    figure.savefig(picture, dpi=150, format=path.suffix.lstrip(".").lower())
    return write_file(path, picture.getvalue())


def _hidden(mask: npt.NDArray[np.bool_] | None) -> list[int]:
    return [] if mask is None else np.flatnonzero(~mask).tolist()


def _stripe(axes: Any, corner: tuple[float, float], width: float, height: float) -> None:
    """Stripes over cells that a mask hides."""
    from matplotlib.patches import Rectangle

    axes.add_patch(
        Rectangle(corner, width, height, fill=False, hatch="///", edgecolor="0.6", linewidth=0)
    )


def weight_text(weight: float) -> str:
    """A weight with two decimals; an exact zero as a bare `0`, so that it can be told apart."""
    return "0" if weight == 0 else f"{weight:.2f}"
