"""onnx-attn verify: right files pass, wrong numbers show, damage is one clear line."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from typer.testing import CliRunner

from onnx_attn import Attention, OnnxAttnError
from onnx_attn.catalogue.build import entry_files
from onnx_attn.catalogue.entries import CATALOGUE
from onnx_attn.cli import load_commands
from onnx_attn.configuration import LayerConfig
from onnx_attn.verify.judge import compare, judge, judge_draws
from onnx_attn.verify.report import results_markdown, versions_markdown
from onnx_attn.verify.run import load_model, verify
from onnx_attn.verify.runtimes import RUNTIMES
from onnx_attn.verify.runtimes.children import run_children
from onnx_attn.verify.runtimes.python import CHILD
from onnx_attn.verify.runtimes.runtime import Answer, Feed, RuntimeMissingError, Task
from onnx_attn.verify.vectors import Tolerance, read_sets, set_files
from onnx_attn.version import __version__

MODELS = Path(__file__).parents[2] / "models"
FLOAT32 = Tolerance(1e-5, 2e-6)


def onnx_attn(*arguments: object) -> Any:
    return CliRunner().invoke(load_commands(), [str(argument) for argument in arguments])


def text_of(result: Any) -> str:
    return " ".join((result.stdout + result.stderr).split())


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A copy of one model without checksums, to be harmed."""
    return Path(shutil.copytree(MODELS / "plain", tmp_path / "plain"))


@pytest.fixture
def catalogue(tmp_path: Path) -> Path:
    return Path(shutil.copytree(MODELS, tmp_path / "models"))


def test_the_catalogue_passes() -> None:
    result = onnx_attn("verify", MODELS)
    assert result.exit_code == 0, text_of(result)
    assert "all within tolerance" in text_of(result)
    for folder in MODELS.iterdir():
        assert not folder.is_dir() or folder.name in text_of(result)


def test_a_model_a_folder_or_a_file_can_be_named(plain: Path) -> None:
    for paths in ([plain], [plain.parent], [plain / "model.onnx"], [plain, plain.parent]):
        result = onnx_attn("verify", *paths, "--json")
        assert [model["name"] for model in json.loads(result.stdout)["models"]] == ["plain"]


def test_json_tells_all(plain: Path) -> None:
    told = json.loads(onnx_attn("verify", plain, "--json").stdout)
    assert told["passed"] is True
    assert told["missing"] == {}
    assert set(told["runtimes"]) == {"onnxruntime", "reference"}
    (model,) = told["models"]
    assert (model["rtol"], model["atol"], model["sets"]) == (1e-5, 2e-6, 4)
    for cell in model["cells"].values():
        assert cell["status"] == "pass"
        assert 0 < cell["error"] < 1e-5


def change(path: Path, by: Callable[[np.ndarray], np.ndarray]) -> None:
    tensor = onnx.TensorProto.FromString(path.read_bytes())
    array = by(np.array(numpy_helper.to_array(tensor)))
    path.write_bytes(numpy_helper.from_array(array, tensor.name).SerializeToString())


@pytest.mark.parametrize("runtime", ["onnxruntime", "reference"])
def test_a_number_that_is_off_is_a_miss(plain: Path, runtime: str) -> None:
    def shift(array: np.ndarray) -> np.ndarray:
        array[0, 0, 0] += 1e-4
        return array

    change(plain / "test_data_set_2/output_0.pb", shift)
    result = onnx_attn("verify", plain, "--runtime", runtime)
    assert result.exit_code == 1
    assert "miss 1.0e-04" in text_of(result)
    assert "output of test_data_set_2 is off by 0.0001" in text_of(result)


def test_another_layer_under_the_same_vectors_is_a_miss(plain: Path) -> None:
    Attention(use_scale=True).export(plain / "model.onnx", masks="none", scale="constant")
    assert onnx_attn("verify", plain).exit_code == 0
    Attention(causal=True).export(plain / "model.onnx", masks="none")
    assert onnx_attn("verify", plain).exit_code == 1


def test_another_shape_or_type_is_a_failure(plain: Path) -> None:
    change(plain / "test_data_set_0/output_0.pb", lambda array: array[:, :1])
    result = onnx_attn("verify", plain)
    assert result.exit_code == 1
    assert "expected float32[2, 1, 12]" in text_of(result)


def test_a_file_the_runtime_refuses_is_a_failure_of_that_file(plain: Path) -> None:
    path = plain / "model.onnx"
    model = onnx.load_model(path)
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save_model(model, path)
    result = onnx_attn("verify", plain)
    assert result.exit_code == 1
    assert "NoSuchOperator" in text_of(result)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def unname(path: Path) -> None:
    tensor = onnx.TensorProto.FromString(path.read_bytes())
    tensor.name = ""
    path.write_bytes(tensor.SerializeToString())


def outside(path: Path) -> None:
    tensor = onnx.TensorProto.FromString(path.read_bytes())
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="elsewhere")
    path.write_bytes(tensor.SerializeToString())


def not_ours(path: Path) -> None:
    model = onnx.load_model(path)
    del model.metadata_props[:]
    onnx.save_model(model, path)


def swap_names(folder: Path) -> None:
    inputs = read_sets(folder)[0].inputs
    inputs = {"value": inputs["value"], "query": inputs["query"], "key": inputs["key"]}
    for name, data in set_files(inputs, {}).items():
        (folder / "test_data_set_0" / name).write_bytes(data)


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda m: cut(m / "model.onnx"), "model.onnx is not an ONNX file, or is cut short"),
        (lambda m: (m / "model.onnx").write_bytes(b"hello"), "model.onnx is not an ONNX file"),
        (lambda m: (m / "model.onnx").unlink(), "model.onnx does not exist"),
        (lambda m: not_ours(m / "model.onnx"), "not one that onnx_attn wrote"),
        (lambda m: [shutil.rmtree(p) for p in m.glob("test_*")], "has no test vectors"),
        (lambda m: (m / "test_data_set_1/input_1.pb").unlink(), "test_data_set_1 has no input_1"),
        (lambda m: (m / "test_data_set_1/output_0.pb").unlink(), "test_data_set_1 has no output_0"),
        (lambda m: cut(m / "test_data_set_0/input_2.pb"), "input_2.pb is damaged"),
        (lambda m: unname(m / "test_data_set_0/input_0.pb"), "input_0.pb does not name its tensor"),
        (lambda m: outside(m / "test_data_set_0/input_0.pb"), "numbers in another file"),
        (swap_names, "expected inputs query, value, key in this order; found value, query, key"),
        (lambda m: (m / "data.json").unlink(), "data.json does not exist"),
        (lambda m: (m / "data.json").write_text("[]"), "data.json is damaged"),
        (lambda m: (m / "config.txt").write_text("hello"), "config.txt is damaged"),
        (lambda m: (m / "data.json").write_text('{"rtol": 1, "atol": 1}'), "must be the same"),
    ],
)
def test_damage_is_one_line_that_names_the_file(plain: Path, harm, told: str) -> None:
    harm(plain)
    result = onnx_attn("verify", plain.parent)
    assert result.exit_code == 2
    assert told in text_of(result)
    assert str(plain) in result.stderr
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr


def test_a_path_without_models_is_an_error(tmp_path: Path) -> None:
    for path, told in ((tmp_path, "holds no models"), (tmp_path / "no", "is not there")):
        result = onnx_attn("verify", path)
        assert result.exit_code == 2
        assert f"{path} {told}" in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (
            lambda m: cut(m / "plain/test_data_set_0/output_0.pb"),
            "output_0.pb is not the file that",
        ),
        (lambda m: (m / "plain/test_data_set_3/output_0.pb").unlink(), "output_0.pb is missing"),
        (lambda m: (m / "plain/test_data_set_3/extra.pb").touch(), "extra.pb is not listed in"),
        (lambda m: shutil.rmtree(m / "causal"), "is missing"),
        (lambda m: (m / "SHA256SUMS").write_text("hello"), "line 1 is not 'hash path'"),
    ],
)
def test_checksums_are_checked(catalogue: Path, harm, told: str) -> None:
    harm(catalogue)
    result = onnx_attn("verify", catalogue)
    assert result.exit_code == 2
    assert told in text_of(result)
    assert "SHA256SUMS" in result.stderr


def test_checksums_of_one_model_are_those_of_the_catalogue_above_it(catalogue: Path) -> None:
    cut(catalogue / "causal/model.onnx")
    assert onnx_attn("verify", catalogue / "plain").exit_code == 0
    assert "SHA256SUMS" in onnx_attn("verify", catalogue / "causal").stderr


@pytest.mark.parametrize(
    ("got", "expected", "error", "within"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0, True),
        ([1.0, 2.00001], [1.0, 2.0], 1e-5, True),
        ([1.0, 2.00003], [1.0, 2.0], 3e-5, False),
        ([np.nan], [1.0], np.inf, False),
        ([1.0], [np.nan], np.inf, False),
        ([np.nan], [np.nan], 0.0, True),
        ([np.inf], [np.inf], 0.0, True),
        ([-np.inf], [np.inf], np.inf, False),
        ([1.0], [np.inf], np.inf, False),
        ([np.inf], [1.0], np.inf, False),
        ([], [], 0.0, True),
    ],
)
def test_compare(got: list[float], expected: list[float], error: float, within: bool) -> None:
    told = compare(np.array(got), np.array(expected), FLOAT32)
    assert told == (pytest.approx(error), within)


def test_an_output_that_does_not_come_out_is_a_failure() -> None:
    model = load_model(MODELS / "plain/model.onnx")
    cell = judge(model, Answer([[{}] for _ in model.sets]))
    assert (cell.status, cell.why) == ("failed", "output of test_data_set_0 did not come out")


def drawn(rate: float, grow: float, seed: int | None = None) -> list[dict[str, np.ndarray]]:
    """Sixteen runs of models/training on its first set, dropping at `rate`."""
    vectors = read_sets(MODELS / "training")[0]
    rng = np.random.default_rng(5)
    runs = []
    for _ in range(16):
        rng = rng if seed is None else np.random.default_rng(seed)
        weights = vectors.outputs["attention_scores"] * np.float32(grow)
        weights = np.where(rng.random(weights.shape) < rate, np.float32(0), weights)
        output = (weights @ vectors.inputs["value"]) * vectors.inputs["query_mask"][:, :, None]
        runs.append({"output": output.astype(np.float32), "attention_scores": weights})
    return runs


def test_dropout_is_judged_by_its_draws() -> None:
    model = load_model(MODELS / "training/model.onnx")
    right = drawn(0.25, 1 / 0.75)
    assert judge_draws(model, right) is None
    wrong = {
        "0.5": (drawn(0.5, 1 / 0.75), "of the weights were kept; expected 0.75"),
        "none dropped": (drawn(0.0, 1 / 0.75), "1.000 of the weights were kept"),
        "not grown": (drawn(0.25, 1.0), "not the weights times 1/(1-0.25)"),
        "always the same": (drawn(0.25, 1 / 0.75, seed=3), "dropped the same weights"),
        "another output": (
            [{**run, "output": run["output"] + np.float32(0.01)} for run in right],
            "does not follow from the weights",
        ),
    }
    for runs, told in wrong.values():
        assert told in str(judge_draws(model, runs))


def test_a_known_limit_is_told_from_a_failure(tmp_path: Path) -> None:
    """NumPy has no bfloat16 that ONNX Runtime's binding takes; the reference evaluator does."""
    entry = replace(CATALOGUE[0], config=LayerConfig(dtype="bfloat16"))
    for name, data in entry_files(entry).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    result = onnx_attn("verify", tmp_path)
    assert result.exit_code == 0, text_of(result)
    assert "plain no (a)" in text_of(result)
    assert "(a) ONNX Runtime: its binding takes no bfloat16 arrays" in text_of(result)


def test_a_fused_file_runs_in_onnx_runtime_alone(plain: Path) -> None:
    Attention.load(plain / "model.onnx").export(plain / "model.onnx", schedule="fused")
    result = onnx_attn("verify", plain)
    assert result.exit_code == 0, text_of(result)
    assert "(a) onnx reference evaluator: does not know com.microsoft" in text_of(result)


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from graphs(attribute.g)


def test_a_training_file_that_never_drops_is_a_miss(tmp_path: Path) -> None:
    """What ONNX Runtime makes of the Dropout operator: the weights come out untouched."""
    folder = Path(shutil.copytree(MODELS / "training", tmp_path / "training"))
    model = onnx.load_model(folder / "model.onnx")
    model.graph.initializer.append(numpy_helper.from_array(np.array(False), "never"))
    branches = [
        node for graph in graphs(model.graph) for node in graph.node if "training" in node.input
    ]
    assert [node.op_type for node in branches] == ["Reshape"]  # to one number
    for node in branches:
        node.input[0] = "never"
    onnx.save_model(model, folder / "model.onnx")
    result = onnx_attn("verify", folder)
    assert result.exit_code == 1
    assert "with training=True kept weights are not the weights times" in text_of(result)


def no_programs(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("ONNX_ATTN_CACHE", str(folder / "cache"))
    monkeypatch.delenv("ONNX_ATTN_CHROMIUM", raising=False)


ABSENT = {
    "node": "Node.js is not there",
    "web": "Node.js is not there",
    "browser": "Chromium is not there: apt-get install chromium",
    "openvino": "not installed: run verify without --no-install",
    "oldest-onnxruntime": "not installed: run verify without --no-install",
    "tract": "not installed: run verify without --no-install",
    "c": "C API: cc is not there: install gcc or clang",
    "cpp": "C++ API: c++ is not there: install g++ or clang",
    "java": "Java: javac is not there: install a JDK, 17 or later",
    "rust": "Rust ort: cargo is not there: install Rust, 1.92 or later",
    "go": "Go onnxruntime_go: go is not there: install Go, 1.19 or later",
}


@pytest.mark.parametrize("name", ABSENT)
def test_a_runtime_asked_for_and_missing_is_an_error(
    plain: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    no_programs(monkeypatch, plain)
    result = onnx_attn("verify", plain, "--runtime", name, "--no-install")
    assert result.exit_code == 2
    assert ABSENT[name].rpartition(": ")[2] in text_of(result)
    assert result.stderr.count("\n") == 1


def test_all_names_what_is_missing_in_the_table(
    plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_programs(monkeypatch, plain)
    result = onnx_attn("verify", plain, "--runtime", "all", "--no-install")
    assert result.exit_code == 0
    assert text_of(result).count("not there (") == len(ABSENT)
    for told in ABSENT.values():
        assert told in text_of(result)


def test_an_unknown_runtime_is_an_error(plain: Path) -> None:
    result = onnx_attn("verify", plain, "--runtime", "tensorrt")
    assert result.exit_code == 2
    assert "'openvino'" in text_of(result)


def test_a_chromium_that_is_no_program_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNX_ATTN_CHROMIUM", "/no/such/browser")
    with pytest.raises(RuntimeMissingError, match="/no/such/browser is no program"):
        RUNTIMES["browser"].start(False, print)


def test_missing_is_one_of_our_errors() -> None:
    assert issubclass(RuntimeMissingError, OnnxAttnError)


CRASHING = """
import json, os, pathlib, signal, sys
job, results = sys.argv[1:]
with open(results, "a") as file:
    print("ready", file=file, flush=True)
    for task in json.loads(pathlib.Path(job).read_text()):
        name = pathlib.Path(task["model"]).parent.name
        if name == "killed":
            file.write('{"outputs": [')
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        if name == "ended":
            sys.exit("out of luck")
        print(json.dumps({"outputs": []}), file=file, flush=True)
"""


def tasks_called(*names: str) -> list[Task]:
    return [Task(Path(name) / "model.onnx", ()) for name in names]


def test_a_process_that_dies_takes_one_model_with_it(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(CRASHING)
    tasks = tasks_called("one", "killed", "two", "ended", "three")
    answers = list(run_children([sys.executable, str(program)], tasks))
    errors = [answer.error for answer in answers]
    assert errors == [
        None,
        f"the process died of signal {int(signal.SIGKILL)}",
        None,
        "the process ended with exit code 1: out of luck",
        None,
    ]


def test_a_runtime_that_cannot_start_is_started_once(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(f"open({str(tmp_path / 'starts')!r}, 'a').write('x'); raise OSError('no')")
    answers = list(run_children([sys.executable, str(program)], tasks_called("one", "two")))
    assert len(answers) == 2
    assert all("OSError: no" in str(answer.error) for answer in answers)
    assert (tmp_path / "starts").read_text() == "x"


def test_the_python_child_gives_what_its_library_gives() -> None:
    model = load_model(MODELS / "training/model.onnx")
    (answer,) = run_children([sys.executable, "-I", str(CHILD), "onnxruntime"], [model.task()])
    cell = judge(model, answer)
    assert cell.status == "pass", cell.why
    feed = Feed(model.task().feeds[0].files, {"query": np.zeros((1, 1), np.float32)})
    (answer,) = run_children(
        [sys.executable, "-I", str(CHILD), "onnxruntime"], [Task(model.path, (feed,))]
    )
    assert answer.error is not None
    assert "value" in answer.error


def test_a_table_explains_every_cell_without_a_number(plain: Path) -> None:
    change(plain / "test_data_set_0/output_0.pb", lambda array: array + np.float32(1))
    models = [load_model(plain / "model.onnx"), load_model(MODELS / "float64/model.onnx")]
    runtimes = [RUNTIMES["onnxruntime"], RUNTIMES["reference"]]
    text = results_markdown(verify(models, runtimes, False, print))
    assert "| [plain](plain/) | miss 1.0e+00 (a) | miss 1.0e+00 (b) | rtol 1e-05" in text
    assert "(a) ONNX Runtime: output of test_data_set_0 is off by 1" in text
    assert "(b) onnx reference evaluator: output of test_data_set_0 is off by 1" in text


def test_the_versions_table_keeps_the_rows_of_other_versions() -> None:
    models = [load_model(MODELS / "plain/model.onnx")]
    result = verify(models, [RUNTIMES["reference"]], False, print)
    first = versions_markdown(result, "")
    assert first == versions_markdown(result, first)
    older = first.replace(f"| {__version__} |", "| 0.0.1 |")
    assert versions_markdown(result, older).splitlines()[2:] == [
        first.splitlines()[2],
        older.splitlines()[2],
    ]
    assert f"onnx reference evaluator {onnx.__version__}" in first


def test_write_table_needs_all_runtimes_and_a_catalogue(plain: Path) -> None:
    result = onnx_attn("verify", plain, "--write-table")
    assert (result.exit_code, "add --runtime all" in text_of(result)) == (2, True)
    result = onnx_attn("verify", plain, "--write-table", "--runtime", "all")
    assert (result.exit_code, "PATH/README.md" in text_of(result)) == (2, True)


def test_write_table_writes_only_its_sections(
    catalogue: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_programs(monkeypatch, catalogue / "plain")
    before = (catalogue / "README.md").read_text()
    arguments = ("--runtime", "all", "--no-install", "--write-table")
    result = onnx_attn("verify", catalogue, *arguments)
    assert result.exit_code == 0, text_of(result)
    after = (catalogue / "README.md").read_text()
    assert "Node.js is not there" in after
    assert before.partition("<!-- results")[0] == after.partition("<!-- results")[0]
    (catalogue / "README.md").write_text("# Another")
    result = onnx_attn("verify", catalogue, *arguments)
    assert (result.exit_code, "has no section marked" in text_of(result)) == (2, True)


def test_models_commands(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    assert onnx_attn("models", "build", folder).exit_code == 0
    assert onnx_attn("models", "check", folder).exit_code == 0
    (folder / "plain/data.json").unlink()
    result = onnx_attn("models", "check", folder)
    assert result.exit_code == 1
    assert f"{folder}/plain/data.json is missing" in text_of(result)
    (tmp_path / "file").touch()
    result = onnx_attn("models", "build", tmp_path / "file")
    assert (result.exit_code, "cannot be written" in result.stderr) == (2, True)


def test_help_shows_examples() -> None:
    for arguments in (("verify",), ("models", "build"), ("models", "check")):
        assert f"$ onnx-attn {' '.join(arguments)}" in text_of(onnx_attn(*arguments, "--help"))
