"""Many threads on one session, many calls and many sessions: the same bits, no memory lost."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnx_attn import Attention, AttentionSession

MB = 2**20


def calls_of(rng: np.random.Generator, count: int, largest: int) -> list[dict[str, np.ndarray]]:
    """Feeds of `count` calls with differing shapes, masks in half of them."""
    calls = []
    for _ in range(count):
        batch, rows, columns = (int(size) for size in rng.integers(1, [4, largest, largest]))
        dim = int(rng.choice([4, 16, 64]))
        feeds = {
            "query": rng.standard_normal((batch, rows, dim), np.float32),
            "value": rng.standard_normal((batch, columns, dim), np.float32),
        }
        if rng.random() < 0.5:
            feeds["value_mask"] = rng.random((batch, columns)) < 0.7
        calls.append(feeds)
    return calls


def compare_threads(clients: int, calls_each: int, threads: int) -> int:
    """Calls of `clients` threads on one session whose bits equal those of a serial run."""
    model = Attention(causal=True, use_scale=True).to_onnx(return_attention_scores=True)
    session = AttentionSession(model.SerializeToString(), device="cpu", threads=threads)
    calls = calls_of(np.random.default_rng(5), 200, largest=40)
    wanted = [session.run(feeds) for feeds in calls]

    def client(number: int) -> int:
        order = np.random.default_rng(number).integers(len(calls), size=calls_each)
        for which in order:
            got = session.run(calls[which])
            for name, array in wanted[which].items():
                if array.tobytes() != got[name].tobytes():
                    raise AssertionError(f"call {which} gave other bits in client {number}")
        return calls_each

    with ThreadPoolExecutor(clients) as pool:
        return sum(pool.map(client, range(clients)))


@pytest.mark.parametrize("threads", [1, 2])
def test_many_threads_get_the_bits_of_a_serial_run(threads: int) -> None:
    assert compare_threads(clients=8, calls_each=150, threads=threads) == 1200


def test_threads_share_one_layer() -> None:
    layer = Attention(use_scale=True)
    layer.set_weights([0.5])
    calls = calls_of(np.random.default_rng(6), 40, largest=10)

    def call(feeds: dict[str, np.ndarray]) -> np.ndarray:
        mask: Any = [None, feeds["value_mask"]] if "value_mask" in feeds else None
        return layer([feeds["query"], feeds["value"]], mask=mask)

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(call, calls))
    for feeds, got in zip(calls, together, strict=True):
        np.testing.assert_array_equal(call(feeds), got)


def work(session: AttentionSession) -> bytes:
    calls = calls_of(np.random.default_rng(8), 50, largest=20)
    return b"".join(session.run(feeds)["output"].tobytes() for feeds in calls)


@pytest.mark.soak
def test_8_threads_of_5000_calls_and_4_workers(capsys: pytest.CaptureFixture[str]) -> None:
    equal = sum(compare_threads(8, 5000, threads) for threads in (1, 2)) // 2
    session = AttentionSession(Attention().to_onnx().SerializeToString(), device="cpu", threads=1)
    wanted = work(session)
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        workers = [got == wanted for got in pool.map(work, [session] * 4, chunksize=1)]
    with capsys.disabled():
        sys.stdout.write(
            f"\nconcurrency: {equal} calls of 8 threads (threads=1 and 2) and {sum(workers)} "
            f"spawned workers equal the serial bits\n"
        )
    assert equal == 40_000
    assert workers == [True] * 4


def resident() -> int:
    """Bytes of memory this process holds."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def grow_by_calls(calls: int, warm_up: int) -> tuple[int, int]:
    """Growth of resident memory, bytes, over `calls` calls after `warm_up`: at the end, most."""
    model = Attention(causal=True).to_onnx(return_attention_scores=True).SerializeToString()
    session = AttentionSession(model, device="cpu", threads=1)
    rng = np.random.default_rng(9)

    def call() -> None:
        batch, rows, columns, dim = (int(size) for size in rng.integers(1, [4, 48, 48, 32]))
        query = np.ones((batch, rows, dim), np.float32)
        value = np.ones((batch, columns, dim), np.float32)
        session(query, value, value_mask=np.ones((batch, columns), np.bool_))

    # The largest shapes first: what they take once is no leak.
    session(np.ones((3, 47, 31), np.float32), np.ones((3, 47, 31), np.float32))
    for _ in range(warm_up):
        call()
    gc.collect()
    start, most = resident(), 0
    for number in range(calls):
        call()
        if number % 1000 == 0:
            most = max(most, resident() - start)
    gc.collect()
    return resident() - start, most


def grow_by_sessions(sessions: int, warm_up: int, folder: Path) -> int:
    """Growth of resident memory, bytes, over `sessions` opened, run and closed after `warm_up`."""
    path = Attention().export(folder / "a.onnx")
    ones = np.ones((1, 8, 16), np.float32)

    def one() -> None:
        with AttentionSession(path, device="cpu", threads=2) as session:
            session(ones, ones)
            pickle.dumps(session)

    for _ in range(warm_up):
        one()
    gc.collect()
    start = resident()
    for _ in range(sessions):
        one()
    gc.collect()
    return resident() - start


def in_fresh_process(expression: str, folder: Path) -> str:
    """What `expression` prints in a process of its own, whose memory nobody else moves."""
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        f"import test_load\nfolder = Path(sys.argv[2])\nprint({expression})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent), str(folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


linux = pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")


@linux
def test_calls_keep_no_memory(tmp_path: Path) -> None:
    growth = in_fresh_process("test_load.grow_by_calls(6_000, 2_000)[0]", tmp_path)
    assert int(growth) < 8 * MB


@linux
def test_sessions_give_back_their_memory(tmp_path: Path) -> None:
    growth = in_fresh_process("test_load.grow_by_sessions(40, 10, folder)", tmp_path)
    assert int(growth) < 8 * MB


@linux
def test_a_leak_is_seen(tmp_path: Path) -> None:
    leaking = (
        "(setattr(test_load.AttentionSession, 'close', lambda self: kept.append(self)), "
        "test_load.grow_by_sessions(40, 10, folder))[1]"
    )
    growth = in_fresh_process(f"[kept := [], {leaking}][1]", tmp_path)
    assert int(growth) > 8 * MB


@linux
@pytest.mark.soak
def test_200000_calls_and_300_sessions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    growth = in_fresh_process("*test_load.grow_by_calls(200_000, 2_000)", tmp_path)
    end, most = (int(word) for word in growth.split())
    opened = int(in_fresh_process("test_load.grow_by_sessions(300, 20, folder)", tmp_path))
    with capsys.disabled():
        sys.stdout.write(
            f"\nleaks: 200000 calls: {end / MB:+.1f} MB at the end, {most / MB:+.1f} MB at most; "
            f"300 sessions: {opened / MB:+.1f} MB\n"
        )
    assert most < 8 * MB
    assert opened < 16 * MB
