"""models/: what the exporter writes, complete, small, and with vectors that test something."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx.backend.test.loader import load_model_tests

from onnx_attn.catalogue.build import build, differences, files_in
from onnx_attn.catalogue.entries import CATALOGUE, Entry, case_inputs, expected_outputs
from onnx_attn.catalogue.readme import NOT_YET, section
from onnx_attn.reference import raw_scores
from onnx_attn.verify.run import find_models, load_model
from onnx_attn.verify.runtimes import RUNTIMES
from onnx_attn.verify.runtimes.python import OLDEST_ONNXRUNTIME, OPENVINO
from onnx_attn.verify.vectors import VectorSet, read_sets, read_tolerance
from onnx_attn.version import __version__

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "models"
NAMES = [entry.name for entry in CATALOGUE]


def ignore(_: str) -> None:
    """Progress that nobody looks at."""


def tools_are_pinned() -> bool:
    """Whether the packages that write a model's bytes are those it was written with."""
    pins = (ROOT / ".ci" / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in pins if "==" in line]
    return all(version(name) == pinned for name, pinned in pairs)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("catalogue")
    build(folder, ignore)
    return folder


def test_models_is_what_the_exporter_writes() -> None:
    found = differences(MODELS, ignore)
    if not tools_are_pinned():
        found = [text for text in found if not text.endswith("model.onnx has other bytes")]
        found = [text for text in found if "SHA256SUMS" not in text]
    assert found == []


def test_a_fresh_build_has_no_differences(built: Path) -> None:
    assert differences(built, ignore) == []


def test_two_processes_write_the_same_bytes(built: Path, tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from onnx_attn.catalogue.build import build; "
        "build(pathlib.Path(sys.argv[1]), lambda name: None)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    subprocess.run([sys.executable, "-c", program, tmp_path], check=True, env=environment)
    here, there = files_in(built), files_in(tmp_path)
    assert [p.relative_to(built) for p in here] == [p.relative_to(tmp_path) for p in there]
    for one, other in zip(here, there, strict=True):
        assert one.read_bytes() == other.read_bytes(), one


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 0xFF
    path.write_bytes(data)


HARMS: dict[str, Callable[[Path], object]] = {
    "plain/model.onnx has other bytes": lambda m: flip(m / "plain/model.onnx"),
    "input_1.pb has other bytes": lambda m: flip(m / "plain/test_data_set_0/input_1.pb"),
    "output_0.pb is off by": lambda m: flip(m / "plain/test_data_set_1/output_0.pb"),
    "causal/data.json has other bytes": lambda m: (m / "causal/data.json").write_text("{}"),
    "causal/config.txt is missing": lambda m: (m / "causal/config.txt").unlink(),
    "causal/extra.pb is not of the catalogue": lambda m: (m / "causal/extra.pb").touch(),
    "SHA256SUMS has another text": lambda m: (m / "SHA256SUMS").write_text(""),
    "README.md has another text": lambda m: (m / "README.md").write_text("# Models"),
}


def test_check_finds_every_difference(built: Path, tmp_path: Path) -> None:
    """All at once, as a check builds the whole catalogue: each is told, and nothing else."""
    copy = tmp_path / "models"
    shutil.copytree(built, copy)
    for harm in HARMS.values():
        harm(copy)
    found = differences(copy, ignore)
    for told in HARMS:
        assert [told in text for text in found].count(True) == 1, (told, found)
    assert len(found) == len(HARMS), found


def test_an_output_rounded_differently_is_no_difference(built: Path, tmp_path: Path) -> None:
    copy = tmp_path / "models"
    shutil.copytree(built, copy)
    path = copy / "plain/test_data_set_0/output_0.pb"
    tensor = onnx.TensorProto.FromString(path.read_bytes())
    array = np.nextafter(onnx.numpy_helper.to_array(tensor), np.float32(9))
    path.write_bytes(onnx.numpy_helper.from_array(array, tensor.name).SerializeToString())
    # The checksum still tells that it is another file.
    assert differences(copy, ignore) == [f"{copy / 'SHA256SUMS'} has another text"]


def test_a_rebuild_removes_old_sets_and_keeps_what_verify_wrote(tmp_path: Path) -> None:
    shutil.copytree(MODELS, tmp_path, dirs_exist_ok=True)
    old = tmp_path / "plain" / "test_data_set_9"
    old.mkdir()
    (old / "input_0.pb").touch()
    build(tmp_path, ignore)
    assert not old.exists()
    assert (tmp_path / "README.md").read_text() == (MODELS / "README.md").read_text()


def test_it_is_small() -> None:
    assert sum(path.stat().st_size for path in MODELS.rglob("*") if path.is_file()) < 1_500_000


@pytest.mark.parametrize("name", NAMES)
def test_every_set_is_whole_and_feeds_every_input(name: str) -> None:
    # load_model refuses sets whose names are not those of the file, in its order.
    model = load_model(MODELS / name / "model.onnx")
    assert len(model.sets) >= 3
    graph = onnx.load_model(model.path).graph
    for vectors in model.sets:
        assert list(vectors.inputs) == [entry.name for entry in graph.input]
        assert list(vectors.outputs) == [entry.name for entry in graph.output]
        for entry in graph.input:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(entry.type.tensor_type.elem_type)
            assert vectors.inputs[entry.name].dtype == dtype
    shapes = [(v.inputs["query"].shape[1], v.inputs["value"].shape[1]) for v in model.sets]
    assert any(Tq != Tv for Tq, Tv in shapes) or (1, 1) in shapes


@pytest.mark.parametrize("name", NAMES)
def test_masked_models_have_rows_without_any_key(name: str) -> None:
    entry = CATALOGUE[NAMES.index(name)]
    if "value_mask" not in entry.inputs:
        assert entry.options["masks"] == "none"
        return
    hidden = [fully_masked(entry, number) for number in range(len(entry.cases))]
    assert any(rows.any() and not rows.all() for rows in hidden)
    if entry.config.causal:
        padded = [number for number, case in enumerate(entry.cases) if case.value_mask == "front"]
        assert all(hidden[number][:, 0].any() for number in padded)


def fully_masked(entry: Entry, number: int) -> np.ndarray:
    """bool[batch, Tq]: which rows see no key."""
    inputs = case_inputs(entry, number)
    case = entry.cases[number]
    allowed = np.broadcast_to(inputs["value_mask"][:, None], (case.batch, case.Tq, case.Tv))
    if entry.config.causal:
        allowed = allowed & np.tri(case.Tq, case.Tv, dtype=bool)
    return ~allowed.any(-1)


@pytest.mark.parametrize("name", NAMES)
def test_no_expected_number_hangs_on_the_last_bit_of_a_score(name: str) -> None:
    """Fully masked rows round score - 1e9 to multiples of 64: keep off the edges, or exactly on."""
    entry = CATALOGUE[NAMES.index(name)]
    if "value_mask" not in entry.inputs or entry.config.floats.compute == "float64":
        return
    for number, case in enumerate(entry.cases):
        inputs = case_inputs(entry, number)
        if case.large:
            assert all(
                (array == np.round(array)).all()
                for array in inputs.values()
                if array.dtype != np.bool_
            )
            continue
        weights = {**entry.weight_arrays, **{k: inputs[k] for k in entry.weights if k in inputs}}
        additive = entry.config.layer == "AdditiveAttention"
        scores = raw_scores(
            inputs["query"].astype(float),
            inputs.get("key", inputs["value"]).astype(float),
            "additive" if additive else entry.config.score_mode,
            weights.get("scale"),
            weights.get("concat_score_weight", 1.0),
        )
        from_edge = np.abs(np.abs(scores[fully_masked(entry, number)]) % 64 - 32)
        assert from_edge.size == 0 or from_edge.min() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_large_scores_show_the_rule_for_fully_masked_rows(name: str) -> None:
    """A runtime that gave such rows equal weights, or zeros, would be seen."""
    entry = CATALOGUE[NAMES.index(name)]
    for number, case in enumerate(entry.cases):
        if not case.large:
            continue
        inputs = case_inputs(entry, number)
        open_inputs = {**inputs, "query_mask": np.ones((1, 1), np.bool_)}
        output = expected_outputs(entry, open_inputs)["output"].astype(float)
        mean = inputs["value"].astype(float).mean(1, keepdims=True)
        rows = fully_masked(entry, number)
        assert np.abs(output - mean)[rows].max() > 0.1


@pytest.mark.parametrize("name", ["causal", "masked"])
def test_short_and_long_sets_take_different_branches(name: str, tmp_path: Path) -> None:
    """The vectors of a file that chooses by its shapes must make it choose both ways."""
    walked = [
        goes_in_parts(MODELS / name, vectors, tmp_path) for vectors in read_sets(MODELS / name)
    ]
    if CATALOGUE[NAMES.index(name)].export_options.schedule == "dense":
        assert not any(walked)
    else:
        assert [n for n, walks in enumerate(walked) if walks] == [
            n for n, case in enumerate(CATALOGUE[NAMES.index(name)].cases) if "long" in case.what
        ]


def goes_in_parts(folder: Path, vectors: VectorSet, scratch: Path) -> bool:
    """Whether ONNX Runtime's profile of a run holds more than one Softmax."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.enable_profiling = True
    options.profile_file_prefix = str(scratch / vectors.path.name)
    session = onnxruntime.InferenceSession(
        folder / "model.onnx", options, providers=["CPUExecutionProvider"]
    )
    session.run(None, vectors.inputs)
    events = json.loads(Path(session.end_profiling()).read_text())
    ran = [
        event["args"]["op_name"]
        for event in events
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
    ]
    assert "Softmax" in ran
    return ran.count("Softmax") > 1


def test_inputs_are_exact_in_every_float_type() -> None:
    for entry in CATALOGUE:
        for number in range(len(entry.cases)):
            for name, array in case_inputs(entry, number).items():
                if array.dtype != np.bool_:
                    assert (array.astype(np.float16) == array).all(), (entry.name, name)


def test_onnx_reads_the_tolerances(tmp_path: Path) -> None:
    for name in NAMES:
        shutil.copytree(MODELS / name, tmp_path / "real" / f"test_{name}")
    cases = load_model_tests(str(tmp_path), "real")
    assert sorted(case.name for case in cases) == sorted(f"test_{name}" for name in NAMES)
    for case in cases:
        tolerance = read_tolerance(MODELS / case.name.removeprefix("test_"))
        assert (case.rtol, case.atol) == (tolerance.rtol, tolerance.atol)


def test_config_txt_is_what_onnxruntime_parses() -> None:
    """Its onnx_test_runner splits each line at colons and strips both halves."""
    for name in NAMES:
        lines = (MODELS / name / "config.txt").read_text().splitlines()
        values = dict([part.strip() for part in line.split(":")] for line in lines)
        tolerance = read_tolerance(MODELS / name)
        assert float(values["per_sample_tolerance"]) == tolerance.atol
        assert float(values["relative_per_sample_tolerance"]) == tolerance.rtol
        assert values["post_processing"] == "false"


def test_nothing_but_models_lies_in_the_catalogue() -> None:
    assert [path.parent.name for path in find_models([MODELS])] == sorted(NAMES)
    for name in NAMES:
        # A subfolder of any other name would be run as a test set by onnx_test_runner.
        folders = {path.name for path in (MODELS / name).iterdir() if path.is_dir()}
        assert folders == {f"test_data_set_{n}" for n in range(len(folders))}
        assert len(read_sets(MODELS / name)) == len(folders)


def table_of(name: str) -> list[list[str]]:
    text = section((MODELS / "README.md").read_text(), name)
    assert text != NOT_YET
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_the_readme_says_for_every_model_what_every_runtime_gave() -> None:
    head, _, *rows = table_of("results")
    for title, runtime in zip(head[1:-1], RUNTIMES.values(), strict=True):
        assert title.startswith(runtime.title)
    assert sorted(row[0].partition("]")[0].strip("[") for row in rows) == sorted(NAMES)
    notes = section((MODELS / "README.md").read_text(), "results")
    for row in rows:
        for cell in row[1:-1]:
            if cell.startswith("no "):
                assert f"\n{cell.split()[-1]} " in notes
            else:
                assert float(cell) < 1e-3


def test_the_readme_names_the_versions_that_ran() -> None:
    head, _, row, *_ = table_of("versions")
    assert head[0] == "onnx_attn"
    oldest = OLDEST_ONNXRUNTIME[3, 11][0]
    assert row[:4] == [__version__, "17", "8", oldest]
    assert f"oldest ONNX Runtime {oldest}" in row[4]
    assert f"OpenVINO {OPENVINO}" in row[4]
    for runtime in RUNTIMES.values():
        assert f"{runtime.title} " in row[4]
