"""An attention file in Python with plain ONNX Runtime: check it, run it, see its errors.

Nothing of onnx_attn is imported. `onnx` reads the test vectors; running the file needs only
onnxruntime and numpy.

    python examples/python/attention.py                      # models/masked
    python examples/python/attention.py models/no_key        # another file with a value mask
    python examples/python/attention.py --catalogue models   # every model: its test vectors
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

MODELS = Path(__file__).resolve().parents[2] / "models"

Tensors = dict[str, np.ndarray]


def open_model(path: Path | bytes) -> onnxruntime.InferenceSession:
    """A session on the CPU. ONNX Runtime logs an error before it raises it: level 4 stops that."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    model = path if isinstance(path, bytes) else str(path)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def read_tensors(folder: Path, kind: str) -> Tensors:
    """The `input_N.pb` or `output_N.pb` of a data set, by the names in them."""
    tensors = [onnx.load_tensor(str(file)) for file in sorted(folder.glob(f"{kind}_*.pb"))]
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in tensors}


def check_test_vectors(
    session: onnxruntime.InferenceSession, folder: Path
) -> dict[str, tuple[float, bool]]:
    """The largest error of each `test_data_set_K`, and whether it is within tolerance."""
    tolerance = json.loads((folder / "data.json").read_text())
    found = {}
    for data_set in sorted(folder.glob("test_data_set_*")):
        expected = read_tensors(data_set, "output")
        results = session.run(list(expected), read_tensors(data_set, "input"))
        largest, fine = 0.0, True
        for result, wanted in zip(results, expected.values(), strict=True):
            if result.shape != wanted.shape:
                raise ValueError(f"{data_set}: shape {result.shape}, expected {wanted.shape}")
            fine &= bool(np.allclose(result, wanted, **tolerance))
            difference = np.abs(result.astype(np.float64) - wanted)
            largest = max(largest, float(difference.max(initial=0)))
        found[data_set.name] = (largest, fine)
    if not found:
        raise FileNotFoundError(f"{folder} holds no test_data_set_K")
    return found


def show_masks(session: onnxruntime.InferenceSession, feeds: Tensors) -> None:
    """The output without a mask, and with each of the two."""
    for title, changes in {
        "no mask: value_mask [[True]]": {},
        "value_mask [[True, True, False]]": {"value_mask": np.array([[True, True, False]])},
        "query_mask [[True, False]]": {"query_mask": np.array([[True, False]])},
    }.items():
        (output,) = session.run(["output"], feeds | changes)
        numbers = " ".join(f"{number:.4f}" for number in output.ravel())
        print(f"  {title:36} output {list(output.shape)}: {numbers}")


def refused(title: str, attempt: Callable[[], object]) -> bool:
    """Whether `attempt` raises; prints what the runtime says, on one line."""
    try:
        attempt()
    # ONNX Runtime's errors have no base class of their own.
    except Exception as error:
        print(f"  {title}: {' '.join(str(error).split())}")
        return True
    print(f"  {title}: NOT REFUSED")
    return False


def show_bad_input(session: onnxruntime.InferenceSession, feeds: Tensors, folder: Path) -> bool:
    """What the runtime says of wrong input; whether it refused all of it."""
    whole = (folder / "model.onnx").read_bytes()
    no_value = {name: array for name, array in feeds.items() if name != "value"}
    bad_feeds = {
        "no value": no_value,
        "float64 query": feeds | {"query": feeds["query"].astype(np.float64)},
        "mask of 2 for 3 values": feeds | {"value_mask": np.array([[True, False]])},
    }
    if "key" in feeds:
        bad_feeds["3 keys, 2 values"] = feeds | {"value": feeds["value"][:, :2]}
    results = [
        refused(title, lambda bad=bad: session.run(None, bad)) for title, bad in bad_feeds.items()
    ]
    results.append(refused("a file cut in half", lambda: open_model(whole[: len(whole) // 2])))
    missing = Path("no_such_model.onnx")
    results.append(refused("a file that is not there", lambda: open_model(missing)))
    return all(results)


def one_model(folder: Path) -> bool:
    """All of the above for the model in `folder`; whether every check held."""
    session = open_model(folder / "model.onnx")
    print(folder)
    for title, tensors in {
        "inputs": session.get_inputs(),
        "outputs": session.get_outputs(),
    }.items():
        print(f"  {title}: " + "; ".join(f"{t.name} {t.type}{t.shape}" for t in tensors))

    print("\nTest vectors")
    vectors = check_test_vectors(session, folder)
    for name, (largest, fine) in vectors.items():
        print(f"  {name}  largest error {largest:.1e}  {'ok' if fine else 'TOO LARGE'}")

    # Two queries look at three keys; the values are easy to tell apart.
    names = {tensor.name for tensor in session.get_inputs()}
    key = np.array([[[1, 0], [0, 1], [1, 1]]], np.float32)
    no_mask = np.array([[True]])
    feeds = {"query": np.array([[[2, 0], [0, 2]]], np.float32)}
    feeds["value"] = np.array([[[10], [20], [30]]], np.float32) if "key" in names else key
    feeds |= {"key": key} if "key" in names else {}
    feeds |= {"query_mask": no_mask, "value_mask": no_mask}

    print("\nMasks")
    show_masks(session, feeds)
    print("\nBad input")
    all_refused = show_bad_input(session, feeds, folder)
    print("\nAnd on it goes")
    show_masks(session, feeds)
    return all_refused and all(fine for _, fine in vectors.values())


def catalogue(models: Path) -> bool:
    """Every model in `models` against its test vectors; whether all are within tolerance."""
    print(f"onnxruntime {onnxruntime.__version__}")
    fine = []
    for folder in sorted(path.parent for path in models.glob("*/model.onnx")):
        vectors = check_test_vectors(open_model(folder / "model.onnx"), folder)
        fine.append(all(good for _, good in vectors.values()))
        largest = max(error for error, _ in vectors.values())
        verdict = "ok" if fine[-1] else "error too large"
        print(f"  {folder.name:22} {verdict:17} {len(vectors)} sets, largest error {largest:.1e}")
    return bool(fine) and all(fine)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", type=Path, default=MODELS / "masked")
    parser.add_argument("--catalogue", type=Path, help="check every model in this folder")
    arguments = parser.parse_args()
    if arguments.catalogue:
        return 0 if catalogue(arguments.catalogue) else 1
    if not (arguments.model / "model.onnx").is_file():
        parser.error(f"there is no {arguments.model / 'model.onnx'}")
    return 0 if one_model(arguments.model) else 1


if __name__ == "__main__":
    sys.exit(main())
