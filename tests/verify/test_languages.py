"""Attention files in C, C++, Java, Rust and Go: the programs of examples/, run by verify.

Those marked `languages` build and run the programs; a missing compiler or header fails them. The
others need no language: they hold the protocol against a program in Python.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import children
from onnx_attn.catalogue.build import entry_files
from onnx_attn.catalogue.entries import CAUSAL_MASKED, MASKED, Case, Entry
from onnx_attn.configuration import LayerConfig
from onnx_attn.verify.run import find_models, load_model, verify
from onnx_attn.verify.runtimes import RUNTIMES, languages
from onnx_attn.verify.runtimes.environments import call
from onnx_attn.verify.runtimes.programs import run_programs
from onnx_attn.verify.runtimes.runtime import Answer, Feed, RuntimeMissingError, Task
from onnx_attn.verify.vectors import parse_tensor, set_files

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
MODELS = ROOT / "models"
LANGUAGES = ("c", "cpp", "java", "rust", "go")

built = [pytest.mark.runtimes, pytest.mark.languages]


# The protocol, held against a program in Python.

PROGRAM = """
import os, pathlib, shutil, sys
model, *folders = sys.argv[1:]
mode = pathlib.Path(model).parent.name
for given, out in zip(folders[::2], folders[1::2], strict=True):
    files = sorted(pathlib.Path(given).iterdir())
    if mode == "refused":
        sys.exit("some noise\\nerror: key and value of different length")
    if mode == "died":
        os.abort()
    if mode == "ended":
        sys.exit(3)
    if mode == "cut":
        (pathlib.Path(out) / "output_0.pb").write_bytes(b"hello")
    elif mode == "gap":
        shutil.copy(files[0], pathlib.Path(out) / "output_1.pb")
    else:
        for number, file in enumerate(files):
            shutil.copy(file, pathlib.Path(out) / f"output_{number}.pb")
"""


def answered(folder: Path, mode: str, *feeds: Feed) -> Answer:
    """The answer of the program above, which gives its inputs back as outputs."""
    program = folder / "program.py"
    program.write_text(PROGRAM)
    task = Task(folder / mode / "model.onnx", feeds)
    (answer,) = run_programs([sys.executable, str(program)], os.environ, [task])
    return answer


@pytest.fixture
def feed(tmp_path: Path) -> Feed:
    inputs = {"query": np.arange(6, dtype=np.float16).reshape(1, 2, 3), "training": np.array(False)}
    files = set_files(inputs, {})
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    return Feed(tuple(tmp_path / name for name in files), inputs)


def test_a_program_reads_each_set_and_its_outputs_come_back(tmp_path: Path, feed: Feed) -> None:
    drawn = replace(feed, training=True, times=3)
    answer = answered(tmp_path, "right", feed, drawn)
    assert answer.error is None
    assert [len(times) for times in answer.outputs] == [1, 3]
    for times, training in zip(answer.outputs, (False, True), strict=True):
        for outputs in times:
            assert list(outputs) == ["query", "training"]
            assert outputs["query"].dtype == np.float16
            np.testing.assert_array_equal(outputs["query"], feed.inputs["query"])
            assert outputs["training"].shape == ()
            assert bool(outputs["training"]) is training


@pytest.mark.parametrize(
    ("mode", "told"),
    [
        ("refused", r"^key and value of different length$"),
        ("died", rf"^the process died of signal {int(signal.SIGABRT)}"),
        ("ended", r"^the process ended with exit code 3$"),
        ("cut", r"output_0\.pb is damaged"),
        ("gap", r"output_0\.pb cannot be read"),
    ],
)
def test_what_a_program_does_wrong_is_its_answer(
    tmp_path: Path, feed: Feed, mode: str, told: str
) -> None:
    answer = answered(tmp_path, mode, feed)
    assert answer.outputs == []
    assert answer.error is not None
    assert re.search(told, answer.error), answer.error
    assert "\n" not in answer.error


def test_a_program_that_is_not_there_is_its_answer(feed: Feed) -> None:
    (answer,) = run_programs(["/no/such/program"], os.environ, [Task(MODELS, (feed,))])
    assert answer.error == "/no/such/program cannot be run: No such file or directory"


# What is missing is said.


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH that holds every tool by name: none of them does anything."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in ("cc", "c++", "make", "cmake", "java", "javac", "mvn", "cargo", "rustc", "go"):
        (folder / name).write_text("#!/bin/sh\necho no such flag >&2; exit 1\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("ONNX_ATTN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ORT_DYLIB_PATH", raising=False)
    return folder


def missing(name: str, install: bool = True) -> str:
    with pytest.raises(RuntimeMissingError) as caught:
        RUNTIMES[name].start(install, print)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "tool"),
    [(n, t) for n in LANGUAGES for t in getattr(RUNTIMES[n], "needs")],  # noqa: B009
)
def test_a_missing_tool_is_named(tools: Path, name: str, tool: str) -> None:
    (tools / tool).unlink()
    assert missing(name).startswith(f"{tool} is not there: install ")


@pytest.mark.parametrize(
    ("name", "header"), [("c", "onnxruntime_c_api.h"), ("cpp", "onnxruntime_cxx_api.h")]
)
def test_a_missing_header_is_named(
    tools: Path, monkeypatch: pytest.MonkeyPatch, name: str, header: str
) -> None:
    monkeypatch.setenv("ONNXRUNTIME_INCLUDE", str(tools))
    told = missing(name)
    assert told.startswith(f"{header} is not in ONNXRUNTIME_INCLUDE={tools}: ")
    assert "headers.sh" in told
    monkeypatch.delenv("ONNXRUNTIME_INCLUDE")
    monkeypatch.setattr(languages, "INCLUDE_FOLDERS", (tools,))
    assert missing(name).startswith(f"{header} is not there: ")


@pytest.mark.parametrize("name", ["c", "cpp", "rust", "go"])
def test_a_missing_library_is_named(
    tools: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for header in ("onnxruntime_c_api.h", "onnxruntime_cxx_api.h"):
        (tools / header).touch()
    monkeypatch.setenv("ONNXRUNTIME_INCLUDE", str(tools))
    monkeypatch.setenv("ORT_DYLIB_PATH", str(tools / "nothing.so"))
    assert missing(name) == f"ORT_DYLIB_PATH={tools}/nothing.so is no file"


@pytest.mark.parametrize("name", LANGUAGES)
def test_missing_sources_are_named(tools: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(languages, "IN_WHEEL", tools)
    monkeypatch.setattr(languages, "IN_CHECKOUT", tools)
    assert f"examples/{name}, are not in this installation" in missing(name)


@pytest.mark.parametrize("name", LANGUAGES)
def test_a_build_that_fails_says_so_and_leaves_nothing(
    tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for header in ("onnxruntime_c_api.h", "onnxruntime_cxx_api.h"):
        (tools / header).touch()
    monkeypatch.setenv("ONNXRUNTIME_INCLUDE", str(tools))
    assert "not installed: run verify without --no-install" in missing(name, install=False)
    assert missing(name).endswith("failed: no such flag")
    assert list((tmp_path / "cache").iterdir()) == []


# Versions are pinned, registries are not recorded, the wheel carries the sources.


@pytest.mark.parametrize("programs", ["examples", "tests/consumers"])
def test_the_lock_files_name_public_registries_alone(programs: str) -> None:
    folder = ROOT / programs
    lock = tomllib.loads((folder / "rust/Cargo.lock").read_text())
    others = [package for package in lock["package"] if package["name"] != "attention"]
    assert len(others) >= 4
    public = "registry+https://github.com/rust-lang/crates.io-index"
    assert {package["source"] for package in others} == {public}
    assert all("checksum" in package for package in others)
    manifest = tomllib.loads((folder / "rust/Cargo.toml").read_text())
    ort = manifest["dependencies"]["ort"]
    assert ort["version"].startswith("=")
    assert ort["default-features"] is False
    module = re.search(r"^require (\S+ v\S+)$", (folder / "go/go.mod").read_text(), re.MULTILINE)
    assert module is not None
    sums = (folder / "go/go.sum").read_text().splitlines()
    assert [line.split()[2][:3] for line in sums if line.startswith(module[1])] == ["h1:", "h1:"]
    pom = (folder / "java/pom.xml").read_text()
    assert "epositor" not in pom
    plugins = re.findall(r"<plugin>.*?</plugin>", pom, re.DOTALL)
    assert len(plugins) == 5
    assert all(re.search(r"<version>[\d.]+</version>", plugin) for plugin in plugins)


@pytest.mark.parametrize("name", LANGUAGES)
def test_a_wheel_carries_every_source(name: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    carried = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    package = Path(languages.__file__).parents[2]  # installed or in a checkout
    home = str(languages.IN_WHEEL.relative_to(package.parent))
    assert all(carried[path] == path.replace("examples", home, 1) for path in carried)
    for pattern in getattr(RUNTIMES[name], "files"):  # noqa: B009
        found = list((EXAMPLES / name).glob(pattern))
        assert found, pattern
        for path in found:
            inside = str(path.relative_to(ROOT))
            assert any(inside == each or inside.startswith(f"{each}/") for each in carried), inside


@pytest.mark.runtimes
@pytest.mark.languages
def test_the_programs_are_found_in_a_wheel(tmp_path: Path) -> None:
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True
    ).stdout.split("\0")
    for name in filter(None, names):
        if name.startswith(("onnx_attn/", "examples/")) or "/" not in name:
            (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, tmp_path / "tree" / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", "wheels"]
    call([*pip, "./tree"], tmp_path)
    (wheel,) = (tmp_path / "wheels").iterdir()
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    program = (
        "from onnx_attn.verify.runtimes import RUNTIMES, languages\n"
        "for name in ('c', 'cpp', 'java', 'rust', 'go'):\n"
        "    assert (languages.IN_WHEEL / name).is_dir(), name\n"
        "    print(name, *sorted(RUNTIMES[name].sources()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True,
        text=True,
        check=True,
    )
    wanted = [" ".join([name, *sorted(RUNTIMES[name].sources())]) for name in LANGUAGES]  # pyright: ignore
    assert done.stdout.splitlines() == wanted


# The programs themselves.


@pytest.fixture(scope="module", params=[pytest.param(name, marks=built) for name in LANGUAGES])
def language(request: pytest.FixtureRequest) -> str:
    """A language whose program is built."""
    RUNTIMES[request.param].start(True, print)
    return request.param


def run(
    language: str, *arguments: str | Path, code: int = 0, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a language's program; its exit code must be `code`."""
    runtime: Any = RUNTIMES[language]
    return children.run(
        *runtime.command,
        *arguments,
        seconds=300,
        code=code,
        environment=runtime.environment | environment,
    )


ERROR = r"\d\.\de[+-]\d\d"


@pytest.mark.parametrize("model", ["masked", "no_key", "scale_input", "training", "plain"])
def test_a_program_shows_one_model_and_its_errors(language: str, model: str) -> None:
    printed = run(language, MODELS / model).stdout
    sets = list((MODELS / model).glob("test_data_set_*"))
    assert len(re.findall(rf"test_data_set_\d+  largest error {ERROR}  ok", printed)) == len(sets)
    bad_input = printed.split("Bad input\n")[1].split("\n\n")[0].splitlines()
    assert len(bad_input) == 4 + (model != "plain") + (model != "no_key")
    assert all(re.match(r"  \S.*: \S.*", line) for line in bad_input)
    assert "NOT REFUSED" not in printed
    assert "must_have_the_same_length" in printed or model == "no_key"
    first, last = re.findall(r"no mask.*(output \[.*)", printed)
    assert first == last, "a refused run changed the next one"
    if model == "masked":
        assert "value_mask [[true, true, false]]     output [1, 2, 1]: 11.1920 18.8080" in printed
        assert "query_mask [[true, false]]           output [1, 2, 1]: 20.0000 0.0000" in printed
    if model == "scale_input":
        assert "scale 0.5                            output [1, 2, 1]: 20.0000 22.6696" in printed
    if model == "training":
        assert "training true                        output [1, 2, 1]: " in printed


def test_a_program_runs_the_catalogue(language: str) -> None:
    printed = run(language, "--catalogue", MODELS).stdout.splitlines()
    assert re.fullmatch(r"ONNX Runtime \d+\.\d+\.\d+", printed[0])
    results = {line.split()[0]: line[25:] for line in printed[1:]}
    assert sorted(results) == sorted(path.parent.name for path in MODELS.glob("*/model.onnx"))
    for name, result in results.items():
        if name == "optional_inputs" and language == "java":
            assert result.startswith("does not run here Java takes no optional input (query_mask)")
        else:
            assert re.fullmatch(rf"ok +\d sets, largest error {ERROR}", result), f"{name}: {result}"


@pytest.fixture
def masked(tmp_path: Path) -> Path:
    return Path(shutil.copytree(MODELS / "masked", tmp_path / "models/masked"))


def change(path: Path, by: np.ndarray | None = None, dtype: str | None = None) -> None:
    """Write a vector anew, with other numbers or another type."""
    name, array = parse_tensor(path.read_bytes(), path)
    array = array if by is None else by
    path.write_bytes(
        numpy_helper.from_array(array.astype(dtype or array.dtype), name).SerializeToString()
    )


def test_a_program_notices_a_wrong_number(language: str, masked: Path) -> None:
    vector = masked / "test_data_set_1/output_0.pb"
    array = np.array(parse_tensor(vector.read_bytes(), vector)[1])
    array[0, 0, 0] += np.float32(1e-4)
    change(vector, array)
    assert "TOO LARGE" in run(language, masked, code=1).stdout
    assert "error too large" in run(language, "--catalogue", masked.parent, code=1).stdout
    array[0, 0, 0] = np.nan
    change(vector, array)
    assert "error too large" in run(language, "--catalogue", masked.parent, code=1).stdout
    vector.write_bytes(vector.read_bytes()[:-7])
    assert "failed: " in run(language, "--catalogue", masked.parent, code=1).stdout


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def shorten_key(folder: Path) -> None:
    key = folder / "test_data_set_0/input_2.pb"
    change(key, parse_tensor(key.read_bytes(), key)[1][:, :-2])
    # A mask of the values' length would not fit the keys either.
    change(folder / "test_data_set_0/input_4.pb", np.array([[True]]))


BAD = {
    "no model": (lambda m: (m / "model.onnx").unlink(), "model.onnx"),
    "model cut short": (lambda m: cut(m / "model.onnx"), "rotobuf parsing failed"),
    "model empty": (lambda m: (m / "model.onnx").write_bytes(b""), "model.onnx|graph|proto"),
    "no set": (lambda m: shutil.rmtree(m / "test_data_set_0"), "input_0.pb"),
    "vector cut short": (lambda m: cut(m / "test_data_set_0/input_1.pb"), "input_1.pb"),
    "no vector": (lambda m: (m / "test_data_set_0/input_0.pb").write_bytes(b"hello"), "input_0.pb"),
    "float64 query": (
        lambda m: change(m / "test_data_set_0/input_0.pb", dtype="float64"),
        r"Unexpected input data type. Actual: \(tensor\(double\)\)",
    ),
    "int64 query": (
        lambda m: change(m / "test_data_set_0/input_0.pb", dtype="int64"),
        "input_0.pb.*data type 7",
    ),
    "key shorter than value": (shorten_key, "must_have_the_same_length"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_line(language: str, masked: Path, tmp_path: Path, what: str) -> None:
    harm, told = BAD[what]
    harm(masked)
    out = tmp_path / "out"
    out.mkdir()
    done = run(language, masked / "model.onnx", masked / "test_data_set_0", out, code=1)
    assert done.stdout == ""
    assert re.fullmatch(r"error: \S[^\n]*\n", done.stderr), done.stderr
    assert re.search(told, done.stderr), done.stderr
    assert list(out.iterdir()) == []
    if what != "no set":
        done = run(language, masked, code=1)
        assert re.fullmatch(r"error: \S[^\n]*\n", done.stderr), done.stderr


def test_a_wrong_command_line_is_one_line(language: str, tmp_path: Path) -> None:
    for arguments in ([], ["--help"], ["model.onnx", "set"], ["--catalogue"]):
        assert re.fullmatch(r"usage: [^\n]*\n", run(language, *arguments, code=2).stderr)
    told = run(language, "--catalogue", tmp_path, code=1).stderr
    assert re.fullmatch(r"error: [^\n]*holds no folder with a model.onnx\n", told)


def test_a_library_that_is_none_is_one_line(language: str, tmp_path: Path) -> None:
    if language in ("cpp", "java"):  # linked, and in the jar
        return
    for library in (tmp_path / "nothing.so", Path(numpy_library())):
        told = run(language, "--version", code=1, ORT_DYLIB_PATH=str(library)).stderr
        assert re.fullmatch(r"error: [^\n]*\n", told), told


def numpy_library() -> str:
    """A shared library that is not ONNX Runtime's."""
    return next(str(path) for path in Path(np.__file__).parent.glob("_core/*.so"))


EXTRA = (
    Entry(
        "fixed_dims",
        "",
        LayerConfig(causal=True),
        (Case("", 1, 6, 7, "tails", "front", dim=20, value_dim=5),),
        {"dims": {"batch": 1, "dim": 20}, "return_attention_scores": True, "opset": 21},
    ),
    Entry(
        "float64_scores",
        "",
        LayerConfig(dtype="float64", use_scale=True),
        tuple(replace(case, dim=5, value_dim=33) for case in MASKED[:5]),
        {"return_attention_scores": True, "scale": "input", "schedule": "dense"},
        {"scale": 0.25},
    ),
    Entry(
        "float16_dense_scores",
        "",
        LayerConfig(dtype="float16", causal=True),
        CAUSAL_MASKED,
        {"return_attention_scores": True, "schedule": "dense"},
    ),
    Entry(
        "bfloat16_scores",
        "",
        LayerConfig(dtype="bfloat16", causal=True),
        CAUSAL_MASKED,
        {"return_attention_scores": True},
    ),
)


def test_files_that_are_not_in_the_catalogue_give_their_numbers(
    language: str, tmp_path: Path
) -> None:
    for entry in EXTRA:
        for name, data in entry_files(entry).items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(data)
    models = [load_model(path) for path in find_models([tmp_path])]
    result = verify(models, [RUNTIMES[language]], True, print)
    assert [result.cells[model.path, language].status for model in models] == ["pass"] * len(EXTRA)
    printed = run(language, "--catalogue", tmp_path).stdout
    assert len(re.findall(rf"  ok +\d sets, largest error {ERROR}\n", printed)) == len(EXTRA)


# The READMEs, word by word.


@pytest.mark.runtimes
@pytest.mark.languages
@pytest.mark.parametrize("name", LANGUAGES)
def test_the_readme_of_an_example_is_followed_word_by_word(name: str, tmp_path: Path) -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "-z", f"examples/{name}"], cwd=ROOT, capture_output=True, check=True
    ).stdout.decode()
    for file in filter(None, tracked.split("\0")):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    shutil.copytree(MODELS, tmp_path / "models")
    folder = tmp_path / "examples" / name
    (block,) = re.findall(r"^```sh\n(.*?)^```", (folder / "README.md").read_text(), re.M | re.S)
    (tmp_path / "out").mkdir()
    masked = "../../models/masked"
    told = {
        "/path/to/libonnxruntime.so.1.31.1": str(languages.native_library()),
        "MODEL SET OUT": f"{masked}/model.onnx {masked}/test_data_set_0 {tmp_path}/out",
        "=FOLDER": f"={languages.header('onnxruntime_c_api.h')}" if name in ("c", "cpp") else "",
    }
    for words, place in told.items():
        block = block.replace(words, place)
    environment = {key: os.environ[key] for key in os.environ if not key.startswith("ORT_")}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "And on it goes" in done.stdout
    assert len(re.findall(rf"  ok +\d sets, largest error {ERROR}\n", done.stdout)) >= 15
    if name == "cpp":
        assert "100% tests passed" in done.stdout
    else:
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["output_0.pb"]


# What C++ alone has.


@pytest.fixture(scope="module")
def cmake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """examples/cpp, built whole."""
    folder = tmp_path_factory.mktemp("cpp")
    paths = [
        f"-DONNXRUNTIME_INCLUDE={languages.header('onnxruntime_cxx_api.h')}",
        f"-DONNXRUNTIME_LIBRARY={languages.native_library()}",
    ]
    call(["cmake", "-S", str(EXAMPLES / "cpp"), "-B", str(folder), *paths], ROOT)
    call(["cmake", "--build", str(folder)], ROOT)
    return folder


@pytest.mark.runtimes
@pytest.mark.languages
def test_a_ragged_batch_is_its_rows(cmake: Path) -> None:
    program = str(cmake / "ragged")
    done = subprocess.run(
        [program, str(MODELS / "masked/model.onnx")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert re.fullmatch(rf"32 sequences of 1 to 48: largest difference .* {ERROR}  ok", first)
    assert re.fullmatch(r"2 threads: together [\d.]+ ms, one by one [\d.]+ ms \(medians\)", second)
    for model in (MODELS / "plain/model.onnx", MODELS / "float64/model.onnx", "no_such.onnx"):
        done = subprocess.run([program, str(model)], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert re.fullmatch(r"error: [^\n]*\n", done.stderr)


@pytest.mark.runtimes
@pytest.mark.languages
def test_a_padded_batch_without_its_mask_is_noticed(cmake: Path, tmp_path: Path) -> None:
    """The program's own check can fail: a file that hides nothing."""
    model = onnx.load_model(MODELS / "masked/model.onnx")
    always = numpy_helper.from_array(np.ones((1, 1), np.bool_), "always")
    model.graph.initializer.append(always)
    for node in model.graph.node:
        node.input[:] = ["always" if name == "value_mask" else name for name in node.input]
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                for inner in attribute.g.node:
                    inner.input[:] = [
                        "always" if name == "value_mask" else name for name in inner.input
                    ]
    onnx.save_model(model, tmp_path / "model.onnx")
    done = subprocess.run(
        [str(cmake / "ragged"), str(tmp_path / "model.onnx")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "TOO LARGE" in done.stdout


@pytest.mark.runtimes
@pytest.mark.languages
@pytest.mark.parametrize("name", ["c", "cpp"])
def test_headers_newer_than_the_library(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C asks for an older interface; C++, whose headers cannot, says so."""
    newer = Path(shutil.copytree(languages.header("onnxruntime_cxx_api.h"), tmp_path / "include"))
    header = newer / "onnxruntime_c_api.h"
    text, count = re.subn(
        r"#define ORT_API_VERSION \d+", "#define ORT_API_VERSION 99", header.read_text()
    )
    assert count == 1
    header.write_text(text)
    monkeypatch.setenv("ONNXRUNTIME_INCLUDE", str(newer))
    monkeypatch.setenv("ONNX_ATTN_CACHE", str(tmp_path / "cache"))
    runtime = RUNTIMES[name]
    try:
        if name == "c":
            runtime.start(True, print)
            run("c", "--catalogue", MODELS)
        else:
            with pytest.raises(RuntimeMissingError, match=r"headers are of ONNX Runtime 1\.99"):
                runtime.start(True, print)
    finally:
        monkeypatch.undo()
        runtime.start(True, print)


README_LINES = """
#include <onnxruntime_cxx_api.h>
#include <array>
#include <cstdio>
#include <vector>
int main() {{
  Ort::Env env{{ORT_LOGGING_LEVEL_FATAL, "lines"}};
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  std::vector<float> query(8), value(12);
  for (int n = 0; n < 12; ++n) value[n] = n;
  std::array<bool, 1> none{{true}};
  const std::array<int64_t, 3> q{{1, 2, 4}}, v{{1, 3, 4}};
  const std::array<int64_t, 2> one{{1, 1}};
  std::vector<Ort::Value> feeds;
  feeds.push_back(Ort::Value::CreateTensor<float>(memory, query.data(), 8, q.data(), 3));
  feeds.push_back(Ort::Value::CreateTensor<float>(memory, value.data(), 12, v.data(), 3));
  feeds.push_back(Ort::Value::CreateTensor<float>(memory, value.data(), 12, v.data(), 3));
  feeds.push_back(Ort::Value::CreateTensor<bool>(memory, none.data(), 1, one.data(), 2));
  const char* const names[] = {{"query", "value", "key", "query_mask", "value_mask"}};
  const char* const wanted[] = {{"output"}};
  {lines}
  for (int n = 0; n < 8; ++n) std::printf("%g ", results[0].GetTensorData<float>()[n]);
}}
"""


@pytest.mark.runtimes
@pytest.mark.languages
def test_the_lines_of_the_readme_in_cpp(cmake: Path, tmp_path: Path) -> None:
    (lines,) = re.findall(r"^```cpp\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    (tmp_path / "lines.cpp").write_text(README_LINES.format(lines=lines))
    (library,) = (cmake / "lib").iterdir()
    include = ["-isystem", str(languages.header("onnxruntime_cxx_api.h"))]
    found = [f"-Wl,-rpath,{library.parent}", str(library), "-o", "lines"]
    call(["c++", "-std=c++17", "-Wall", "-Werror", *include, "lines.cpp", *found], tmp_path)
    done = subprocess.run(
        [str(tmp_path / "lines")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    # A query of zeros weighs what it may see alike: the mean of the first two values.
    assert done.stdout.split() == ["2", "3", "4", "5"] * 2
