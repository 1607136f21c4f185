"""Loads: many calls of many threads, and what calls and sessions leave behind in memory.

Spawned processes import this module by its name.
"""

from __future__ import annotations

import gc
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

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


def work(session: AttentionSession) -> bytes:
    calls = calls_of(np.random.default_rng(8), 50, largest=20)
    return b"".join(session.run(feeds)["output"].tobytes() for feeds in calls)


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
