"""CPU threads granted by affinity and by cgroup quotas, as the kernel writes them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from onnx_attn import Attention, AttentionSession
from onnx_attn.device import threads
from onnx_attn.device.threads import affinity_cpus, available_threads, cgroup_cpus


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


V2 = "0::/kubepods/pod1/worker\n"
GROUP = "sys/fs/cgroup/kubepods"
TREES: dict[str, tuple[dict[str, str], float | None]] = {
    "v2": ({"proc/self/cgroup": V2, f"{GROUP}/pod1/worker/cpu.max": "150000 100000\n"}, 1.5),
    "v2 without a quota": (
        {"proc/self/cgroup": V2, f"{GROUP}/pod1/worker/cpu.max": "max 100000\n"},
        None,
    ),
    "v2, the group above is tighter": (
        {
            "proc/self/cgroup": V2,
            f"{GROUP}/pod1/worker/cpu.max": "800000 100000\n",
            f"{GROUP}/pod1/cpu.max": "50000 100000\n",
        },
        0.5,
    ),
    "v2 in a container that sees its own group as the root": (
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "300000 100000\n"},
        3.0,
    ),
    "v2 with the host's name for a group that is mounted as the root": (
        {"proc/self/cgroup": V2, "sys/fs/cgroup/cpu.max": "300000 100000\n"},
        3.0,
    ),
    "v1": (
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/docker/abc\n2:memory:/docker/abc\n",
            "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "250000\n",
            "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000\n",
        },
        2.5,
    ),
    "v1 in a container": (
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/docker/abc\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
        2.0,
    ),
    "v1 without a quota": (
        {
            "proc/self/cgroup": "5:cpu:/\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
        None,
    ),
    "no cgroups": ({}, None),
    "nonsense": (
        {"proc/self/cgroup": "what\n0::/\n", "sys/fs/cgroup/cpu.max": "ten of them\n"},
        None,
    ),
}


@pytest.mark.parametrize("name", TREES)
def test_quotas_are_read(name: str, tmp_path: Path) -> None:
    files, cpus = TREES[name]
    assert cgroup_cpus(tree(tmp_path, files)) == cpus


@pytest.mark.parametrize(
    ("affinity", "quota", "granted"),
    [(8, None, 8), (8, 1.5, 2), (8, 0.5, 1), (2, 16.0, 2), (8, 3.0, 3)],
)
def test_the_smaller_grant_counts(
    affinity: int, quota: float | None, granted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "affinity_cpus", lambda: affinity)
    monkeypatch.setattr(threads, "cgroup_cpus", lambda: quota)
    assert available_threads() == granted


def test_sessions_take_what_is_granted() -> None:
    session = AttentionSession(Attention().to_onnx().SerializeToString(), device="cpu")
    options = session.ort_session.get_session_options()
    assert options.intra_op_num_threads == available_threads()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no CPU affinity on this system")
def test_affinity_of_a_real_process() -> None:
    one = min(os.sched_getaffinity(0))
    code = (
        f"import os; os.sched_setaffinity(0, [{one}])\n"
        "from onnx_attn.device.threads import available_threads; print(available_threads())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"
    assert affinity_cpus() == len(os.sched_getaffinity(0))
