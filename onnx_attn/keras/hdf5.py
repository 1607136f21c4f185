"""An HDF5 file that nobody vouches for: every read is bounded and checked.

Links that lead out of the file, data kept outside of it and virtual data are refused, sizes are
looked at before anything is allocated, and what h5py raises comes out as ModelError.
"""

from __future__ import annotations

import mmap
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ..arrays import Array
from ..errors import ModelError, OnnxAttnError

# h5py ships no types.
Group: TypeAlias = Any
Dataset: TypeAlias = Any

MAGIC = b"\x89HDF\r\n\x1a\n"
HEAP_MAGIC = b"GCOL\x01"
# A scale is a scalar or one number per feature; a model's configuration takes kilobytes.
WEIGHT_LIMIT = 1 << 20
TEXT_LIMIT = 1 << 25
MOST_MEMBERS, DEEPEST = 100_000, 64


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise OnnxAttnError(
            "reading saved Keras models needs h5py: pip install 'onnx_attn[keras]'"
        ) from error
    return h5py


@contextmanager
def _reading(where: str) -> Generator[None]:
    try:
        yield
    # Which error h5py raises for a damaged file depends on the part that is damaged.
    except (OSError, LookupError, RuntimeError, ValueError, TypeError, OverflowError) as error:
        raise ModelError(f"{where} is damaged: its HDF5 data cannot be read ({error})") from error


@contextmanager
def open_hdf5(file: Any, where: str, room: int) -> Generator[HDF5]:
    """`file`, a path or a binary file, open for reading.

    Args:
        file: what h5py opens.
        where: its name, for messages.
        room: the bytes that all weights read from it may take together.

    Raises ModelError if it is no HDF5 file, OnnxAttnError if h5py is not installed.
    """
    with _reading(where):
        root = _h5py().File(file, "r")
    try:
        yield HDF5(root, where, room)
    finally:
        root.close()


def check_heaps(file: Path, where: str) -> None:
    """Raise ModelError if a text heap of an HDF5 file is damaged.

    HDF5 2.0 never comes back from a heap in which an object takes no room. Layout: "HDF5 File
    Format Specification", III.E, Disk Format: Level 1E - Global Heap.
    """
    with (
        _reading(where),
        file.open("rb") as stream,
        mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        # Widths of addresses and lengths stand elsewhere in the newer superblocks.
        widths = data[13:15] if data[8:9] < b"\x02" else data[9:11]
        if widths != b"\x08\x08":
            raise ModelError(f"{where} is damaged: its HDF5 superblock cannot be read")
        start = data.find(HEAP_MAGIC)
        while start >= 0:
            end = start + int.from_bytes(data[start + 8 : start + 16], "little")
            at = start + 16
            while at + 16 <= min(end, len(data)):
                size = int.from_bytes(data[at + 8 : at + 16], "little")
                # Object 0 is the free room, its own header counted in.
                in_use = data[at : at + 2] != b"\x00\x00"
                room = 16 + -(-size // 8) * 8 if in_use else size
                if room < 16:
                    break
                at += room
            if end > len(data) or at > end or end - at >= 16:
                raise ModelError(f"{where} is damaged: a text in it cannot be read")
            start = data.find(HEAP_MAGIC, start + 1)


class HDF5:
    """Checked access to one open file. Every method raises ModelError where the file is damaged."""

    def __init__(self, root: Group, where: str, room: int) -> None:
        self.root = root
        self.where = where
        self._room = room

    def names(self, group: Group) -> list[str]:
        """The members of a group."""
        with _reading(self.where):
            if len(group) > MOST_MEMBERS:
                raise ModelError(f"{self.where} is damaged: a group has {len(group)} members")
            return list(group)

    def member(self, group: Group, name: str) -> Any:
        """A member of a group, or None."""
        h5py = _h5py()
        with _reading(self.where):
            link = group.get(name, getlink=True)
            if link is None:
                return None
            if not isinstance(link, h5py.HardLink):
                raise ModelError(f"{self.where}: {name!r} is a link, which Keras never writes")
            return group[name]

    def group(self, group: Group, *paths: str) -> Group:
        """The group at `paths` below `group`, or None."""
        h5py = _h5py()
        for name in "/".join(paths).split("/"):
            group = self.member(group, name)
            if not isinstance(group, h5py.Group):
                return None
        return group

    def datasets(self, group: Group) -> Iterator[tuple[tuple[str, ...], Dataset]]:
        """Every dataset below a group, with its path."""
        h5py = _h5py()
        waiting: list[tuple[tuple[str, ...], Group]] = [((), group)]
        seen = 0
        while waiting:
            above, parent = waiting.pop()
            for name in self.names(parent):
                seen += 1
                # A hard link can make a group its own parent: stop looking somewhere.
                if seen > MOST_MEMBERS or len(above) > DEEPEST:
                    raise ModelError(f"{self.where} is damaged: its groups never end")
                member = self.member(parent, name)
                if isinstance(member, h5py.Group):
                    waiting.append(((*above, name), member))
                elif isinstance(member, h5py.Dataset):
                    yield (*above, name), member

    def array(self, dataset: Any, name: str) -> Array:
        """The weight called `name`, floating point; bfloat16 comes as ml_dtypes' dtype."""
        h5py = _h5py()
        with _reading(self.where):
            if not isinstance(dataset, h5py.Dataset) or dataset.shape is None:
                raise ModelError(f"{self.where} is damaged: weight {name} is no array")
            if dataset.is_virtual or dataset.external:
                raise ModelError(f"{self.where}: weight {name} is kept outside the file: refused")
            for shape in (dataset.shape, dataset.chunks or ()):
                if np.prod(shape, dtype=float) * dataset.dtype.itemsize > WEIGHT_LIMIT:
                    raise ModelError(
                        f"{self.where}: weight {name} should be a scalar or one number per "
                        f"feature; the file holds shape {list(shape)}"
                    )
            kind, itemsize = dataset.dtype.kind, dataset.dtype.itemsize
            if kind != "f" and (kind, itemsize) != ("V", 2):
                raise ModelError(
                    f"{self.where}: weight {name} should be floating point; the file holds "
                    f"{dataset.dtype}"
                )
            self._room -= int(np.prod(dataset.shape, dtype=float)) * itemsize
            if self._room < 0:
                # Many names may lead to one dataset, and compressed zeros take no room in a file.
                raise ModelError(
                    f"{self.where}: its weights unpack to more than a file of this size can hold: "
                    "refused"
                )
            data: Array = np.asarray(dataset[()])
        if kind == "V":
            import ml_dtypes

            return data.view(ml_dtypes.bfloat16)
        return data

    def has_attribute(self, group: Group, name: str) -> bool:
        """Whether a group has an attribute of this name."""
        with _reading(self.where):
            return name in group.attrs

    def text(self, name: str) -> str | None:
        """A text attribute of the file, or None."""
        h5py = _h5py()
        with _reading(self.where):
            if name not in self.root.attrs:
                return None
            attribute = self.root.attrs.get_id(name)
            # Many references could name one long text: take a single one. And what is no string
            # type, HDF5 would crash on rather than refuse.
            text = isinstance(attribute.get_type(), h5py.h5t.TypeStringID)
            if not text or attribute.shape != () or attribute.get_storage_size() > TEXT_LIMIT:
                raise ModelError(f"{self.where} is damaged: {name} is not one text")
            value = self.root.attrs[name]
            if isinstance(value, bytes):
                value = value.decode()
        if not isinstance(value, str):
            raise ModelError(f"{self.where} is damaged: {name} is no text")
        return value
