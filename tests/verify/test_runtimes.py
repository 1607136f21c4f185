"""The catalogue in runtimes that share no code with this package. They are installed on demand."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnx_attn.catalogue.readme import section
from onnx_attn.verify.run import Verification, find_models, load_model, verify
from onnx_attn.verify.runtimes import RUNTIMES
from onnx_attn.verify.runtimes.environments import python_with
from onnx_attn.verify.runtimes.runtime import Feed, RuntimeMissingError, Task

pytestmark = pytest.mark.runtimes

MODELS = Path(__file__).parents[2] / "models"
LANGUAGES = ("c", "cpp", "java", "rust", "go")
FOREIGN = [
    pytest.param(name, marks=pytest.mark.languages) if name in LANGUAGES else name
    for name in RUNTIMES
    if name not in ("onnxruntime", "reference")
]


def run(name: str, *paths: Path) -> Verification:
    models = [load_model(path) for path in find_models(paths)]
    result = verify(models, [RUNTIMES[name]], True, print)
    assert result.missing == {}, result.missing
    return result


@pytest.mark.parametrize("name", FOREIGN)
def test_every_model_gives_its_numbers_where_the_readme_says_so(name: str) -> None:
    result = run(name, MODELS)
    column = list(RUNTIMES).index(name) + 1
    lines = section((MODELS / "README.md").read_text(), "results").splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| [")]
    promised = {row[0].partition("]")[0].strip("["): row[column] for row in rows}
    for model in result.models:
        cell = result.cells[model.path, name]
        wanted = "limit" if promised[model.name].startswith("no") else "pass"
        assert cell.status == wanted, f"{model.name}: {cell}"


@pytest.mark.parametrize("name", FOREIGN)
def test_a_wrong_number_a_wrong_file_and_a_missing_input_are_seen(
    name: str, tmp_path: Path
) -> None:
    wrong = shutil.copytree(MODELS / "causal_masked_dense", tmp_path / "wrong")
    path = wrong / "test_data_set_1/output_1.pb"
    tensor = onnx.TensorProto.FromString(path.read_bytes())
    array = np.array(numpy_helper.to_array(tensor)) + np.float32(1e-4)
    path.write_bytes(numpy_helper.from_array(array, tensor.name).SerializeToString())
    broken = shutil.copytree(MODELS / "plain_dense", tmp_path / "broken")
    model = onnx.load_model(broken / "model.onnx")
    next(node for node in model.graph.node if node.op_type == "MatMul").op_type = "NoSuchOperator"
    onnx.save_model(model, broken / "model.onnx")
    shutil.copytree(MODELS / "plain_dense", tmp_path / "right")
    result = run(name, tmp_path)
    cells = {model.name: result.cells[model.path, name] for model in result.models}
    assert cells["right"].status == "pass"
    assert cells["wrong"].status == "miss"
    assert cells["wrong"].error == pytest.approx(1e-4, rel=0.1)
    assert (cells["broken"].status, "NoSuchOperator" in cells["broken"].why) == ("failed", True)
    task = load_model(MODELS / "plain_dense/model.onnx").task()
    feed = task.feeds[0]
    inputs = {key: feed.inputs[key] for key in ("query", "value")}
    (answer,) = RUNTIMES[name].run([Task(task.model, (Feed(feed.files[:2], inputs),))])
    assert answer.error is not None
    assert "\n" not in answer.error


def test_what_cannot_be_installed_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNX_ATTN_CACHE", str(tmp_path / "cache"))
    wanted = ["onnxruntime==0.0.0"]
    with pytest.raises(RuntimeMissingError, match=r"onnxruntime==0\.0\.0.*failed"):
        python_with(wanted, "ONNX Runtime", True, print)
    # Nothing half-made is left to be taken for an environment.
    assert list((tmp_path / "cache").iterdir()) == []
    (tmp_path / "file").touch()
    monkeypatch.setenv("ONNX_ATTN_CACHE", str(tmp_path / "file"))
    with pytest.raises(RuntimeMissingError, match="cannot be installed"):
        python_with(wanted, "ONNX Runtime", True, print)
