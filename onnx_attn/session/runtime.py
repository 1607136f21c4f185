"""ONNX Runtime as a session uses it: its options, opening a file, what its errors mean."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnxruntime

from ..arrays import shown
from ..contract import Contract
from ..device.threads import available_threads
from ..errors import InputError, ModelError, OnnxAttnError
from ..file.description import Found, as_found, changed

MOST_THREADS = 1024
FATAL = 4  # ONNX Runtime's log levels: below it, what it logs is also in what it raises
ORT_TYPES = {
    "tensor(bool)": "bool",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16",
    "tensor(float)": "float32",
    "tensor(double)": "float64",
}


def thread_count(threads: object) -> int:
    """The threads asked for, or what this process may use. Raises InputError."""
    if threads is None:
        return available_threads()
    if type(threads) is not int or not 1 <= threads <= MOST_THREADS:
        raise InputError(
            f"threads must be an integer from 1 to {MOST_THREADS}, or None for the "
            f"{available_threads()} this process may use; received {shown(threads)}"
        )
    return threads


def session_options(threads: int, spin: bool) -> onnxruntime.SessionOptions:
    """Options of a session that says what is wrong by raising it, and nothing else."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = FATAL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
    # Otherwise a file's name or first bytes may choose ONNX Runtime's own, unchecked format.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    return options


def open_file(
    data: bytes,
    where: str,
    options: onnxruntime.SessionOptions,
    providers: list[Any],
    as_exported: Callable[[], bool | None],
) -> onnxruntime.InferenceSession:
    """A session on the bytes of a file. Raises ModelError, which calls the file `where`.

    `as_exported` tells, where it is asked, whether the graph is still the one that was exported.
    """
    try:
        # No fallback: it would print, and change the device behind the user's back.
        return onnxruntime.InferenceSession(data, options, providers=providers, enable_fallback=0)
    except Exception as error:  # UnicodeDecodeError and others come out of broken files
        reason = {
            True: "It is as exported: does it need a newer runtime?",
            False: "Its graph is not as exported: another tool changed it, or it is damaged.",
            None: "Was it damaged or changed by another tool, or does it need a newer runtime?",
        }[as_exported()]
        raise ModelError(
            f"{where} cannot be loaded by ONNX Runtime {onnxruntime.__version__}. {reason} "
            f"ONNX Runtime says: {_one_line(error)}"
        ) from error


def run_error(error: Exception, device: str) -> OnnxAttnError:
    """What to raise for an error of a run on `device`."""
    text = _one_line(error)
    if isinstance(error, MemoryError) or any(
        words in text
        for words in ("bad_alloc", "allocate memory", "out of memory", "smaller than requested")
    ):
        return OnnxAttnError(
            f"this call needs more memory than there is on {device}. Give a smaller batch or "
            "shorter query and value, or a file without attention_scores. "
            f"ONNX Runtime says: {text}"
        )
    return OnnxAttnError(f"ONNX Runtime failed on this call, on {device}: {text}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def check_graph(session: onnxruntime.InferenceSession, promised: Contract, where: str) -> Contract:
    """The tensors the metadata promises, with the sizes that a tool has fixed in the graph since.

    Raises ModelError, by name, for tensors that the graph has not, or of another type or shape.
    """
    try:
        takes = _found(session.get_inputs(), True)
        takes |= _found(session.get_overridable_initializers(), False)
        gives = _found(session.get_outputs(), True)
    except Exception as error:  # names that are no text
        raise ModelError(f"{where} is damaged: its names cannot be read") from error
    inputs, differences = as_found(promised.inputs, takes, "input")
    outputs, others = as_found(promised.outputs, gives, "output")
    if differences or others:
        raise ModelError(changed(where, differences + others, takes))
    return Contract(inputs, outputs)


def _found(entries: list[onnxruntime.NodeArg], required: bool) -> dict[str, Found]:
    return {
        entry.name: Found(ORT_TYPES.get(entry.type, entry.type), tuple(entry.shape), required)
        for entry in entries
    }
