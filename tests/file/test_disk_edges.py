"""The one writer: links, devices and pipes stay what they are."""

from __future__ import annotations

import os
import stat
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from onnx_attn import ModelError
from onnx_attn.cli.npz import read_npz, write_npz
from onnx_attn.file.disk import read_file
from onnx_attn.keras import load_layers

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX pipes and devices")


@posix
def test_devices_and_pipes_are_refused_and_stay(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (Path(os.devnull), pipe):
        kind = stat.S_IFMT(path.stat().st_mode)
        with pytest.raises(ModelError, match=r"device, pipe or socket\. Give the name of a file"):
            write_npz(path, {"output": np.ones(1)})
        assert stat.S_IFMT(path.stat().st_mode) == kind
    with pytest.raises(ModelError, match="is no file, but a device, pipe or socket"):
        load_layers(pipe)  # and does not wait for a writer
    with pytest.raises(ModelError, match="is no file"):
        read_file(pipe)


@posix
def test_a_link_stays_a_link(tmp_path: Path) -> None:
    target, link = tmp_path / "target.npz", tmp_path / "link.npz"
    link.symlink_to(target)
    write_npz(link, {"output": np.ones(1)})
    assert link.is_symlink()
    assert read_npz(target)["output"] == 1


def test_two_runs_to_one_name_leave_one_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "out.npz"

    def run(number: int) -> None:
        write_npz(path, {"output": np.full(50_000, number)})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, range(16)))
    assert len(set(read_npz(path)["output"].tolist())) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.npz"]
