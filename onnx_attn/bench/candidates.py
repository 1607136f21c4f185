"""Everyone who computes cells, by name."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ..errors import InputError
from .candidate import Candidate
from .ours import HEADLINE, SCHEDULES, ours
from .peers import frameworks
from .peers import onnx_graphs as graphs


def _ours() -> list[Candidate]:
    found = [
        Candidate(schedule, f"ours, {schedule}", "ours", ours(schedule)) for schedule in SCHEDULES
    ]
    label = f"ours, {HEADLINE}, fed [[True]]"
    found.append(Candidate("true-masks", label, "ours", ours(HEADLINE, no_mask_given=True)))
    return found


def candidates() -> dict[str, Candidate]:
    """Every candidate by name, ours first."""
    runtime = (("onnxruntime", "onnxruntime-gpu"),)
    tensorflow = (("tensorflow-cpu", "tensorflow"), ("keras",))
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
            "matmuls-blocks",
            "the MatMuls in blocks",
            "bound",
            graphs.matmuls_in_blocks,
            runtime,
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
