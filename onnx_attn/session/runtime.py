"""ONNX Runtime as a session uses it: its options, opening a file, what its errors mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import onnxruntime

from ..configuration import TensorSpec
from ..device.threads import available_threads
from ..errors import InputError, ModelError, OnnxAttnError
from .feeds import shown

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
    source: str | bytes,
    where: str,
    options: onnxruntime.SessionOptions,
    providers: list[Any],
) -> onnxruntime.InferenceSession:
    """A session on a path or on bytes. Raises ModelError, which calls the file `where`."""
    try:
        # No fallback: it would print, and change the device behind the user's back.
        return onnxruntime.InferenceSession(source, options, providers=providers, enable_fallback=0)
    except Exception as error:  # UnicodeDecodeError and others come out of broken files
        raise ModelError(
            f"{where} cannot be loaded by ONNX Runtime: it is cut short or damaged, or needs a "
            f"newer runtime than onnxruntime {onnxruntime.__version__}. "
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


def check_graph(
    session: onnxruntime.InferenceSession,
    inputs: Mapping[str, TensorSpec],
    outputs: Mapping[str, TensorSpec],
    where: str,
) -> None:
    """Raise ModelError unless the graph has the names and types that the metadata promises."""
    try:
        found = _types(session.get_inputs())
        optional = _types(session.get_overridable_initializers())
        results = _types(session.get_outputs())
    except Exception as error:  # names that are no text
        raise ModelError(f"{where} is damaged: its names cannot be read") from error
    required = [(name, spec.dtype) for name, spec in inputs.items() if not spec.optional]
    overridable = {(name, spec.dtype) for name, spec in inputs.items() if spec.optional}
    promised = [(name, spec.dtype) for name, spec in outputs.items()]
    if found != required or not overridable <= set(optional) or results != promised:
        raise ModelError(
            f"{where} is damaged: its metadata promises inputs {_listed(required)} "
            f"{_listed(sorted(overridable))} and outputs {_listed(promised)}; its graph has "
            f"{_listed(found)} {_listed(optional)} and {_listed(results)}"
        )


def _types(entries: Iterable[onnxruntime.NodeArg]) -> list[tuple[str, str]]:
    return [(entry.name, ORT_TYPES.get(entry.type, entry.type)) for entry in entries]


def _listed(entries: Iterable[tuple[str, str]]) -> str:
    return "[" + ", ".join(f"{name} {dtype}" for name, dtype in entries) + "]"
