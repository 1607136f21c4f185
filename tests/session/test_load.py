"""Many threads on one session, many calls and many sessions: the same bits, no memory lost."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loads
from onnx_attn import Attention, AttentionSession


@pytest.mark.parametrize("threads", [1, 2])
def test_many_threads_get_the_bits_of_a_serial_run(threads: int) -> None:
    assert loads.compare_threads(clients=8, calls_each=150, threads=threads) == 1200


def test_threads_share_one_layer() -> None:
    layer = Attention(use_scale=True)
    layer.set_weights([0.5])
    calls = loads.calls_of(np.random.default_rng(6), 40, largest=10)

    def call(feeds: dict[str, np.ndarray]) -> np.ndarray:
        mask: Any = [None, feeds["value_mask"]] if "value_mask" in feeds else None
        return layer([feeds["query"], feeds["value"]], mask=mask)

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(call, calls))
    for feeds, got in zip(calls, together, strict=True):
        np.testing.assert_array_equal(call(feeds), got)


@pytest.mark.soak
def test_8_threads_of_5000_calls_and_4_workers(capsys: pytest.CaptureFixture[str]) -> None:
    equal = sum(loads.compare_threads(8, 5000, threads) for threads in (1, 2)) // 2
    session = AttentionSession(Attention().to_onnx().SerializeToString(), device="cpu", threads=1)
    wanted = loads.work(session)
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        workers = [got == wanted for got in pool.map(loads.work, [session] * 4, chunksize=1)]
    with capsys.disabled():
        sys.stdout.write(
            f"\nconcurrency: {equal} calls of 8 threads (threads=1 and 2) and {sum(workers)} "
            f"spawned workers equal the serial bits\n"
        )
    assert equal == 40_000
    assert workers == [True] * 4


def in_fresh_process(expression: str, folder: Path) -> str:
    """What `expression` prints in a process of its own, whose memory nobody else moves."""
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        f"import loads\nfolder = Path(sys.argv[2])\nprint({expression})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(loads.__file__).parent), str(folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


linux = pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")


@linux
def test_calls_keep_no_memory(tmp_path: Path) -> None:
    growth = in_fresh_process("loads.grow_by_calls(6_000, 2_000)[0]", tmp_path)
    assert int(growth) < 8 * loads.MB


@linux
def test_sessions_give_back_their_memory(tmp_path: Path) -> None:
    growth = in_fresh_process("loads.grow_by_sessions(40, 10, folder)", tmp_path)
    assert int(growth) < 8 * loads.MB


@linux
def test_a_leak_is_seen(tmp_path: Path) -> None:
    leaking = (
        "(setattr(loads.AttentionSession, 'close', lambda self: kept.append(self)), "
        "loads.grow_by_sessions(40, 10, folder))[1]"
    )
    growth = in_fresh_process(f"[kept := [], {leaking}][1]", tmp_path)
    assert int(growth) > 8 * loads.MB


@linux
@pytest.mark.soak
def test_200000_calls_and_300_sessions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    growth = in_fresh_process("*loads.grow_by_calls(200_000, 2_000)", tmp_path)
    end, most = (int(word) for word in growth.split())
    opened = int(in_fresh_process("loads.grow_by_sessions(300, 20, folder)", tmp_path))
    with capsys.disabled():
        sys.stdout.write(
            f"\nleaks: 200000 calls: {end / loads.MB:+.1f} MB at the end, "
            f"{most / loads.MB:+.1f} MB at most; 300 sessions: {opened / loads.MB:+.1f} MB\n"
        )
    assert most < 8 * loads.MB
    assert opened < 16 * loads.MB
