"""Peak memory of this process."""

from __future__ import annotations

import sys
from pathlib import Path

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # proc(5): resets VmHWM to VmRSS


def peak_bytes() -> int:
    """Bytes of resident memory at its highest; on Linux since `start_peak`. 0 on Windows."""
    if STATUS.exists():
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return 0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def start_peak() -> int:
    """Begin a new peak where the system can, and return its bytes."""
    if CLEAR_REFS.exists():
        CLEAR_REFS.write_text(RESET_PEAK)
    return peak_bytes()
