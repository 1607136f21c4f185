"""Where a session runs: the device asked for, the start of CUDA, the runtime's noise held back."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
from collections.abc import Callable, Generator
from typing import Any, NamedTuple

import onnxruntime

from ..errors import DeviceError, InputError, ModelError

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"

OpenSession = Callable[[list[Any]], "onnxruntime.InferenceSession"]

INFO, WARNING = 20, 30  # logging's; the module itself is imported when there is something to say
_saying = threading.Lock()
_said: set[str] = set()
_holding = threading.Lock()


class Device(NamedTuple):
    """A device asked for: kind "cpu", "cuda" (with its number) or "auto"; CUDA's options."""

    kind: str
    number: int = 0
    use_tf32: bool = False
    memory_limit: int | None = None

    @classmethod
    def parse(cls, device: object, use_tf32: object, memory_limit: object) -> Device:
        """From "cpu", "cuda", "cuda:1" or "auto"; raises InputError for anything else."""
        if not isinstance(use_tf32, bool):
            raise InputError(f"use_tf32 must be True or False; received {use_tf32!r}")
        if memory_limit is not None and (type(memory_limit) is not int or memory_limit < 1):
            raise InputError(
                f"memory_limit must be a positive number of bytes, or None; received "
                f"{memory_limit!r}"
            )
        if device == "cpu" and memory_limit is not None:
            raise InputError(
                "memory_limit bounds the memory of a CUDA device, and device='cpu' has none. "
                "Leave it out, or bound the process (ulimit -v, a cgroup)"
            )
        if device in ("cpu", "auto"):
            return cls(str(device), 0, use_tf32, memory_limit)
        match = re.fullmatch(r"cuda(?::([0-9]{1,4}))?", device) if isinstance(device, str) else None
        if match is None:
            raise InputError(
                f"device must be 'cpu', 'cuda', 'cuda:N' or 'auto'; received {device!r}"
            )
        return cls("cuda", int(match[1] or 0), use_tf32, memory_limit)


def require_runtime() -> None:
    """Raise DeviceError where the installed onnxruntime is only an empty shell."""
    if not hasattr(onnxruntime, "InferenceSession"):
        from . import cuda

        raise DeviceError(str(cuda.broken_runtime()))


def start(open_session: OpenSession, device: Device) -> onnxruntime.InferenceSession:
    """The session that `open_session(providers)` gives on `device`.

    Raises DeviceError, naming the missing piece, where CUDA is asked for and does not start.
    "auto" takes the CPU then and says so once: as a warning where the machine has an NVIDIA GPU.
    """
    if device.kind == "cpu":
        return open_session([CPU])
    from . import cuda

    missing = cuda.missing_piece(device.number)
    if missing is None:
        try:
            session = _start_cuda(open_session, device)
        except DeviceError as error:
            if device.kind == "cuda":
                raise
            reason, expected = str(error), True
        else:
            if device.kind == "auto":
                _say_once(INFO, f"device='auto' runs on {device_of(session, device.number)}")
            return session
    else:
        if device.kind == "cuda":
            raise DeviceError(f"device='cuda:{device.number}': {missing}")
        reason, expected = missing.what, missing.gpu
    if device.memory_limit is not None:
        reason += ". memory_limit bounds nothing there"
    _say_once(WARNING if expected else INFO, f"device='auto' runs on cpu: {reason}")
    return open_session([CPU])


def device_of(session: onnxruntime.InferenceSession, asked: int = 0) -> str:
    """The device a session runs on, as the runtime says: "cpu", "cuda:0", ...

    `asked` is the index where the runtime names the provider, but not its index.
    """
    if CUDA not in session.get_providers():
        return "cpu"
    return f"cuda:{session.get_provider_options().get(CUDA, {}).get('device_id', asked)}"


def _start_cuda(open_session: OpenSession, device: Device) -> onnxruntime.InferenceSession:
    from . import cuda

    name = f"cuda:{device.number}"
    options = {"device_id": str(device.number), "use_tf32": str(int(device.use_tf32))}
    if device.memory_limit is not None:
        options["gpu_mem_limit"] = str(device.memory_limit)
        # Growing by powers of two would reach the limit long before the memory is used.
        options["arena_extend_strategy"] = "kSameAsRequested"
    fix = f"Install its libraries with {cuda.INSTALL}; onnx-attn doctor lists them"
    output = RuntimeOutput()
    try:
        with runtime_output(output):
            session = open_session([(CUDA, options), CPU])
    except ModelError as error:
        cause = str(error.__cause__)
        if not re.search("cuda|cudnn|cublas", cause, re.IGNORECASE):
            raise
        raise DeviceError(
            f"device={name!r}: CUDA does not start. ONNX Runtime says: {cause} {output.text}. {fix}"
        ) from error
    if device_of(session, device.number) != name:
        raise DeviceError(
            f"device={name!r}: ONNX Runtime did not start CUDA. It says: "
            f"{output.text or 'nothing'}. {fix}"
        )
    output.pass_on()
    return session


def _say_once(level: int, message: str) -> None:
    with _saying:
        if message in _said:
            return
        _said.add(message)
    import logging

    logging.getLogger("onnx_attn").log(level, message)


class RuntimeOutput:
    """What C code wrote to the process's stdout and stderr while they were held."""

    raw = b""

    @property
    def text(self) -> str:
        """It as one line, without colours and the log's prefixes (date, file, line)."""
        plain = re.sub(r"\x1b\[[0-9;]*m", "", self.raw.decode(errors="replace"))
        return " ".join(re.sub(r"(?m)^\S+ \S+ \[\w:.*?\] ", "", plain).split())

    def pass_on(self) -> None:
        """Write it to stderr after all."""
        with contextlib.suppress(OSError):
            os.write(2, self.raw)


@contextlib.contextmanager
def runtime_output(output: RuntimeOutput) -> Generator[None]:
    """Hold what C code writes to stdout and stderr, and put it into `output`.

    ONNX Runtime says on the terminal, not in an error, why a provider does not start. File
    descriptors belong to the whole process, so lines of other threads are held as well: this
    surrounds the start of CUDA and nothing else.
    """
    import tempfile

    with _holding, tempfile.TemporaryFile() as held:
        _flush()
        saved: dict[int, int] = {}
        for descriptor in (1, 2):
            with contextlib.suppress(OSError):  # closed, as in a service without a terminal
                saved[descriptor] = os.dup(descriptor)
        try:
            for descriptor in saved:
                os.dup2(held.fileno(), descriptor)
            yield
        finally:
            _flush()
            for descriptor, original in saved.items():
                os.dup2(original, descriptor)
                os.close(original)
            held.seek(0)
            output.raw = held.read()


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # pyright: ignore[reportUnnecessaryComparison]
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
