"""A model in ONNX Runtime, as it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from ..errors import InputError, ModelError

SILENT = 4  # ONNX Runtime's log level: what it would log is in what it raises
NUMPY_TYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(bool)": "bool",
    "tensor(string)": "object",
} | {
    f"tensor({kind})": kind
    for kind in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
}


class RunError(Exception):
    """What ONNX Runtime says of a run that failed."""


class Runner:
    """A session on the CPU."""

    def __init__(
        self, model: onnx.ModelProto | bytes, folder: Path | None, where: str, threads: int = 0
    ) -> None:
        """Raises ModelError where ONNX Runtime does not load the model."""
        options = onnxruntime.SessionOptions()
        options.log_severity_level = SILENT
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.load_model_format", "ONNX")
        if folder is not None:
            options.add_session_config_entry(
                "session.model_external_initializers_file_folder_path", str(folder)
            )
        data = model if isinstance(model, bytes) else model.SerializeToString()
        try:
            self.session = onnxruntime.InferenceSession(
                data, options, providers=["CPUExecutionProvider"], enable_fallback=0
            )
        except Exception as error:  # UnicodeDecodeError and others come out of broken files
            raise ModelError(
                f"{where} cannot be loaded by ONNX Runtime: {one_line(error)}"
            ) from error
        self.outputs = [output.name for output in self.session.get_outputs()]

    def __call__(self, feeds: Mapping[str, Any]) -> list[Any]:
        """All outputs. Raises RunError."""
        try:
            return list(self.session.run(None, dict(feeds)))
        except Exception as error:
            raise RunError(one_line(error)) from error

    def check(self, feeds: Mapping[str, Any]) -> None:
        """Raises InputError for a feed that the model does not take."""
        wanted = {entry.name: entry for entry in self.session.get_inputs()}
        for name in feeds:
            if name not in wanted:
                raise InputError(
                    f"inputs: the model has no input {name!r}; it takes {', '.join(wanted)}"
                )
        for name, entry in wanted.items():
            if name not in feeds:
                raise InputError(f"inputs: {name} is missing; the model takes {', '.join(wanted)}")
            array = np.asarray(feeds[name])
            dims = list(entry.shape)
            fits = len(dims) == array.ndim and all(
                not isinstance(dim, int) or dim == size
                for dim, size in zip(dims, array.shape, strict=True)
            )
            kind = NUMPY_TYPES.get(entry.type, entry.type)
            if not fits or array.dtype.name != kind:
                raise InputError(
                    f"inputs: {name} must be {kind}{dims}; "
                    f"received {array.dtype.name}{list(array.shape)}"
                )


def one_line(error: Exception) -> str:
    """An error's words on one line, without ONNX Runtime's own file and line."""
    return " ".join(str(error).split())[:500]
