"""Rewritten models in runtimes that share no code with this package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from model_pairs import small_blocks, walked, worst
from onnx_attn.verify.runtimes import RUNTIMES
from onnx_attn.verify.runtimes.runtime import Feed, Task

__all__ = ["small_blocks"]

pytestmark = pytest.mark.runtimes

MODELS = Path(__file__).parent / "models"
NAMES = ("bert_sdpa.ts", "gpt2_eager.ts", "t5enc.ts", "keras_mha_causal_masked", "hand3d.ts")
NEWER = ("bert_eager.dynamo", "gpt2_sdpa.dynamo")  # of opset 20, which ONNX Runtime 1.15 lacks


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("name", ["oldest-onnxruntime", "node", "web"])
def test_rewritten_models_give_the_originals_numbers(name: str, tmp_path: Path) -> None:
    tasks: list[Task] = []
    wanted: list[list[np.ndarray]] = []
    for model in NAMES if name == "oldest-onnxruntime" else (*NAMES, *NEWER):
        folder = tmp_path / model
        folder.mkdir()
        rewritten = walked(str(MODELS / f"{model}.onnx"))
        onnx.save_model(rewritten, folder / "model.onnx")
        with np.load(MODELS / f"{model}.npz") as arrays:
            feeds = {key[3:]: arrays[key] for key in arrays.files if key.startswith("in.")}
            wanted.append([arrays[f"out.{output.name}"] for output in rewritten.graph.output])
        files = tuple(folder / f"{number}.pb" for number in range(len(feeds)))
        for path, (key, array) in zip(files, feeds.items(), strict=True):
            path.write_bytes(numpy_helper.from_array(array, key).SerializeToString())
        tasks.append(Task(folder / "model.onnx", (Feed(files, feeds),)))
    runtime = RUNTIMES[name]
    runtime.start(True, print)
    for task, outputs, answer in zip(tasks, wanted, runtime.run(tasks), strict=True):
        assert answer.error is None, f"{task.model.parent.name}: {answer.error}"
        ((found,),) = answer.outputs
        assert worst(outputs, list(found.values())) <= 1e-5, task.model.parent.name
