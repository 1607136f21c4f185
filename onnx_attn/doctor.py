"""What this machine has to run attention files with, and what there is to mend."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from typing import Any

import numpy as np
import onnxruntime

from .device import cuda
from .device.threads import affinity_cpus, available_threads, cgroup_cpus
from .errors import OnnxAttnError
from .session.session import AttentionSession
from .version import __version__

PACKAGES = ("onnxruntime", "onnxruntime-gpu", "numpy", "onnx", "onnxscript", "ml_dtypes")


@dataclass(frozen=True)
class Problem:
    """Something to mend, and the command or step that mends it."""

    what: str
    fix: str


@dataclass(frozen=True)
class Start:
    """What came of starting a session on a device: it ran, or the reason why not."""

    device: str
    starts: bool
    reason: str = ""


@dataclass
class Report:
    """All that `examine` found. `healthy` where there is nothing to mend; CPU only is healthy."""

    versions: dict[str, str]
    wheels: dict[str, str]
    providers: list[str]
    starts: list[Start]
    cuda: dict[str, Any]
    threads: dict[str, float | None]
    problems: list[Problem] = field(default_factory=list[Problem])

    @property
    def healthy(self) -> bool:
        """Whether there is nothing to mend."""
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        """The report as plain data, for JSON."""
        return {"healthy": self.healthy, **asdict(self)}


def examine() -> Report:
    """Look at versions, wheels, CUDA and threads, and start a session on each device there is."""
    problems = [
        Problem(found.what, found.fix)
        for found in (cuda.clashing_wheels(), cuda.broken_runtime())
        if found is not None
    ]
    broken = cuda.broken_runtime()
    missing = broken or cuda.missing_piece()
    starts: list[Start] = []
    model = None if broken else _smallest_model(problems)
    if model is not None:
        starts.append(_start(model, "cpu"))
        starts += [_start(model, f"cuda:{index}") for index in _cuda_devices(missing)]
        problems += [
            Problem(f"{start.device} does not run: {start.reason}", _mend(start.device))
            for start in starts
            if not start.starts
        ]
    if missing is not None and missing.gpu:
        problems.append(Problem(missing.what, missing.fix))
    return Report(
        versions=_versions(),
        wheels=cuda.runtime_wheels(),
        providers=[] if broken else list(onnxruntime.get_available_providers()),
        starts=starts,
        cuda=_cuda_facts(missing),
        threads={
            "affinity": affinity_cpus(),
            "cgroup": cgroup_cpus(),
            "used": available_threads(),
        },
        problems=problems,
    )


def _versions() -> dict[str, str]:
    found = {"onnx_attn": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = installed_version(package)
        except PackageNotFoundError:
            continue
    return {**found, "platform": platform.platform()}


def _smallest_model(problems: list[Problem]) -> bytes | None:
    try:
        from .layer.attention import Attention

        return Attention().to_onnx().SerializeToString()
    except Exception as error:  # whatever a broken installation of onnx raises
        reason = f"exporting fails: {type(error).__name__}: {error}"
        problems.append(Problem(reason, "Mend it: pip install --force-reinstall onnx onnxscript"))
        return None


def _start(model: bytes, device: str) -> Start:
    """Run one query on one key, whose weight is 1: the output is the value."""
    query, value = np.full((1, 1, 4), 2, np.float32), np.full((1, 1, 4), 3, np.float32)
    try:
        with AttentionSession(model, device=device) as session:
            output = session(query, value, query)
            runs_on = session.device
    except OnnxAttnError as error:
        return Start(device, False, str(error))
    if runs_on != device:
        return Start(device, False, f"asked for {device}, it runs on {runs_on}")
    if not np.array_equal(output, value):
        return Start(device, False, f"it computes {output!r} where {value!r} is right")
    return Start(device, True)


def _cuda_devices(missing: cuda.Missing | None) -> range:
    return range(cuda.device_count() if missing is None else 0)


def _mend(device: str) -> str:
    if device == "cpu":
        return "Mend it: pip install --force-reinstall onnxruntime"
    return f"Mend it: {cuda.INSTALL}"


def _cuda_facts(missing: cuda.Missing | None) -> dict[str, Any]:
    try:
        driver = ".".join(map(str, cuda.driver_cuda_version()))
    except OSError:
        driver = None
    return {
        "starts": missing is None,
        "missing": "" if missing is None else missing.what,
        "gpu": missing is None or missing.gpu,
        "built_for": cuda.cuda_major(),
        "driver": driver,
        "libraries": cuda.needed_libraries(),
    }
