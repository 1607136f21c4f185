"""Who computes a cell: our files by schedule, and the registry of everyone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal, NamedTuple, cast, get_args

import numpy as np

from ..arrays import Array
from ..configuration import Schedule
from ..errors import InputError
from .cells import Cell

Kind = Literal["ours", "peer", "bound", "original"]


class CannotError(Exception):
    """A candidate has no way to say a cell; the message is the reason shown in the tables."""


class Prepared(NamedTuple):
    """A cell made ready: `run()` computes it once, `arrays(result)` are its outputs by name."""

    run: Callable[[], Any]
    arrays: Callable[[Any], dict[str, Array]]


# (task, inputs, threads); a task is a Cell, or for candidates of whole models a Whole.
Prepare = Callable[[Any, dict[str, Array], int], Prepared]


@dataclass(frozen=True)
class Candidate:
    """One way to compute cells.

    `prepare(cell, tensors, threads)` raises CannotError where the candidate has no way to say the
    cell. `packages` are the distributions it needs; each is (names, any of which will do).
    """

    name: str
    label: str
    kind: Kind
    prepare: Prepare
    packages: tuple[tuple[str, ...], ...] = ()

    @property
    def missing(self) -> str | None:
        """Why the candidate cannot run here, or None."""
        for names in self.packages:
            if not any(installed(name) for name in names):
                return f"{names[0]} is not installed: pip install 'onnx_attn[bench]'"
        return None


def installed(distribution: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def schedules() -> tuple[str, ...]:
    """The schedules this version can export."""
    return get_args(Schedule)


def headline() -> str:
    """Name of the candidate that stands for us: the schedule a plain export takes."""
    return "auto" if "auto" in schedules() else "dense"


def our_model(cell: Cell, schedule: str, *, no_mask_given: bool = False) -> bytes:
    """The file a user would export for `cell`; with `no_mask_given` one that takes both masks."""
    from ..layer.attention import Attention

    masks = "none" if cell.padding == "none" else "value"
    model = Attention(causal=cell.causal).to_onnx(
        masks="both" if no_mask_given else masks,
        schedule=cast("Schedule", schedule),
        return_attention_scores=cell.scores,
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


def _ours() -> list[Candidate]:
    found = [
        Candidate(schedule, f"ours, {schedule}", "ours", ours(schedule)) for schedule in schedules()
    ]
    main = headline()
    label = f"ours, {main}, fed [[True]]"
    found.append(Candidate("true-masks", label, "ours", ours(main, no_mask_given=True)))
    return found


def candidates() -> dict[str, Candidate]:
    """Every candidate by name, ours first."""
    from .peers import frameworks, onnx_graphs

    runtime = (("onnxruntime", "onnxruntime-gpu"),)
    tensorflow = (("tensorflow-cpu", "tensorflow"), ("keras",))
    graphs = onnx_graphs
    found = [
        *_ours(),
        Candidate("bare", "bare nodes in ONNX Runtime", "peer", graphs.bare, runtime),
        Candidate("attention-op", "ONNX Attention op", "peer", graphs.attention_op, runtime),
        Candidate("mha", "MultiHeadAttention op", "peer", graphs.multi_head_attention, runtime),
        Candidate("keras-onnx", "Keras's ONNX export", "peer", graphs.keras_export, runtime),
        Candidate(
            "openvino", "OpenVINO, our file", "peer", frameworks.openvino_ours, (("openvino",),)
        ),
        Candidate(
            "openvino-keras",
            "OpenVINO, Keras's export",
            "peer",
            frameworks.openvino_keras,
            (("openvino",),),
        ),
        Candidate("torch", "torch SDPA", "peer", frameworks.torch_sdpa, (("torch",),)),
        Candidate("keras", "Keras on TensorFlow", "peer", frameworks.keras_tensorflow, tensorflow),
        Candidate("matmuls", "two bare MatMuls", "bound", graphs.matmuls, runtime),
        Candidate(
            "matmuls-blocks", "the MatMuls in blocks", "bound", graphs.matmuls_in_blocks, runtime
        ),
    ]
    return {candidate.name: candidate for candidate in found}


def find(name: str) -> Candidate:
    """The candidate called `name`, or one of your own as `module:attribute`.

    The attribute is a function like `Candidate.prepare`, or a Candidate. Raises InputError for a
    name nobody has.
    """
    if ":" not in name:
        known = candidates()
        if name not in known:
            raise InputError(f"there is no candidate {name!r}; candidates: {', '.join(known)}")
        return known[name]
    found = imported(name)
    return found if isinstance(found, Candidate) else Candidate(name, name, "peer", found)


def imported(name: str) -> Any:
    """What `module:attribute` names. Raises InputError where there is no such thing."""
    module, _, attribute = name.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(f"candidate {name!r} cannot be imported: {error}") from error
