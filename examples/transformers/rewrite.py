"""Rewrite transformers' models as torch exported them, and hold the outputs against the originals.

python examples/transformers/rewrite.py                    # the models beside this script
python examples/transformers/rewrite.py my_model.onnx      # yours, with the same two inputs
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from onnx_attn.rewrite import rewrite_model

MODELS = Path(__file__).parent / "models"
SIZES = ((1, 300), (3, 40), (4, 261))  # batch, tokens: shorter and longer than one block
LIMIT = 1e-5


def masks(batch: int, length: int) -> dict[str, np.ndarray]:
    """Attention masks int64[batch, length] of every kind: 1 is a token, 0 is padding."""
    places, row = np.arange(length), np.arange(batch)[:, None]
    tokens = length - length * row // (batch + 1)
    gaps = np.random.default_rng(0).random((batch, length)) < 0.7
    gaps[:, 0] = True
    shown = {
        "none": np.ones((batch, length), bool),
        "tails": np.broadcast_to(places < tokens, (batch, length)),
        "front": places >= length - tokens,
        "gaps": gaps,
        "an empty row": np.broadcast_to(row > 0, (batch, length)),
    }
    return {name: mask.astype(np.int64) for name, mask in shown.items()}


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def compare(original: Path, rewritten: Path) -> dict[str, float]:
    """The largest difference by mask, as a share of the output's largest number."""
    before, after = session(original), session(rewritten)
    ids = before.get_inputs()[0].name, before.get_inputs()[1].name
    apart: dict[str, float] = {}
    for batch, length in SIZES:
        tokens = np.random.default_rng(1).integers(1, 100, (batch, length))
        for name, mask in masks(batch, length).items():
            feeds = dict(zip(ids, (tokens, mask), strict=True))
            wanted, found = before.run(None, feeds)[0], after.run(None, feeds)[0]
            error = float(np.abs(found - wanted).max() / np.abs(wanted).max())
            apart[name] = max(apart.get(name, 0.0), error)
    return apart


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path, nargs="*", default=sorted(MODELS.glob("*.onnx")))
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for path in parser.parse_args().models:
            # keep_all: without the race for time, which models as small as these would lose.
            result = rewrite_model(path, keep_all=True)
            done = sum(site.rewritten for site in result.sites)
            print(f"{path.name}: {done} of {len(result.sites)} attentions rewritten")
            for site in result.sites:
                print(f"  {site.mask}" if site.rewritten else f"  left alone: {site.reason}")
            if result.model is None:
                continue
            print(f"  proven: {result.proof}")
            rewritten = Path(folder) / path.name
            onnx.save(result.model, rewritten)
            for mask, error in compare(path, rewritten).items():
                print(f"  {mask:<13} largest difference {error:.1e}")
                worst = max(worst, error)
    print("all numbers equal" if worst <= LIMIT else f"MORE THAN {LIMIT:g}")
    return int(not worst <= LIMIT)


if __name__ == "__main__":
    raise SystemExit(main())
