"""Promise: what a saved model unpacks to, and the time it takes, is bounded by what it holds."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from onnx_attn import ModelError
from onnx_attn.keras import load_layers

MODEL = Path(__file__).parent / "files" / "golden" / "keras3151.keras"

CHILD = """
import resource, sys
from pathlib import Path
from onnx_attn import ModelError
from onnx_attn.keras import load_layers

load_layers(sys.argv[1])  # everything is imported now
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (192 << 20),) * 2)
used = resource.getrusage(resource.RUSAGE_SELF)
spent = int(used.ru_utime + used.ru_stime)
resource.setrlimit(resource.RLIMIT_CPU, (spent + 6, spent + 6))
try:
    load_layers(sys.argv[2])
except ModelError as error:
    print("refused:", error)
"""


def archive(path: Path, method: int = zipfile.ZIP_DEFLATED, **members: bytes) -> Path:
    """A .keras archive with members replaced."""
    names = {"config": "config.json", "weights": "model.weights.h5"}
    replaced = {names[key]: data for key, data in members.items()}
    with zipfile.ZipFile(MODEL) as old, zipfile.ZipFile(path, "w", method) as new:
        for name in old.namelist():
            new.writestr(name, replaced.get(name, old.read(name)))
    return path


def sequential(layers: list[Any]) -> dict[str, Any]:
    return {"class_name": "Sequential", "module": "keras", "config": {"layers": layers}}


def additive(name: str) -> dict[str, Any]:
    arguments = {"name": name, "use_scale": True}
    return {"class_name": "AdditiveAttention", "module": "keras.layers", "config": arguments}


def nested(depth: int, wide: int) -> bytes:
    model = sequential([{"class_name": "Dense", "module": "keras.layers", "config": {}}] * wide)
    for _ in range(depth):
        model = sequential([model])
    return json.dumps(model).encode()


def many(count: int) -> bytes:
    return json.dumps(sequential([additive(f"a{i}") for i in range(count)])).encode()


def one_weight_under_many_names(count: int) -> bytes:
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        zeros = file.create_dataset("zeros", data=np.zeros(1 << 18, np.float32), compression="gzip")
        for number in range(count):
            name = "additive_attention" + (f"_{number}" if number else "")
            file.create_group(f"layers/{name}/vars")["0"] = zeros
    return stream.getvalue()


@pytest.mark.skipif(sys.platform != "linux", reason="limits by /proc and resource")
@pytest.mark.parametrize(
    ("members", "message"),
    [
        (lambda: {"config": b"[" + b"[]," * 10_000_000 + b"[]]"}, "zip bomb"),
        (lambda: {"config": b"[" + b"[]," * 300_000 + b"[]]"}, "no configuration"),
        (lambda: {"weights": bytes(16 << 20)}, "zip bomb"),
        (lambda: {"config": nested(200, 10)}, "nested too deeply"),
        (lambda: {"config": nested(25, 14_000)}, "no Attention"),
        (lambda: {"config": many(10_000)}, "over 1000 attention layers"),
        (
            lambda: {"config": many(900), "weights": one_weight_under_many_names(900)},
            "unpack to more",
        ),
    ],
)
def test_a_hostile_archive_costs_little(
    tmp_path: Path, members: Callable[[], dict[str, bytes]], message: str
) -> None:
    path = archive(tmp_path / "hostile.keras", **members())
    assert path.stat().st_size < 1 << 20
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(MODEL), str(path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    assert child.stdout.startswith("refused:")
    assert message in child.stdout


def test_a_long_configuration_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    # Packed as Keras packs: the archive is as large as what it holds.
    path = archive(tmp_path / "a.keras", zipfile.ZIP_STORED, config=b"[" + b"[]," * 1_100_000)
    with pytest.raises(ModelError, match="over 1,048,576 values"):
        load_layers(path)


def test_a_long_vocabulary_is_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(MODEL) as file:
        config = json.loads(file.read("config.json"))
    config["vocabulary"] = [f"word{number}" for number in range(200_000)]
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        path = archive(tmp_path / f"{method}.keras", method, config=json.dumps(config).encode())
        assert load_layers(path)["my_att"].get_weights() == [np.float32(0.25)]


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_ways_to_pack_are_refused(tmp_path: Path, method: int) -> None:
    with pytest.raises(ModelError, match="zip the files again, stored or deflated"):
        load_layers(archive(tmp_path / "a.keras", method))
