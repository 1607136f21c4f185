"""Where a session runs: ONNX Runtime's provider and its threads."""

from __future__ import annotations

import os
from typing import Any

import onnxruntime

from .errors import DeviceError, InputError


def available_threads() -> int:
    """Threads this process may use: the CPUs of its affinity mask."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def providers_for(device: str) -> list[Any]:
    """ONNX Runtime's provider list for `device`; raises InputError or DeviceError."""
    if device in ("cpu", "auto"):
        return ["CPUExecutionProvider"]
    if device == "cuda" or device.startswith("cuda:"):
        raise DeviceError("device='cuda' is not there yet")
    raise InputError(f"device must be 'cpu', 'cuda', 'cuda:N' or 'auto'; received {device!r}")


def provider_of(session: onnxruntime.InferenceSession) -> str:
    """The device a session runs on, as the runtime says."""
    return "cpu" if session.get_providers() == ["CPUExecutionProvider"] else "cuda"
