"""What CUDA needs to start, looked for piece by piece, each with the line that mends it."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime

PROVIDER = "CUDAExecutionProvider"
INSTALL = 'pip install "onnxruntime-gpu[cuda,cudnn]"'
# https://docs.nvidia.com/deploy/cuda-compatibility: the oldest Linux driver of each CUDA major.
OLDEST_DRIVER = {11: "450", 12: "525", 13: "580"}
# Codes of the driver's cuInit, from cuda.h.
NO_DEVICE, STUB_LIBRARY, DRIVER_MISMATCH = 100, 34, 803

logger = logging.getLogger("onnx_attn")
_preloading = threading.Lock()
_preloaded = False


@dataclass(frozen=True)
class Missing:
    """Why CUDA does not start: what is missing, how to mend it.

    `gpu` tells whether this machine has an NVIDIA GPU that one would expect to run.
    """

    what: str
    fix: str
    gpu: bool

    def __str__(self) -> str:
        return f"{self.what}. {self.fix}"


def missing_piece(index: int = 0) -> Missing | None:
    """What keeps CUDA device `index` from starting, or None; loads the CUDA libraries."""
    return _missing_wheel() or _missing_driver() or _missing_device(index) or _missing_libraries()


def runtime_wheels() -> dict[str, str]:
    """Installed distributions that hold the package onnxruntime, by name: version."""
    from importlib.metadata import distributions

    found: dict[str, str] = {}
    for distribution in distributions():
        name = (distribution.metadata["Name"] or "").lower().replace("_", "-")
        if re.fullmatch(r"onnxruntime(-[a-z0-9]+)*|ort-nightly(-[a-z0-9]+)*", name) and any(
            file.parts[:1] == ("onnxruntime",) for file in distribution.files or ()
        ):
            found[name] = distribution.version
    return found


def broken_runtime() -> Missing | None:
    """An onnxruntime that is only an empty shell, as pip leaves it when one of two wheels goes."""
    if hasattr(onnxruntime, "InferenceSession"):
        return None
    names = sorted({"onnxruntime", "onnxruntime-gpu", *runtime_wheels()})
    return Missing(
        "the installed onnxruntime is incomplete: another wheel took its files along",
        f"Mend it: pip uninstall -y {' '.join(names)} && pip install onnxruntime-gpu",
        gpu=False,
    )


def clashing_wheels() -> Missing | None:
    """More than one wheel in the folder onnxruntime, each having overwritten the other's files."""
    wheels = runtime_wheels()
    if len(wheels) < 2:
        return None
    names = sorted(wheels)
    listed = " and ".join(f"{name} {wheels[name]}" for name in names)
    keep = "onnxruntime-gpu" if "onnxruntime-gpu" in wheels else names[0]
    return Missing(
        f"{listed} are both installed and overwrite each other's files",
        f"Mend it: pip uninstall -y {' '.join(names)} && pip install {keep}",
        gpu=False,
    )


def cuda_major() -> int | None:
    """The CUDA major that this onnxruntime is built for; None for a CPU-only wheel."""
    try:
        from onnxruntime.capi.build_and_package_info import (
            cuda_version,  # pyright: ignore[reportUnknownVariableType]
        )
    except ImportError:
        return None
    match = re.match(r"\d+", str(cuda_version))  # pyright: ignore[reportUnknownArgumentType]
    return int(match[0]) if match else None


def _missing_wheel() -> Missing | None:
    if PROVIDER in onnxruntime.get_available_providers():
        return None
    clash = clashing_wheels()
    if clash is not None:
        names = " ".join(sorted(runtime_wheels()))
        return Missing(clash.what, f"Mend it: pip uninstall -y {names} && {INSTALL}", nvidia_gpu())
    if sys.platform == "darwin":
        return Missing("macOS has no CUDA", "Use device='cpu'", gpu=False)
    names = " ".join(runtime_wheels()) or "onnxruntime"
    return Missing(
        f"the installed {names} {onnxruntime.__version__} is a build without CUDA",
        f"Mend it: pip uninstall -y {names} && {INSTALL}",
        nvidia_gpu(),
    )


def nvidia_gpu() -> bool:
    """Whether Linux shows an NVIDIA device file or, on the PCI bus, a display controller."""
    if any(Path("/dev").glob("nvidia[0-9]*")):
        return True
    for device in Path("/sys/bus/pci/devices").glob("*"):
        with contextlib.suppress(OSError):
            vendor = (device / "vendor").read_text().strip()
            kind = (device / "class").read_text().strip()
            if vendor == "0x10de" and kind.startswith("0x03"):
                return True
    return False


def _missing_driver() -> Missing | None:
    try:
        driver = _driver()
    except OSError:
        if nvidia_gpu():
            return Missing(
                f"there is an NVIDIA GPU, but no driver: {_driver_name()} is not found",
                f"Install the NVIDIA driver ({_oldest_driver()}); in a container, start it with "
                "GPU access, as docker run --gpus all",
                gpu=True,
            )
        return Missing(
            f"this machine has no NVIDIA GPU, or a container hides it ({_driver_name()} not found)",
            "Use device='cpu', or 'auto', which takes CUDA where it is",
            gpu=False,
        )
    code = driver.cuInit(0)
    if code == NO_DEVICE:
        return Missing(
            "the NVIDIA driver finds no GPU",
            "Look at nvidia-smi and at CUDA_VISIBLE_DEVICES, "
            f"which is {os.environ.get('CUDA_VISIBLE_DEVICES', 'not set')!r}",
            gpu=nvidia_gpu(),
        )
    if code:
        reason = {
            STUB_LIBRARY: f"{_driver_name()} is the toolkit's stub, not a driver",
            DRIVER_MISMATCH: "driver and kernel module are of different versions: restart",
        }.get(code, "look at nvidia-smi")
        return Missing(
            f"the NVIDIA driver does not start (cuInit gives {code}: {reason})",
            f"Install a working driver ({_oldest_driver()})",
            gpu=nvidia_gpu(),
        )
    supported, needed = driver_cuda_version()[0], cuda_major()
    if needed is not None and supported < needed:
        return Missing(
            f"the NVIDIA driver knows CUDA {supported}, this onnxruntime-gpu "
            f"{onnxruntime.__version__} is built for CUDA {needed}",
            f"Update the driver ({_oldest_driver()}), or install an onnxruntime-gpu built for "
            f"CUDA {supported}",
            gpu=True,
        )
    return None


def _missing_device(index: int) -> Missing | None:
    count = device_count()
    if index < count:
        return None
    names = ", ".join(f"'cuda:{number}'" for number in range(count)) or "none"
    return Missing(
        f"there is no CUDA device {index}; this process sees {names}",
        "Choose one of these, or look at CUDA_VISIBLE_DEVICES, "
        f"which is {os.environ.get('CUDA_VISIBLE_DEVICES', 'not set')!r}",
        gpu=count > 0,
    )


def _missing_libraries() -> Missing | None:
    preload()
    lost = [name for name, path in needed_libraries().items() if path is None]
    if not lost:
        return None
    return Missing(
        f"CUDA libraries are not found: {', '.join(lost)} (this onnxruntime-gpu "
        f"{onnxruntime.__version__} needs CUDA {cuda_major()})",
        f"Mend it: {INSTALL}",
        gpu=True,
    )


def preload() -> None:
    """Load the CUDA and cuDNN libraries of the nvidia wheels, once a process."""
    global _preloaded
    with _preloading:
        if _preloaded:
            return
        _preloaded = True
    import io

    noise = io.StringIO()
    # It prints what it cannot load; needed_libraries says it better.
    with contextlib.redirect_stdout(noise):
        onnxruntime.preload_dlls()
    if noise.getvalue():
        logger.debug("onnxruntime.preload_dlls: %s", " ".join(noise.getvalue().split()))


def needed_libraries() -> dict[str, str | None]:
    """CUDA libraries that the runtime's CUDA provider is linked with: where each is, or None.

    Asked of the system's loader; empty where there is no `ldd` to ask (Windows, musl).
    """
    import shutil
    import subprocess

    provider = Path(onnxruntime.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"
    ldd = shutil.which("ldd")
    if ldd is None or not provider.exists():
        return {}
    # The nvidia wheels lie where the loader does not look; preload() loads them by path.
    folders = [str(folder) for folder in _wheel_folders()]
    folders += os.environ.get("LD_LIBRARY_PATH", "").split(":")
    answer = subprocess.run(
        [ldd, str(provider)],
        env={
            **os.environ,
            "LD_LIBRARY_PATH": ":".join(filter(None, folders)),
            "LC_ALL": "C",
        },
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    found: dict[str, str | None] = {}
    for line in answer.splitlines():
        match = re.match(r"\s*(lib(?:cu|nv)\S+) => (not found|\S+)", line)
        if match:
            found[match[1]] = None if match[2] == "not found" else match[2]
    return found


def _wheel_folders() -> list[Path]:
    import site

    roots = [Path(onnxruntime.__file__).parent.parent, *map(Path, site.getsitepackages())]
    return sorted({folder for root in roots for folder in root.glob("nvidia/*/lib")})


def _driver_name() -> str:
    return "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


def _driver() -> Any:
    import ctypes

    return ctypes.CDLL(_driver_name())


def driver_cuda_version() -> tuple[int, int]:
    """The newest CUDA that the NVIDIA driver knows: (major, minor). Raises OSError without one."""
    import ctypes

    version = ctypes.c_int()
    _driver().cuDriverGetVersion(ctypes.byref(version))
    return version.value // 1000, version.value % 1000 // 10


def device_count() -> int:
    """CUDA devices this process sees, after cuInit. Raises OSError without a driver."""
    import ctypes

    count = ctypes.c_int()
    _driver().cuDeviceGetCount(ctypes.byref(count))
    return count.value


def _oldest_driver() -> str:
    version = OLDEST_DRIVER.get(cuda_major() or 0)
    return f"version {version} or newer" if version else "a recent one"
