"""Generated calls on session, layer and command line: the right numbers or our error, no crash.

The figures of the full runs stand in docs/reliability.md.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from generated_calls import FLOATS, Call, check, damage, good_call, legal
from onnx_attn import Attention, AttentionSession, InputError, OnnxAttnError
from onnx_attn.cli import load_commands

DTYPES = ("float32", "float32", "float16")


def session_for(dtype: str, causal: bool) -> AttentionSession:
    layer = Attention(causal=causal, dtype=dtype)
    model = layer.to_onnx(return_attention_scores=True).SerializeToString()
    return AttentionSession(model, device="cpu", threads=1)


def draw(rng: np.random.Generator, dtype: str) -> Call:
    call = good_call(rng, dtype)
    for _ in range(int(rng.choice([0, 1, 1, 1, 2, 3]))):
        damage(call, rng)
    return call


def largest_dim(call: Call) -> int:
    """The largest dim of its arrays; from 2**40 on, kept empty by a 0, a call may fail legally."""
    shapes = [array.shape for array in call.feeds.values() if isinstance(array, np.ndarray)]
    return max((size for shape in shapes for size in shape), default=0)


def run_sessions(count: int, seed: int) -> Counter[str]:
    """What came of `count` calls on sessions; fails on anything but right numbers or InputError."""
    rng = np.random.default_rng(seed)
    sessions = {
        (dtype, causal): session_for(dtype, causal)
        for dtype in set(DTYPES)
        for causal in (False, True)
    }
    came: Counter[str] = Counter()
    for _ in range(count):
        dtype, causal = str(rng.choice(DTYPES)), bool(rng.random() < 0.5)
        call = draw(rng, dtype)
        allowed = legal(call.feeds, dtype)
        try:
            results = sessions[dtype, causal].run(call.feeds)
        except InputError:
            assert not allowed, f"refused, but legal: {call.done}"
            came["InputError"] += 1
        except OnnxAttnError as error:
            if not allowed or largest_dim(call) < 2**40:
                raise AssertionError(f"{call.done}: {error}") from error
            came["too large"] += 1
        else:
            assert allowed, f"taken, but not legal: {call.done}"
            compared = check(tuple(results.values()), call.feeds, dtype, causal)  # pyright: ignore
            came["right numbers" if compared else "beyond finite numbers"] += 1
    return came


def run_layers(count: int, seed: int) -> Counter[str]:
    """As `run_sessions`, on layers, which also take other ranks and cast floats."""
    rng = np.random.default_rng(seed)
    layers = {causal: Attention(causal=causal) for causal in (False, True)}
    came: Counter[str] = Counter()
    for _ in range(count):
        call = draw(rng, "float32")
        feeds, causal = call.feeds, bool(rng.random() < 0.5)
        inputs: Any = [feeds[name] for name in FLOATS if feeds.get(name) is not None]
        mask: Any = [feeds.get("query_mask"), feeds.get("value_mask")]
        mask = [mask, mask, None, mask[:1], tuple(mask), 3][
            int(rng.choice([0, 0, 0, 0, 1, 2, 3, 4, 5]))
        ]
        try:
            results = layers[causal](inputs, mask=mask, return_attention_scores=True)
        except OnnxAttnError:
            plain = legal(feeds) and (mask is None or isinstance(mask, list)) and len(inputs) > 1
            if plain and (mask is None or len(mask) == 2) and largest_dim(call) < 2**40:
                raise AssertionError(f"refused, but legal: {call.done}") from None
            came["error"] += 1
            continue
        if mask is None:
            feeds = {name: value for name, value in feeds.items() if not name.endswith("_mask")}
        if legal(feeds):
            compared = check(results, feeds, "float32", causal)
            came["right numbers" if compared else "beyond finite numbers"] += 1
        else:
            # Taken because Keras takes it: another float type, another rank, a broadcast axis.
            assert results[0].dtype == np.float32
            assert results[0].shape[-2:] == (inputs[0].shape[-2], inputs[1].shape[-1])
            came["right shape"] += 1
    return came


def run_commands(count: int, seed: int, folder: Path) -> Counter[str]:
    """As `run_sessions`, through `onnx-attn run` and files, some of them damaged."""
    rng = np.random.default_rng(seed)
    model = Attention().export(folder / "a.onnx", return_attention_scores=True)
    damaged = folder / "b.onnx"
    damaged.write_bytes(model.read_bytes()[:-100])
    app, out = load_commands(), folder / "out.npz"
    came: Counter[str] = Counter()
    for number in range(count):
        call = draw(rng, "float32")
        arrays = {
            name: array
            for name, array in call.feeds.items()
            if isinstance(array, np.ndarray) and array.dtype != object and name
        }
        saved = folder / "inputs.npz"
        np.savez(saved, **arrays)  # pyright: ignore[reportArgumentType]
        kind = int(rng.integers(8))
        arguments = ["run", str(model), str(saved), "-o", str(out)]
        if kind == 0:
            data = bytearray(saved.read_bytes())
            for at in rng.integers(len(data), size=3):
                data[at] ^= 255
            saved.write_bytes(data[: len(data) - int(rng.integers(2)) * 50])
        elif kind == 1:
            arguments[1] = str((damaged, folder / "nothing.onnx", folder)[number % 3])
        elif kind == 2:
            arguments[2] = str((model, folder / "nothing.npz", folder)[number % 3])
        elif kind == 3:
            arguments += [["--device", "gpu"], ["--scale", "x"], ["--what"], ["-o", "/no/x"]][
                number % 4
            ]
        out.unlink(missing_ok=True)
        result = CliRunner().invoke(app, arguments)
        ended = result.exception is None or isinstance(result.exception, SystemExit)
        assert ended, f"{arguments} {call.done}: {result.exception!r}"
        assert "Traceback" not in result.output
        if result.exit_code == 0:
            with np.load(out) as results:
                if kind > 3:
                    fed = {name: np.asarray(array) for name, array in arrays.items()}  # no mask
                    assert legal(fed), call.done
                    check((results["output"], results["attention_scores"]), fed)
            came["right numbers"] += 1
        else:
            assert result.exit_code == 2, result.output
            came["error and exit code 2"] += 1
    return came


def report(what: str, came: Counter[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Print one line of docs/reliability.md."""
    listed = ", ".join(f"{count} {kind}" for kind, count in sorted(came.items()))
    with capsys.disabled():
        sys.stdout.write(f"\n{what}: {came.total()} calls: {listed}\n")


def test_sessions() -> None:
    came = run_sessions(1500, seed=1)
    assert came.total() == 1500
    assert came["right numbers"] > 300
    assert came["InputError"] > 300


def test_layers() -> None:
    came = run_layers(400, seed=2)
    assert came["right numbers"] > 50
    assert came["error"] > 50


def test_commands(tmp_path: Path) -> None:
    came = run_commands(120, seed=3, folder=tmp_path)
    assert came["right numbers"] > 5
    assert came["error and exit code 2"] > 5


@pytest.mark.soak
def test_20000_calls(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = {
        "session": run_sessions(13_000, seed=11),
        "layer": run_layers(5_000, seed=12),
        "command line": run_commands(2_000, seed=13, folder=tmp_path),
    }
    for name, came in parts.items():
        report(f"generated calls, {name}", came, capsys)
    assert sum(came.total() for came in parts.values()) == 20_000
