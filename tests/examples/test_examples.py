"""The examples run as their READMEs say, and notice a wrong number."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest

import children

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
MODELS = ROOT / "models"
PYTHON_EXAMPLE = EXAMPLES / "python" / "attention.py"

ERROR = r"(\d\.\d+e[+-]\d+|0(?:\.0e\+00)?)"


def run(
    *command: str | os.PathLike[str], cwd: Path = ROOT, code: int = 0, stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command; its exit code must be `code`."""
    return children.run(
        *command,
        seconds=540,
        code=code,
        environment={"PYTHONPATH": str(ROOT)},
        cwd=cwd,
        stdin=stdin,
    )


def python(script: Path, *arguments: str | os.PathLike[str], code: int = 0) -> str:
    """What a script prints, run with warnings as errors."""
    return run(sys.executable, "-W", "error", script, *arguments, code=code).stdout


def models() -> dict[str, str]:
    """How the inputs of each model of the catalogue were exported: required or optional."""
    found = {}
    for path in sorted(MODELS.glob("*/model.onnx")):
        metadata = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
        found[path.parent.name] = json.loads(metadata["onnx_attn.export"])["inputs"]
    assert len(found) >= 10
    return found


@pytest.fixture
def spoiled(tmp_path: Path) -> Path:
    """A copy of models/masked with one wrong bit in an expected output."""
    folder = tmp_path / "masked"
    shutil.copytree(MODELS / "masked", folder)
    vector = folder / "test_data_set_1" / "output_0.pb"
    data = bytearray(vector.read_bytes())
    data[-1] ^= 0x01  # the exponent of the last float: raw_data is the last field
    vector.write_bytes(data)
    return folder


def check_demonstration(printed: str, *, model: str = "masked") -> None:
    """What the Python and the Node program print of a model."""
    data_sets = len(list((MODELS / model).glob("test_data_set_*")))
    lines = re.findall(rf"test_data_set_\d+  largest error {ERROR}  ok", printed)
    assert len(lines) == data_sets
    assert "NOT REFUSED" not in printed
    bad_input = printed.split("Bad input\n")[1].split("\n\n")[0].splitlines()
    assert len(bad_input) >= 5
    assert all(re.match(r"  \S.*: \S.*", line) for line in bad_input)
    assert "must_have_the_same_length" in printed or model == "no_key"
    first, last = re.findall(r"no mask.*(output \[.*)", printed)
    assert first == last, "a refused run changed the next one"


def test_python_shows_one_model_and_its_errors() -> None:
    printed = python(PYTHON_EXAMPLE)
    check_demonstration(printed)
    assert "value_mask [[True, True, False]]     output [1, 2, 1]: 11.1920 18.8080" in printed
    check_demonstration(python(PYTHON_EXAMPLE, MODELS / "no_key"), model="no_key")


def test_python_runs_the_whole_catalogue() -> None:
    printed = python(PYTHON_EXAMPLE, "--catalogue", MODELS)
    assert re.findall(r"^  (\S+) +ok ", printed, re.MULTILINE) == sorted(models())


def test_python_notices_a_wrong_number(spoiled: Path) -> None:
    assert "TOO LARGE" in python(PYTHON_EXAMPLE, spoiled, code=1)
    assert "error too large" in python(PYTHON_EXAMPLE, "--catalogue", spoiled.parent, code=1)


def test_python_imports_nothing_of_ours() -> None:
    barred = (
        "import runpy, sys; sys.modules['onnx_attn'] = None; sys.argv = sys.argv[1:]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    run(sys.executable, "-c", barred, PYTHON_EXAMPLE)
    run(sys.executable, "-c", barred, EXAMPLES / "compose" / "merge_models.py", code=1)


def test_functions_in_a_graph_of_ones_own() -> None:
    printed = python(EXAMPLES / "compose" / "functions_in_your_graph.py")
    assert "0 functions, opset 17, IR 8" in printed
    assert float(re.search(rf"against NumPy: {ERROR}", printed)[1]) < 1e-5


@pytest.mark.parametrize(("opset", "ir"), [(17, 8), (21, 10)])
def test_a_file_merged_into_a_larger_model(opset: int, ir: int) -> None:
    printed = python(EXAMPLES / "compose" / "merge_models.py", "--opset", str(opset))
    assert re.search(
        rf"merged: tokens -> probability, \d+ nodes, opset {opset}, IR {ir}\n", printed
    )
    assert float(re.search(rf"against NumPy: {ERROR}", printed)[1]) < 1e-5


@pytest.mark.parametrize("example", ["node", "web"])
def test_locked_packages_name_no_registry(example: str) -> None:
    lock = json.loads((EXAMPLES / example / "package-lock.json").read_text())
    packages = {name: entry for name, entry in lock["packages"].items() if name}
    assert all("integrity" in entry for entry in packages.values())
    assert not [name for name, entry in packages.items() if "resolved" in entry]


# Node and the browser.


@pytest.fixture(scope="module")
def node() -> Path:
    """examples/node with its packages."""
    run("npm", "ci", cwd=EXAMPLES / "node")
    return EXAMPLES / "node"


@pytest.fixture(scope="module")
def web() -> Path:
    """examples/web with its packages."""
    run("npm", "ci", cwd=EXAMPLES / "web")
    return EXAMPLES / "web"


@pytest.mark.runtimes
def test_node_shows_one_model_and_its_errors(node: Path) -> None:
    printed = run("npm", "start", cwd=node).stdout
    check_demonstration(printed)
    assert "value_mask [[true, true, false]]     output [1,2,1]: 11.1920 18.8080" in printed
    printed = run("npm", "start", "--", MODELS / "no_key", cwd=node).stdout
    check_demonstration(printed, model="no_key")
    missing = run("node", "attention.mjs", "no_such_folder", cwd=node, code=1)
    assert len(missing.stderr.splitlines()) == 1


@pytest.mark.runtimes
def test_node_runs_the_catalogue_but_the_optional_inputs(node: Path) -> None:
    report = json.loads(run("node", "catalogue.mjs", "--json", cwd=node).stdout)
    assert re.fullmatch(r"onnxruntime-node \d+\.\d+\.\d+", report["runtime"])
    results = {name: entry["result"] for name, entry in report["models"].items()}
    expected = {"required": "ok", "optional": "does not run here"}
    assert results == {name: expected[inputs] for name, inputs in models().items()}
    assert all(entry["sets"] >= 3 for entry in report["models"].values() if not entry.get("why"))


@pytest.mark.runtimes
def test_node_notices_a_wrong_number(node: Path, spoiled: Path) -> None:
    assert "TOO LARGE" in run("node", "attention.mjs", spoiled, cwd=node, code=1).stdout
    report = run("node", "catalogue.mjs", "--json", spoiled.parent, cwd=node, code=1).stdout
    assert json.loads(report)["models"]["masked"]["result"] == "error too large"


@pytest.mark.runtimes
def test_the_page_in_chromium(web: Path) -> None:
    printed = run("npm", "test", cwd=web).stdout
    assert re.search(r"pass (\d+)", printed)
    assert re.search(r"(fail|skipped) [^0]", printed) is None


@pytest.fixture
def started(web: Path) -> Iterator[str]:
    """The address that `npm start` prints."""
    environment = os.environ | {"PORT": "8917"}
    with subprocess.Popen(
        ["node", "server.mjs"], cwd=web, env=environment, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.terminate()


@pytest.mark.runtimes
def test_the_page_is_served_where_the_server_says(started: str) -> None:
    assert started == "http://localhost:8917/examples/web/"
    with urllib.request.urlopen(started, timeout=10) as response:
        assert "<title>Attention in the browser</title>" in response.read().decode()


@pytest.mark.runtimes
def test_the_catalogue_in_chromium(web: Path) -> None:
    report = json.loads(run("node", "test/catalogue_in_chromium.mjs", cwd=web).stdout)
    results = {name: entry["result"] for name, entry in report["models"].items()}
    expected = {"required": "ok", "optional": "does not run here"}
    assert results == {name: expected[inputs] for name, inputs in models().items()}


# The lines that the README shows.


def shown_lines(language: str) -> str:
    """The code block of a language out of the README's "The same lines elsewhere".

    One block of JavaScript serves Node and, by the module that its comment names, a browser.
    """
    title = "## The same lines elsewhere"
    section = (ROOT / "README.md").read_text().split(title)[1].split("\n## ")[0]
    blocks = dict(re.findall(r"^```(\w+)\n(.*?)^```", section, re.MULTILINE | re.DOTALL))
    if language == "Python":
        return blocks["python"]
    if language == "Node":
        return blocks["js"]
    (module,) = re.findall(r'in a browser: "(.*?)"', blocks["js"])
    return (
        blocks["js"].replace('"onnxruntime-node"', f'"{module}"').replace('"models/', '"/models/')
    )


# A query of zeros weighs all it may see alike, so the output is the mean of the first two values.
EXPECTED = [2.0, 3.0, 4.0, 5.0] * 2


def test_the_lines_in_python() -> None:
    setting = (
        "query, value = np.zeros((1, 2, 4), 'f4'), np.arange(12, dtype='f4').reshape(1, 3, 4)\n"
    )
    lines = f"{setting}{shown_lines('Python')}\nprint(output.ravel().tolist())"
    script = f"import numpy as np, onnxruntime\n{lines}"
    assert json.loads(run(sys.executable, "-W", "error", "-c", script).stdout) == EXPECTED


JS_SETTING = """
const query = new ort.Tensor("float32", new Float32Array(8), [1, 2, 4]);
const value = new ort.Tensor("float32", Float32Array.from({ length: 12 }, (_, i) => i), [1, 3, 4]);
"""

JS_PRINT = "console.log(JSON.stringify([...output.data]));"


@pytest.mark.runtimes
def test_the_lines_in_node(node: Path) -> None:
    parts = ('process.chdir("../..");', JS_SETTING, shown_lines("Node"), JS_PRINT)
    done = run("node", "--input-type=module", "-", cwd=node, stdin="\n".join(parts))
    assert json.loads(done.stdout) == EXPECTED


@pytest.mark.runtimes
def test_the_lines_in_chromium(web: Path) -> None:
    script = f"{JS_SETTING}{shown_lines('Browser')}\nglobalThis.result = [...output.data];"
    program = f"""
import {{ openBrowser, ready }} from "./chromium.mjs";
const {{ browser, url, close }} = await openBrowser();
const page = await browser.newPage();
await page.goto(url);
await ready(page);
await page.addScriptTag({{ type: "module", content: {json.dumps(script)} }});
await page.waitForFunction(() => globalThis.result);
console.log(JSON.stringify(await page.evaluate(() => globalThis.result)));
await close();
"""
    done = run("node", "--input-type=module", "-", cwd=web / "test", stdin=program)
    assert json.loads(done.stdout) == EXPECTED
