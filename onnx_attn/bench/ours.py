"""Our files, by schedule, as candidates."""

from __future__ import annotations

from typing import Any, cast, get_args

import numpy as np

from ..arrays import Array
from ..configuration import Schedule
from ..errors import InputError
from .candidate import CannotError, Prepare, Prepared
from .cells import Cell

# The schedule a plain export takes: it stands for us.
HEADLINE = "auto"
SCHEDULES: tuple[str, ...] = get_args(Schedule)


def our_model(cell: Cell, schedule: str, *, no_mask_given: bool = False) -> bytes:
    """The file a user would export for `cell`; with `no_mask_given` one that takes both masks."""
    from ..layer.attention import Attention

    masks = "none" if cell.padding == "none" else "value"
    sizes = {"batch": cell.batch, "Tq": cell.Tq, "Tv": cell.Tv, "dim": cell.dim}
    model = Attention(causal=cell.causal).to_onnx(
        masks="both" if no_mask_given else masks,
        schedule=cast("Schedule", schedule),
        return_attention_scores=cell.scores,
        dims=sizes | {"value_dim": cell.dim} if cell.fixed else None,
    )
    return model.SerializeToString()


def ours(schedule: str, *, no_mask_given: bool = False) -> Prepare:
    """Our file in ONNX Runtime, through our session's settings, without the session's checks."""

    def prepare(cell: Cell, tensors: dict[str, Array], threads: int) -> Prepared:
        from ..session.session import AttentionSession

        if no_mask_given and cell.padding != "none":
            raise CannotError("the cell has a mask of its own")
        try:
            model = our_model(cell, schedule, no_mask_given=no_mask_given)
        except InputError as refused:
            raise CannotError(str(refused)) from refused
        session = AttentionSession(model, device="cpu", threads=threads)
        names, feeds = list(session.outputs), dict(tensors)
        if no_mask_given:
            feeds |= {name: np.array([[True]]) for name in ("query_mask", "value_mask")}
        run = session.ort_session.run

        def arrays(result: Any) -> dict[str, Array]:
            return dict(zip(names, result, strict=True))

        return Prepared(lambda: run(names, feeds), arrays)

    return prepare
