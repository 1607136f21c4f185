"""Exports are whole or not at all: kills, full disks, links, leftovers, two writers at once."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from onnx_attn import Attention, AttentionSession, InputError, ModelError
from onnx_attn.file.disk import write_file

OLD, NEW = Attention(), Attention(use_scale=True, causal=True)

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals and file modes")

# Big enough to be caught in the middle of a write, as one export is done in a blink.
WRITER = """
import sys
from onnx_attn.file.disk import write_file
sys.stdout.write("ready\\n")
sys.stdout.flush()
sizes = {sizes!r}
while True:
    for letter, size in sizes:
        write_file({path!r}, letter.encode() * size)
"""


def kill_while_writing(path: Path, kills: int, seed: int) -> tuple[int, int]:
    """Kill a writing process at random moments; files found whole, leftovers found and cleaned.

    Fails where a file is neither the old one nor a new one, whole.
    """
    sizes = [("a", 4_000_000), ("b", 3_000_000)]
    whole = {letter.encode() * size for letter, size in sizes}
    code = WRITER.format(sizes=sizes, path=str(path))
    random = np.random.default_rng(seed)
    found = leftovers = 0
    write_file(path, b"a" * 4_000_000)
    for _ in range(kills):
        writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        time.sleep(random.uniform(0, 0.05))
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        assert path.read_bytes() in whole
        found += 1
        left = len(list(path.parent.iterdir())) - 1
        assert left <= 1, "a writer that starts again must clean what the last one left"
        leftovers += left
    write_file(path, b"end")
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    return found, leftovers


@posix
def test_killed_at_random_moments(tmp_path: Path) -> None:
    found, leftovers = kill_while_writing(tmp_path / "a.onnx", kills=12, seed=5)
    assert found == 12
    assert leftovers, "no kill hit a write: the test has shown nothing"


@posix
@pytest.mark.soak
def test_killed_at_100_random_moments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, leftovers = kill_while_writing(tmp_path / "a.onnx", kills=100, seed=6)
    with capsys.disabled():
        sys.stdout.write(
            f"\nkills: {found} of 100 left a whole file; {leftovers} left a temporary file, all "
            "cleaned by the next export\n"
        )
    assert (found, leftovers > 10) == (100, True)


EXPORT_UNDER_LIMIT = """
import resource, signal, sys
from onnx_attn import Attention, ModelError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
model = Attention(use_scale=True, causal=True)
model.to_onnx()
resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))
try:
    model.export({path!r})
except ModelError as error:
    sys.stdout.write(str(error))
"""


@posix
@pytest.mark.parametrize("share", [0.0, 0.9])
def test_no_room_for_the_file(share: float, tmp_path: Path) -> None:
    path = OLD.export(tmp_path / "a.onnx")
    before = path.read_bytes()
    size = int(len(NEW.to_onnx().SerializeToString()) * share)
    code = EXPORT_UNDER_LIMIT.format(size=size, path=str(path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"{path} cannot be written: File too large" in done.stdout
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.onnx"]


def fill(path: Path) -> None:
    """Write to `path` until the disk is full."""
    with path.open("wb", 0) as file:
        while True:
            try:
                file.write(b"x" * 4096)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                return


@posix
def test_a_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    if not mounted:
        pytest.skip("mounting needs root; test_no_room_for_the_file covers the same path")
    try:
        path = OLD.export(disk / "a.onnx")
        before = path.read_bytes()
        filler = disk / "filler"
        fill(filler)
        with pytest.raises(ModelError, match=r"a\.onnx cannot be written: No space left on device"):
            NEW.export(path)
        assert path.read_bytes() == before
        assert sorted(entry.name for entry in disk.iterdir()) == ["a.onnx", "filler"]
        filler.unlink()
        assert NEW.export(path).read_bytes() == NEW.to_onnx().SerializeToString(deterministic=True)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_two_writers_at_once_leave_one_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    contents = [bytes([65 + number]) * (200_000 + number) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(10):
            list(pool.map(lambda data: write_file(path, data), contents))
            assert path.read_bytes() in contents
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.onnx"]


def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    path = OLD.export(tmp_path / "a.onnx")
    whole = [layer.to_onnx().SerializeToString(deterministic=True) for layer in (OLD, NEW)]
    stop = threading.Event()

    def write() -> None:
        # By the exporter's writer, but without building the graph: many files in the time of one.
        while not stop.is_set():
            for data in reversed(whole):
                write_file(path, data)

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        seen = {path.read_bytes() for _ in range(1000)}
        stop.set()
        writing.result()
    assert seen == set(whole)
    assert path.read_bytes() == whole[0]
    assert NEW.export(path).read_bytes() == whole[1]
    AttentionSession(path, device="cpu")


def test_leftovers_of_others_stay(tmp_path: Path) -> None:
    dead = tmp_path / f".a.onnx.{'0' * 16}.part"
    strange = [tmp_path / ".a.onnx.backup.part", tmp_path / f".b.onnx.{'0' * 16}.part"]
    for path in (dead, *strange):
        path.write_bytes(b"half")
    OLD.export(tmp_path / "a.onnx")
    assert not dead.exists()
    assert all(path.exists() for path in strange)


@posix
def test_modes_and_links_are_kept(tmp_path: Path) -> None:
    umask = os.umask(0o027)
    try:
        path = OLD.export(tmp_path / "a.onnx")
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    path.chmod(0o604)
    link = tmp_path / "link.onnx"
    link.symlink_to(path)
    assert NEW.export(link) == link
    assert link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o604
    assert path.read_bytes() == NEW.to_onnx().SerializeToString(deterministic=True)


@posix
def test_places_that_take_no_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no folder"):
        OLD.export(tmp_path / "nowhere" / "a.onnx")
    with pytest.raises(ModelError, match="it is a folder"):
        OLD.export(tmp_path)
    with pytest.raises(ModelError, match="device, pipe or socket"):
        OLD.export(os.devnull)
    assert stat.S_ISCHR(Path(os.devnull).stat().st_mode)
    with pytest.raises(ModelError, match="cannot be written"):
        OLD.export(tmp_path / ("n" * 300))
    with pytest.raises(ModelError, match="cannot be written"):
        OLD.export("a\0b.onnx")
    with pytest.raises(InputError, match="path: expected a str or a Path; received int"):
        OLD.export(3)  # pyright: ignore[reportArgumentType]
