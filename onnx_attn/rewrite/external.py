"""Where a rewritten model goes: never over its original, its weights beside it."""

from __future__ import annotations

import filecmp
import os
import shutil
from pathlib import Path, PurePosixPath

import onnx

from ..errors import InputError, ModelError
from ..file.disk import write_file
from .normal import external_locations


def check_target(source: Path, target: Path) -> None:
    """Raises InputError where `target` is the model itself, or there is no folder for it."""
    if target.exists() and source.exists() and source.samefile(target):
        raise InputError(f"{target} is the model itself: choose another file to write")
    if not target.absolute().parent.is_dir():
        raise InputError(f"{target} cannot be written: there is no folder {target.parent}")


def write_result(model: onnx.ModelProto, source: Path, target: Path) -> Path:
    """Write a rewritten model; returns its path.

    Weights in files of their own stay there: beside the original the new model reads the same
    files; in another folder it gets links to them, or copies where the system has no links.

    Raises ModelError where a file cannot be written, or another lies in a weight file's place.
    """
    old, new = source.absolute().parent, target.absolute().parent
    made: list[Path] = []
    try:
        if not _same(old, new):
            for name in external_locations(model):
                made += _beside(old, new, name)
        return write_file(target, model.SerializeToString(deterministic=True))
    except BaseException:
        for path in made:
            path.unlink(missing_ok=True)
        raise


def _same(old: Path, new: Path) -> bool:
    return old.samefile(new)


def _beside(old: Path, new: Path, name: str) -> list[Path]:
    """A weight file in the new folder; the paths made."""
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts:
        raise ModelError(f"the model's weights are at {name}, outside of its folder")
    source, target = old / relative, new / relative
    if target.exists():
        if source.samefile(target) or filecmp.cmp(source, target, shallow=False):
            return []
        raise ModelError(f"{target} is in the way of the model's weights: it holds other bytes")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)
    except OSError as error:
        raise ModelError(f"{target} cannot be written: {error.strerror or error}") from error
    return [target]
