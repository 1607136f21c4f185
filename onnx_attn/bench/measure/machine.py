"""What a measurement was taken on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import onnxruntime

from ...device.threads import available_threads
from ...version import __version__
from ..candidate import installed

DISTRIBUTIONS = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnx",
    "onnxscript",
    "numpy",
    "torch",
    "openvino",
    "tensorflow-cpu",
    "tensorflow",
    "keras",
)
CPUINFO = Path("/proc/cpuinfo")
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


def describe() -> dict[str, object]:
    """CPU, memory caches, operating system, and how busy the machine was."""
    return {
        "cpu": _cpu(),
        "threads": available_threads(),
        "vector_units": _vector_units(),
        "caches": _caches(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def versions() -> dict[str, str]:
    """Versions of this package and of what it is compared with, as far as installed."""
    found = {name: installed(name) for name in DISTRIBUTIONS}
    for name in ("onnxruntime", "onnxruntime-gpu"):
        # Both hold the same module: the one that runs counts.
        if found[name] != onnxruntime.__version__:
            found[name] = None
    return {"onnx_attn": __version__, **{name: v for name, v in found.items() if v}}


def _cpuinfo(field: str) -> str:
    if CPUINFO.exists():
        for line in CPUINFO.read_text().splitlines():
            name, _, text = line.partition(":")
            if name.strip() == field:
                return text.strip()
    return ""


def _cpu() -> str:
    name = _cpuinfo("model name") or platform.processor() or platform.machine()
    family, model = _cpuinfo("cpu family"), _cpuinfo("model")
    return f"{name} (family {family}, model {model})" if family else name


def _vector_units() -> list[str]:
    flags = set(_cpuinfo("flags").split())
    return [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_tile") if flag in flags]


def _caches() -> dict[str, str]:
    """Size of each data cache that the first CPU sees, by level."""
    found: dict[str, str] = {}
    if CACHES.exists():
        for index in sorted(CACHES.glob("index*")):
            if (index / "type").read_text().strip() != "Instruction":
                found[f"L{(index / 'level').read_text().strip()}"] = (
                    (index / "size").read_text().strip()
                )
    return found
