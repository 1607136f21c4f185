"""Devices: what runs where, and what is said where CUDA does not start.

Tests marked cuda need a GPU. They are left out unless asked for (-m cuda), and then fail without
one: a GPU lane sets ONNX_ATTN_TEST_DEVICE=cuda and runs them.
"""

from __future__ import annotations

import ctypes
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import onnxruntime
import pytest

from onnx_attn import Attention, AttentionSession, DeviceError, OnnxAttnError
from onnx_attn.device import cuda, start
from onnx_attn.device.start import CPU, CUDA, Device, RuntimeOutput, runtime_output
from onnx_attn.reference import attention

RNG = np.random.default_rng(3)
QUERY = RNG.standard_normal((2, 33, 64)).astype(np.float32)
VALUE = RNG.standard_normal((2, 65, 64)).astype(np.float32)
MASK = np.arange(65)[None] < np.array([[65], [20]])

GPU_EXPECTED = os.environ.get("ONNX_ATTN_TEST_DEVICE") == "cuda"
without_gpu = pytest.mark.skipif(GPU_EXPECTED, reason="this machine is said to have a GPU")


@pytest.fixture(scope="module")
def model() -> bytes:
    return Attention().to_onnx().SerializeToString()


@pytest.fixture
def fresh_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process, where nothing has been said yet."""
    monkeypatch.setattr(start, "_said", set())


@without_gpu
@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:1"])
def test_cuda_without_a_gpu_is_an_error_that_names_what_is_missing(name: str, model: bytes) -> None:
    with pytest.raises(DeviceError) as raised:
        AttentionSession(model, device=name)
    text = str(raised.value)
    missing = cuda.missing_piece(int(name.partition(":")[2] or 0))
    assert missing is not None
    assert missing.what in text
    assert missing.fix in text
    assert re.search("no NVIDIA GPU|driver|build without CUDA|overwrite|macOS", text)


@without_gpu
@pytest.mark.usefixtures("fresh_log")
def test_auto_takes_the_cpu_and_says_so_once(
    model: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="onnx_attn"):
        first = AttentionSession(model, device="auto")
        AttentionSession(model, device="auto", memory_limit=2**30)
        AttentionSession(model, device="auto")
    assert first.device == "cpu"
    said = [record.getMessage() for record in caplog.records if record.name == "onnx_attn"]
    assert len(said) == 2
    assert said[0].startswith("device='auto' runs on cpu: ")
    assert "memory_limit bounds nothing there" in said[1]


@pytest.mark.usefixtures("fresh_log")
def test_cpu_says_nothing(model: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="onnx_attn"):
        assert AttentionSession(model, device="cpu").device == "cpu"
    assert not caplog.records


# What each missing piece looks like to the functions that look for it, and what must be said.
PIECES = {
    "CPU-only wheel": (
        {"providers": [CPU], "wheels": {"onnxruntime": "1.30.0"}},
        ["onnxruntime", "build without CUDA", 'pip install "onnxruntime-gpu[cuda,cudnn]"'],
    ),
    "both wheels": (
        {"providers": [CPU], "wheels": {"onnxruntime": "1.30.0", "onnxruntime-gpu": "1.31.1"}},
        [
            "onnxruntime 1.30.0 and onnxruntime-gpu 1.31.1 are both installed",
            "pip uninstall -y onnxruntime onnxruntime-gpu",
            'pip install "onnxruntime-gpu[cuda,cudnn]"',
        ],
    ),
    "no GPU": ({"driver": None, "gpu": False}, ["no NVIDIA GPU", "device='cpu'"]),
    "no driver": (
        {"driver": None, "gpu": True},
        ["no driver", "Install the NVIDIA driver (version 580 or newer)", "--gpus all"],
    ),
    "GPU hidden": ({"driver": {"init": 100}}, ["finds no GPU", "CUDA_VISIBLE_DEVICES"]),
    "driver broken": ({"driver": {"init": 803}}, ["cuInit gives 803", "different versions"]),
    "driver too old": (
        {"driver": {"version": 12040}},
        ["knows CUDA 12", "built for CUDA 13", "version 580 or newer"],
    ),
    "no such device": (
        {"driver": {"count": 1}, "index": 1},
        ["no CUDA device 1", "this process sees 'cuda:0'"],
    ),
    "libraries": (
        {"driver": {}, "libraries": {"libcublas.so.13": None, "libcuda.so.1": "/lib/libcuda.so.1"}},
        [
            "not found: libcublas.so.13",
            "needs CUDA 13",
            'pip install "onnxruntime-gpu[cuda,cudnn]"',
        ],
    ),
}


class Driver:
    """The four calls of libcuda that are used, answering as a given driver would."""

    def __init__(self, init: int = 0, count: int = 1, version: int = 13000) -> None:
        self.answers = {"count": count, "version": version}
        self.init = init

    def cuInit(self, flags: int) -> int:  # noqa: N802
        assert flags == 0
        return self.init

    def cuDeviceGetCount(self, pointer: ctypes.c_void_p) -> int:  # noqa: N802
        ctypes.cast(pointer, ctypes.POINTER(ctypes.c_int))[0] = self.answers["count"]
        return 0

    def cuDriverGetVersion(self, pointer: ctypes.c_void_p) -> int:  # noqa: N802
        ctypes.cast(pointer, ctypes.POINTER(ctypes.c_int))[0] = self.answers["version"]
        return 0


@pytest.mark.parametrize("piece", PIECES)
def test_every_missing_piece_is_named_with_its_mend(
    piece: str, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine, words = PIECES[piece]
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: machine.get("providers", [CUDA, CPU])
    )
    monkeypatch.setattr(cuda, "runtime_wheels", lambda: machine.get("wheels", {}))
    monkeypatch.setattr(cuda, "nvidia_gpu", lambda: machine.get("gpu", True))
    monkeypatch.setattr(cuda, "cuda_major", lambda: 13)
    monkeypatch.setattr(cuda, "preload", lambda: None)
    monkeypatch.setattr(cuda, "needed_libraries", lambda: machine.get("libraries", {}))

    def driver() -> Driver:
        if machine.get("driver") is None:
            raise OSError("libcuda.so.1: cannot open shared object file")
        return Driver(**machine["driver"])

    monkeypatch.setattr(cuda, "_driver", driver)
    with pytest.raises(DeviceError) as raised:
        AttentionSession(model, device=f"cuda:{machine.get('index', 0)}")
    for word in words:
        assert word in str(raised.value)


@pytest.mark.usefixtures("fresh_log")
def test_a_gpu_that_does_not_start_is_a_warning_under_auto(
    model: bytes,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    missing = cuda.Missing("CUDA libraries are not found: libcublas.so.13", "Mend it", gpu=True)
    monkeypatch.setattr(cuda, "missing_piece", lambda _: missing)
    with caplog.at_level(logging.INFO, logger="onnx_attn"):
        assert AttentionSession(model, device="auto").device == "cpu"
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.WARNING, f"device='auto' runs on cpu: {missing.what}")
    ]


@without_gpu
@pytest.mark.skipif(CUDA not in onnxruntime.get_available_providers(), reason="a CPU-only wheel")
def test_what_the_runtime_says_on_the_terminal_is_in_the_error(
    model: bytes, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # Every check passes, and then the runtime itself finds that CUDA cannot start: for real here.
    monkeypatch.setattr(cuda, "missing_piece", lambda _: None)
    with pytest.raises(DeviceError, match=r"did not start CUDA.*(cuda|CUDA)") as raised:
        AttentionSession(model, device="cuda")
    assert "Failed" in str(raised.value)
    assert 'pip install "onnxruntime-gpu[cuda,cudnn]"' in str(raised.value)
    assert capfd.readouterr() == ("", "")


def test_lines_of_c_code_are_held_and_handed_over(capfd: pytest.CaptureFixture[str]) -> None:
    output = RuntimeOutput()
    with runtime_output(output):
        os.write(
            2, b"\x1b[1;31m2026-01-01 00:00:00.0 [E:onnxruntime:Default, a.cc:1 F] lost\x1b[m\n"
        )
        os.write(1, b"lines\n")
    assert output.text == "lost lines"
    assert capfd.readouterr() == ("", "")
    os.write(1, b"free again\n")
    assert capfd.readouterr().out == "free again\n"


def test_wheels_that_hold_the_runtime() -> None:
    wheels = cuda.runtime_wheels()
    assert wheels
    assert all(name.startswith(("onnxruntime", "ort-nightly")) for name in wheels)
    assert (cuda.clashing_wheels() is not None) == (len(wheels) > 1)


def test_two_wheels_are_found_by_their_metadata(tmp_path: Path) -> None:
    # Without an __init__.py, the folder does not hide the real package.
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "LICENSE").write_text("")
    for name, version in (("onnxruntime", "1.30.0"), ("onnxruntime_gpu", "1.31.1")):
        folder = tmp_path / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n"
        )
        (folder / "RECORD").write_text("onnxruntime/LICENSE,,\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from onnx_attn.device import cuda; print(cuda.clashing_wheels())"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert "onnxruntime 1.30.0 and onnxruntime-gpu" in said
    assert "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu" in said


def test_an_emptied_runtime_is_a_device_error_with_the_mend(tmp_path: Path, model: bytes) -> None:
    # What is left of onnxruntime when pip removes one of two wheels.
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "__init__.py").write_text("")
    (tmp_path / "a.onnx").write_bytes(model)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from onnx_attn import AttentionSession, DeviceError\n"
        "try:\n"
        f"    AttentionSession({str(tmp_path / 'a.onnx')!r}, device='cpu')\n"
        "except DeviceError as error:\n"
        "    print(error)\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert "onnxruntime is incomplete" in said
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in said


# ---- on a GPU


@pytest.fixture(scope="module")
def on_cuda(model: bytes) -> AttentionSession:
    return AttentionSession(model, device="cuda")


@pytest.mark.cuda
def test_cuda_runs_on_cuda_and_says_so(on_cuda: AttentionSession) -> None:
    assert on_cuda.device == "cuda:0"
    assert on_cuda.ort_session.get_providers()[0] == CUDA
    options = on_cuda.ort_session.get_provider_options()[CUDA]
    assert options["use_tf32"] == "0"


@pytest.mark.cuda
@pytest.mark.usefixtures("fresh_log")
def test_auto_takes_cuda(model: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="onnx_attn"):
        assert AttentionSession(model, device="auto").device == "cuda:0"
        AttentionSession(model, device="auto")
    assert [record.getMessage() for record in caplog.records] == ["device='auto' runs on cuda:0"]


@pytest.mark.cuda
def test_a_device_that_is_not_there_is_named(model: bytes) -> None:
    with pytest.raises(DeviceError, match=r"no CUDA device 99; this process sees 'cuda:0'"):
        AttentionSession(model, device="cuda:99")


@pytest.mark.cuda
def test_a_hidden_gpu_is_named(model: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(model)
    code = (
        "from onnx_attn import AttentionSession, DeviceError\n"
        f"path = {str(tmp_path / 'a.onnx')!r}\n"
        "assert AttentionSession(path, device='auto').device == 'cpu'\n"
        "try:\n"
        "    AttentionSession(path, device='cuda')\n"
        "except DeviceError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "CUDA_VISIBLE_DEVICES" in done.stdout


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("causal", [False, True])
def test_numbers_on_cuda(dtype: str, causal: bool) -> None:
    layer = Attention(causal=causal, dtype=dtype)
    data = layer.to_onnx(return_attention_scores=True).SerializeToString()
    cast = np.dtype(getattr(ml_dtypes, dtype, dtype))
    query, value = QUERY.astype(cast), VALUE.astype(cast)
    session = AttentionSession(data, device="cuda")
    output, scores = session(query, value, value_mask=MASK)
    wanted, wanted_scores = attention(query, value, value_mask=MASK, causal=causal)
    rtol, atol = {
        "float16": (2e-3, 2e-3),
        "bfloat16": (1.6e-2, 1.6e-2),
        "float32": (1e-5, 1e-5),
        "float64": (1e-9, 1e-11),
    }[dtype]
    np.testing.assert_allclose(output.astype(np.float64), wanted, rtol=rtol, atol=atol)
    np.testing.assert_allclose(scores.astype(np.float64), wanted_scores, rtol=rtol, atol=atol)


@pytest.mark.cuda
def test_fully_masked_rows_on_cuda(on_cuda: AttentionSession) -> None:
    hidden = np.zeros((2, 65), np.bool_)
    wanted, _ = attention(QUERY / 8, VALUE / 8, value_mask=hidden)
    got = on_cuda(QUERY / 8, VALUE / 8, value_mask=hidden)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.cuda
def test_tf32_is_off_unless_asked_for(model: bytes) -> None:
    query = RNG.standard_normal((1, 256, 512)).astype(np.float32)
    exact, _ = attention(query / 8, query / 8)
    errors = {
        tf32: np.abs(
            AttentionSession(model, device="cuda", use_tf32=tf32)(query / 8, query / 8) - exact
        ).max()
        for tf32 in (False, True)
    }
    assert errors[False] < 1e-5
    options = AttentionSession(model, device="cuda", use_tf32=True).ort_session
    assert options.get_provider_options()[CUDA]["use_tf32"] == "1"


@pytest.mark.cuda
def test_ort_values_stay_on_the_gpu(on_cuda: AttentionSession) -> None:
    query = onnxruntime.OrtValue.ortvalue_from_numpy(QUERY, "cuda", 0)
    value = onnxruntime.OrtValue.ortvalue_from_numpy(VALUE, "cuda", 0)
    feeds = {"query": query, "value": value, "value_mask": MASK}
    output = on_cuda.run(feeds, ort_values=True)["output"]
    assert output.device_name() == "cuda"
    wanted = on_cuda(QUERY, VALUE, value_mask=MASK)
    np.testing.assert_allclose(output.numpy(), wanted, rtol=1e-6, atol=1e-6)
    # And back to arrays where these are asked for.
    np.testing.assert_allclose(on_cuda.run(feeds)["output"], wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.cuda
@pytest.mark.parametrize(
    "shape", [(0, 3, 5), (2, 0, 5), (2, 3, 0)], ids=["no batch", "no query", "no value"]
)
def test_empty_arrays_on_cuda(on_cuda: AttentionSession, shape: tuple[int, int, int]) -> None:
    batch, query_length, value_length = shape
    query = np.ones((batch, query_length, 4), np.float32)
    output = on_cuda(query, np.ones((batch, value_length, 4), np.float32))
    np.testing.assert_array_equal(output, np.zeros((batch, query_length, 4), np.float32))


@pytest.mark.cuda
def test_arrays_of_other_layouts_on_cuda(on_cuda: AttentionSession) -> None:
    wanted = on_cuda(QUERY, VALUE)
    np.testing.assert_array_equal(on_cuda(np.asfortranarray(QUERY), VALUE), wanted)
    swapped = VALUE.astype(">f4")
    np.testing.assert_array_equal(on_cuda(QUERY, swapped), wanted)


@pytest.mark.cuda
def test_memory_limit_holds() -> None:
    data = Attention().to_onnx(schedule="dense").SerializeToString()
    session = AttentionSession(data, device="cuda", memory_limit=64 * 2**20)
    options = session.ort_session.get_provider_options()[CUDA]
    assert options["gpu_mem_limit"] == str(64 * 2**20)
    session(QUERY, VALUE)
    long = np.ones((1, 8192, 64), np.float32)
    with pytest.raises(OnnxAttnError, match="more memory than there is on cuda:0"):
        session(long, long)
    session(QUERY, VALUE)


@pytest.mark.cuda
def test_the_start_of_cuda_is_quiet(model: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(model)
    code = (
        "import numpy as np\n"
        "from onnx_attn import AttentionSession\n"
        f"session = AttentionSession({str(tmp_path / 'a.onnx')!r}, device='cuda')\n"
        "session(np.ones((1, 2, 3), np.float32), np.ones((1, 4, 3), np.float32))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.cuda
def test_every_library_the_provider_needs_is_found() -> None:
    assert cuda.missing_piece() is None
    assert cuda.device_count() >= 1
    libraries = cuda.needed_libraries()
    assert libraries
    assert all(path is not None for path in libraries.values())


def test_devices_parse_to_the_index() -> None:
    assert Device.parse("cuda:1", False, None).number == 1
    assert Device.parse("cuda", False, None) == Device("cuda", 0)
