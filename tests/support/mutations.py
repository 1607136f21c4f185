"""Damaged model files, and a child process that opens and runs them one by one."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import numpy as np

from onnx_attn import Attention, AttentionSession, OnnxAttnError
from onnx_attn.configuration import Schedule

MODELS = Path(__file__).parents[2] / "models"
# Answers of the child: what came of one file. Anything else, or no answer, is a failure.
RAN, REFUSED = "ran", "refused"


def catalogue() -> list[bytes]:
    """The files of models/, and one of each schedule with causal, masks and scores if it can."""
    files = [path.read_bytes() for path in sorted(MODELS.glob("*/model.onnx"))]
    assert files, f"no models in {MODELS}"
    layers = (Attention(use_scale=True, causal=True), Attention(score_mode="concat"))
    files.append(Attention(use_scale=True).to_onnx(schedule="fused").SerializeToString())
    for schedule in get_args(Schedule):
        for layer in layers if schedule != "fused" else ():
            model = layer.to_onnx(schedule=schedule, return_attention_scores=True)
            files.append(model.SerializeToString())
    return files


def mutations(count: int, seed: int) -> Iterator[bytes]:
    """`count` damaged files: bits flipped, bytes overwritten, cut, spliced, repeated, emptied."""
    random = np.random.default_rng(seed)
    files = catalogue()
    for number in range(count):
        data = bytearray(files[number % len(files)])
        kind = number % 6
        place = int(random.integers(len(data)))
        if kind == 0:
            for at in random.integers(len(data), size=random.integers(1, 4)):
                data[at] ^= 1 << int(random.integers(8))
        elif kind == 1:
            size = int(random.integers(1, 64))
            data[place : place + size] = random.bytes(size)
        elif kind == 2:
            del data[place:]
        elif kind == 3:
            other = files[int(random.integers(len(files)))]
            data[place:] = other[int(random.integers(len(other))) :]
        elif kind == 4:
            size = int(random.integers(1, 256))
            data[place:place] = data[place : place + size]
        else:
            # Lengths and sizes at their extremes, where parsers trip.
            size = int(random.integers(1, 10))
            data[place : place + size] = (b"\x00", b"\xff", b"\x7f", b"\x80")[
                int(random.integers(4))
            ] * size
        yield bytes(data)


def use(data: bytes) -> str:
    """Open the file as a session and run it once with whatever inputs it asks for."""
    try:
        with AttentionSession(data, device="cpu", threads=1) as session:
            # models/additive holds a scale of length 8.
            sizes = {"batch": 2, "Tq": 3, "Tv": 4, "dim": 8, "value_dim": 6}
            feeds = {}
            for name, spec in session.inputs.items():
                if spec.dtype == "bool" or not spec.dims:
                    continue
                shape = [sizes.get(dim, 1) if isinstance(dim, str) else dim for dim in spec.dims]
                dtype = session._dtypes[name]
                feeds[name] = np.ones(shape, np.float32).astype(dtype)
            session.run(feeds)
    except OnnxAttnError:
        return REFUSED
    return RAN


def main(folder: str, first: str, last: str) -> None:
    """Answer each file of `folder` from `first` to `last`, by name, on stdout."""
    for path in sorted(Path(folder).iterdir()):
        if not first <= path.name <= last:
            continue
        # Before the answer: the parent then knows which file a crash was.
        say(path.name)
        try:
            say(f" {use(path.read_bytes())}\n")
        except BaseException:
            say(" raised\n")
            traceback.print_exc()


def say(text: str) -> None:
    """Write to stdout at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
