"""Saved Keras models on disk: `.keras` archives and HDF5 files, told apart by their first bytes."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from ..errors import InputError, ModelError
from ..file.disk import as_path, read_file, read_start
from .hdf5 import HDF5, MAGIC, check_heaps, open_hdf5
from .model_config import FoundLayer, find_layers
from .weights import Weights, read_weights

ZIP_MAGIC = b"PK\x03\x04"
CONFIG_MEMBER, WEIGHTS_MEMBER = "config.json", "model.weights.h5"

# A configuration is text of some kilobytes; megabytes where a vocabulary is part of it. A value in
# it, of two bytes at least, takes Python some hundred bytes.
CONFIG_LIMIT, MOST_VALUES = 1 << 25, 1 << 20
# Keras stores what an archive holds as it is. One that was packed again may unpack to this many
# bytes, and to so many times its own size: text shrinks that far, trained weights hardly.
UNPACKED_FLOOR, EXPANSION = 1 << 20, 20
IN_MEMORY = 1 << 26

ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    KeyError,
    NotImplementedError,  # a compression this Python does not know
    OSError,
    RuntimeError,  # an encrypted member
    ValueError,
)


@dataclass(frozen=True)
class SavedAttention:
    """An attention layer as a saved model holds it: configuration, calls and weights by name."""

    layer: FoundLayer
    weights: Weights


def read_saved(path: str | os.PathLike[str], config: object = None) -> list[SavedAttention]:
    """The attention layers of a saved model.

    Args:
        path: a `.keras` archive, an `.h5` model, or weights alone (then `config` says of what).
        config: the model's configuration for a file of weights: a dict, JSON text, or the path of
            a JSON file or a saved model.

    Raises:
        InputError: weights without `config`, or `config` for a file that holds its own.
        ModelError: the file is missing, damaged, no saved Keras model, or holds no attention.
    """
    where = str(as_path(path))
    with _open(path) as saved:
        own = saved.configuration
        if own is not None and config is not None:
            raise InputError(
                f"{where} holds its own configuration; config is for files of weights alone"
            )
        if own is None and config is None:
            raise InputError(
                f"{where} holds weights without the model's configuration: give config, the text "
                "of model.to_json() or a file with it"
            )
        layers = find_layers(read_config(config) if own is None else own, where)
        if not layers:
            raise ModelError(
                f"{where}: the model has no Attention or AdditiveAttention layer. One that a "
                "custom class makes inside itself is not in the file's configuration: load the "
                "model in Keras and use onnx_attn.keras.from_layer"
            )
        weights = read_weights(saved.weights, layers)
    return [
        SavedAttention(layer, found)
        for layer, found in zip(layers, weights, strict=True)
        if found is not None
    ]


def is_keras_file(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a zip or HDF5, as saved Keras models are.

    Raises ModelError if it cannot be read.
    """
    return _first_bytes(as_path(path)) in (ZIP_MAGIC, MAGIC[:4])


def read_config(config: object) -> object:
    """A model's configuration from a dict, JSON text, or the path of a file that holds one.

    Raises InputError if `config` is none of these, ModelError if the file cannot be read.
    """
    if isinstance(config, Mapping):
        try:
            # get_config() holds tuples where its JSON has lists.
            return json.loads(json.dumps(config))
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"config must hold plain JSON values: {error}") from error
    if isinstance(config, str) and config.lstrip().startswith("{"):
        return _parse(config, "config")
    if not isinstance(config, str | os.PathLike):
        raise InputError(
            f"config must be a dict, JSON text or a path; received {type(config).__name__}"
        )
    file = as_path(cast("object", config))
    if _first_bytes(file) in (ZIP_MAGIC, MAGIC[:4]):
        with _open(file) as saved:
            if saved.configuration is None:
                raise ModelError(f"{file} holds no configuration of a model")
            return saved.configuration
    return _parse(read_file(file, limit=CONFIG_LIMIT), str(file))


@dataclass(frozen=True)
class _Saved:
    configuration: object
    weights: HDF5


@contextmanager
def _open(path: str | os.PathLike[str]) -> Generator[_Saved]:
    file = as_path(path)
    where = str(file)
    magic = _first_bytes(file)
    if magic == ZIP_MAGIC:
        with (
            _unpack(file, where) as (configuration, stream),
            open_hdf5(stream, where, _room(file)) as weights,
        ):
            yield _Saved(configuration, weights)
    elif magic == MAGIC[:4]:
        check_heaps(file, where)
        with open_hdf5(file, where, _room(file)) as weights:
            text = weights.text("model_config")
            yield _Saved(None if text is None else _parse(text, where), weights)
    else:
        raise ModelError(
            f"{where} is no saved Keras model: expected a .keras archive or an HDF5 file (.h5, "
            ".weights.h5)"
        )


def _first_bytes(file: Path) -> bytes:
    if file.is_dir():
        raise ModelError(
            f"{file} is a folder: save the model as one file, model.save('model.keras') or .h5"
        )
    return read_start(file, 4)


@contextmanager
def _unpack(file: Path, where: str) -> Generator[tuple[object, IO[bytes]]]:
    """Configuration and weights of a `.keras` archive; reading to the end checks their CRC."""
    with tempfile.SpooledTemporaryFile(max_size=IN_MEMORY) as weights:
        try:
            with zipfile.ZipFile(file) as archive:
                for name in (CONFIG_MEMBER, WEIGHTS_MEMBER):
                    if name not in archive.namelist():
                        raise ModelError(f"{where} is no saved Keras model: it has no {name}")
                _check_unpacked(archive, file, where)
                # A member ends where the archive says that it does: the sizes checked hold.
                with archive.open(CONFIG_MEMBER) as member:
                    text = member.read()
                with archive.open(WEIGHTS_MEMBER) as member:
                    shutil.copyfileobj(member, weights, 1 << 20)
        except ZIP_ERRORS as error:
            raise ModelError(f"{where} is damaged: the archive cannot be read ({error})") from error
        weights.seek(0)
        yield _parse(text, f"{where}: {CONFIG_MEMBER}"), cast("IO[bytes]", weights)


def _check_unpacked(archive: zipfile.ZipFile, file: Path, where: str) -> None:
    """Raise ModelError unless what the archive unpacks to is bounded by what it really holds."""
    members = [archive.getinfo(name) for name in (CONFIG_MEMBER, WEIGHTS_MEMBER)]
    for member in members:
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ModelError(
                f"{where}: {member.filename} is packed by a method that Keras never uses: zip the "
                "files again, stored or deflated"
            )
    config, total = members[0].file_size, sum(member.file_size for member in members)
    if config > CONFIG_LIMIT:
        raise ModelError(f"{where}: {CONFIG_MEMBER} is over {CONFIG_LIMIT >> 20} MiB: refused")
    if total > _room(file):
        raise ModelError(
            f"{where} would unpack to {total} bytes from {file.stat().st_size}: refused as a zip "
            "bomb. Save the model again, or zip its files without compression"
        )


def _room(file: Path) -> int:
    return UNPACKED_FLOOR + EXPANSION * file.stat().st_size


def _parse(text: str | bytes, where: str) -> object:
    marks = (",", "[", "{") if isinstance(text, str) else (b",", b"[", b"{")
    if sum(text.count(mark) for mark in marks) > MOST_VALUES:  # pyright: ignore[reportArgumentType]
        raise ModelError(f"{where}: a configuration of over {MOST_VALUES:,} values: refused")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{where} is damaged: its configuration is no JSON ({error})") from error
