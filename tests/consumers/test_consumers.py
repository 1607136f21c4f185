"""Programs written from docs/format.md alone, in five languages, over files not in models/.

Each decides by that page what a file asks for: it takes names, types and shapes from its runtime,
supplies what it is not given, and writes what comes out. A file whose page is wrong, or a page
whose file is wrong, ends in other numbers than the float64 reference.

They are built by what builds the programs of examples/; a missing compiler or header fails them.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnx_attn.configuration import numpy_dtype
from onnx_attn.reference import attention
from onnx_attn.verify.runtimes import languages
from oracle import close, make_layer, weights_for

HERE = Path(__file__).parent
EXAMPLES = HERE.parents[1] / "examples"
PAGE = HERE.parents[1] / "docs/format.md"
LANGUAGES: dict[str, Any] = {
    "c": languages.C,
    "cpp": languages.Cpp,
    "java": languages.Java,
    "rust": languages.Rust,
    "go": languages.Go,
}

built = [pytest.mark.runtimes, pytest.mark.languages]

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class File:
    """A layer, how it is exported, and the sizes that it is called with."""

    sizes: tuple[int, int, int, int, int]  # batch, Tq, Tv, dim, value_dim
    mode: str = "dot"
    layer: dict[str, Any] = field(default_factory=dict)
    export: dict[str, Any] = field(default_factory=dict)
    heads: int = 0

    @property
    def policy(self) -> str:
        return self.layer.get("dtype", "float32")

    @property
    def dtype(self) -> str:
        return self.policy.removeprefix("mixed_")


SCORES: dict[str, Any] = {"return_attention_scores": True}
FILES = {
    "plain": File((2, 5, 7, 3, 4), export={"masks": "none"}),
    "single": File((1, 1, 1, 1, 1), export=SCORES),
    "no_key": File((3, 4, 6, 5, 5), export={"key": False, **SCORES}),
    "fixed": File(
        (2, 3, 7, 5, 4),
        export={"dims": {"batch": 2, "Tq": 3, "dim": 5, "value_mask_Tv": 7}, **SCORES},
    ),
    "float64": File(
        (2, 6, 9, 4, 3),
        layer={"dtype": "float64", "causal": True, "use_scale": True},
        export=SCORES,
    ),
    "float64_input": File(
        (2, 4, 5, 3, 6),
        layer={"dtype": "float64", "use_scale": True},
        export={"scale": "input", "masks": "value", "opset": 21, **SCORES},
    ),
    "float16": File((2, 5, 6, 8, 3), layer={"dtype": "float16", "causal": True}, export=SCORES),
    "float16_input": File(
        (2, 3, 4, 6, 5),
        mode="additive",
        layer={"dtype": "float16"},
        export={"scale": "input", **SCORES},
    ),
    "float16_scalar": File(
        (2, 3, 4, 6, 5),
        layer={"dtype": "float16", "use_scale": True},
        export={"scale": "input"},
    ),
    "mixed_input": File(
        (2, 4, 4, 6, 5),
        layer={"dtype": "mixed_float16", "use_scale": True},
        export={"scale": "input", "bias": True, **SCORES},
    ),
    "concat": File(
        (2, 4, 3, 5, 2), mode="concat", layer={"use_scale": True}, export={"masks": "query"}
    ),
    "concat_input": File(
        (2, 4, 3, 5, 2),
        mode="concat",
        layer={"use_scale": True, "causal": True},
        export={"scale": "input", **SCORES},
    ),
    "additive": File((3, 7, 2, 4, 6), mode="additive", export={"masks": "query", **SCORES}),
    "additive_input": File(
        (2, 3, 5, 4, 1), mode="additive", export={"scale": "input", "bias": True, **SCORES}
    ),
    "heads": File(
        (2, 6, 5, 3, 4),
        layer={"causal": True, "use_scale": True},
        export={"heads": True, "bias": True, **SCORES},
        heads=3,
    ),
    "training": File(
        (2, 30, 40, 4, 3), layer={"dropout": 0.25}, export={"training": True, **SCORES}
    ),
    "optional": File(
        (2, 4, 5, 3, 2),
        layer={"use_scale": True, "dropout": 0.5},
        export={
            "inputs": "optional",
            "scale": "input",
            "bias": True,
            "training": True,
            **SCORES,
        },
    ),
    "optional_mixed": File(
        (2, 5, 5, 3, 2),
        mode="concat",
        layer={"use_scale": True, "dtype": "mixed_float16"},
        export={"inputs": "optional", "scale": "input", **SCORES},
    ),
    "bfloat16": File((2, 5, 6, 7, 3), layer={"dtype": "bfloat16", "use_scale": True}),
    "no_values": File((2, 3, 0, 4, 5), export=SCORES),
    # Beyond what docs/schedules.md calls small, and with masks beyond what it calls dense.
    "long": File((2, 400, 380, 8, 4)),
    "long_parts": File((2, 400, 400, 8, 4), layer={"causal": True}),
    "long_causal": File((2, 401, 379, 8, 4), layer={"causal": True}),
    "long_float64": File(
        (2, 400, 380, 7, 5), layer={"dtype": "float64", "causal": True}, export=SCORES
    ),
    "long_biased": File(
        (1, 400, 380, 6, 4), layer={"causal": True}, export={"heads": True, "bias": True}, heads=2
    ),
    "long_heads": File((1, 390, 410, 6, 5), export={"heads": True, **SCORES}, heads=3),
    "long_concat": File((2, 400, 380, 5, 4), mode="concat", export=SCORES),
    "long_additive": File((1, 400, 380, 8, 4), mode="additive", export={"scale": "input"}),
    "long_no_key": File((2, 400, 380, 9, 9), export={"key": False, "masks": "value", **SCORES}),
}


@dataclass(frozen=True)
class Made:
    """An exported file, and two calls of it: with tensors alone, and with all that it takes."""

    path: Path
    file: File
    weights: Arrays
    alone: Arrays
    given: Arrays

    def wanted(self, inputs: Arrays) -> Arrays:
        """What the file must answer: the page's rules, in float64."""
        taken = {name: array for name, array in inputs.items() if name != "training"}
        weights = {**self.weights, **{n: taken.pop(n) for n in self.weights if n in taken}}
        output, scores = attention(
            taken.pop("query"),
            taken.pop("value"),
            **taken,
            score_mode=self.file.mode,  # pyright: ignore
            causal=self.file.layer.get("causal", False),
            compute="float64" if self.file.dtype == "float64" else "float32",
            **{name: weight.astype(np.float64) for name, weight in weights.items()},
        )
        if self.file.export.get("return_attention_scores"):
            return {"output": output, "attention_scores": scores}
        return {"output": output}


def make(name: str, folder: Path) -> Made:
    file = FILES[name]
    rng = np.random.default_rng(sorted(FILES).index(name))
    batch, queries, keys, dim, value_dim = file.sizes
    export, use_scale = file.export, file.layer.get("use_scale", file.mode == "additive")
    layer = make_layer(file.mode, **file.layer)
    kind = numpy_dtype(file.dtype)
    drawn = weights_for(file.mode, use_scale, dim, rng)
    if file.mode == "additive":
        layer.build(dim)
    if drawn:
        layer.set_weights(list(drawn.values()))
    weights: Arrays = dict(zip(drawn, layer.get_weights(), strict=True))
    path = layer.export(folder / f"{name}.onnx", **export)

    def floats(*shape: int) -> np.ndarray:
        return rng.uniform(-1, 1, shape).astype(kind)

    heads = (file.heads,) if file.heads else ()
    alone = {
        "query": floats(batch, *heads, queries, dim),
        "value": floats(batch, *heads, keys, value_dim),
        "key": floats(batch, *heads, keys, dim),
    }
    if not export.get("key", True):
        del alone["key"]
    given = dict(alone)
    masks = export.get("masks", "both")
    if masks in ("both", "query"):
        given["query_mask"] = np.arange(queries)[None] < rng.integers(0, queries, (batch, 1))
    if masks in ("both", "value"):
        given["value_mask"] = rng.random((batch, keys)) < 0.6
        given["value_mask"][0] = False  # as in Keras, all of its keys at one value lower
    if export.get("bias"):
        given["bias"] = floats(1, *heads, queries, keys)
    if export.get("scale") == "input":
        given |= {
            name: rng.uniform(-1.5, 1.5, weight.shape).astype(weight.dtype)
            for name, weight in weights.items()
        }
    if export.get("training"):
        given["training"] = np.array(False)
    return Made(path, file, weights, alone, given)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    folder = tmp_path_factory.mktemp("files")
    return {name: make(name, folder) for name in FILES}


class Consumer:
    """A program of this folder, built by its language's own tools."""

    def __init__(self, name: str) -> None:
        self.name = name

        class Program(LANGUAGES[name]):
            def sources(self) -> dict[str, Path]:
                found = [path for each in self.files for path in sorted((HERE / name).glob(each))]
                return {str(path.relative_to(HERE / name)): path for path in found}

        self._program: Any = Program()
        self._program.build(True, print)

    def run(self, *arguments: object, code: int = 0) -> str:
        """What it says on stderr; its exit code must be `code`."""
        done = subprocess.run(
            [*self._program.command, *map(str, arguments)],
            env=self._program.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert done.stdout == ""
        return done.stderr

    def outputs(self, model: Path, inputs: Arrays, folder: Path) -> Arrays:
        given, out = write(inputs, folder / "in"), folder / "out"
        out.mkdir(parents=True)
        assert self.run(model, given, out) == ""
        dtype = next(iter(inputs.values())).dtype
        return {path.stem: read(path, dtype) for path in sorted(out.glob("*.shape"))}

    def refusal(self, model: Path, inputs: Arrays, folder: Path) -> str:
        """The one line in which it refuses a call."""
        given, out = write(inputs, folder / "in"), folder / "out"
        out.mkdir(parents=True)
        told = self.run(model, given, out, code=1)
        assert re.fullmatch(r"error: \S.*\n", told), told
        assert not list(out.iterdir())
        return told


def write(inputs: Arrays, folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, array in inputs.items():
        (folder / f"{name}.shape").write_text(" ".join(map(str, array.shape)))
        (folder / f"{name}.bin").write_bytes(array.tobytes())
    return folder


def read(path: Path, dtype: np.dtype) -> np.ndarray:
    shape = [int(word) for word in path.read_text().split()]
    return np.frombuffer(path.with_suffix(".bin").read_bytes(), dtype).reshape(shape)


@pytest.fixture(scope="session", params=[pytest.param(name, marks=built) for name in LANGUAGES])
def consumer(request: pytest.FixtureRequest) -> Consumer:
    return Consumer(request.param)


def agree(got: Arrays, wanted: Arrays, dtype: str) -> None:
    assert sorted(got) == sorted(wanted)
    for name, array in wanted.items():
        assert got[name].shape == array.shape
        close(got[name], array, dtype)


@pytest.mark.parametrize("name", FILES)
def test_what_is_left_out_is_supplied(
    consumer: Consumer, files: dict[str, Made], name: str, tmp_path: Path
) -> None:
    made = files[name]
    if consumer.name == "go" and name == "float16_scalar":  # its binding has none of 16 bits
        assert "no scalar of type" in consumer.refusal(made.path, made.alone, tmp_path)
        return
    got = consumer.outputs(made.path, made.alone, tmp_path)
    agree(got, made.wanted(made.alone), made.file.dtype)


@pytest.mark.parametrize("name", FILES)
def test_what_is_given_is_used(
    consumer: Consumer, files: dict[str, Made], name: str, tmp_path: Path
) -> None:
    made = files[name]
    if consumer.name == "java" and made.file.export.get("inputs") == "optional":
        assert "no input" in consumer.refusal(made.path, made.given, tmp_path)
        return
    if consumer.name == "go" and name == "float16_scalar":
        assert "no scalar of type" in consumer.refusal(made.path, made.given, tmp_path)
        return
    got = consumer.outputs(made.path, made.given, tmp_path)
    agree(got, made.wanted(made.given), made.file.dtype)


def test_training_drops_weights(consumer: Consumer, files: dict[str, Made], tmp_path: Path) -> None:
    made, rate = files["training"], 0.25
    inputs = made.given | {"training": np.array(True)}
    got = consumer.outputs(made.path, inputs, tmp_path)
    weights = got["attention_scores"]
    kept = weights != 0
    whole = made.wanted(made.given)["attention_scores"] / (1 - rate)
    close(weights, np.where(kept, whole, 0), made.file.dtype)
    shown = whole > 1e-6  # smaller ones may be 0 without having been dropped
    assert abs(1 - kept[shown].mean() - rate) < 0.06  # six sigma of 1900 draws
    output = weights.astype(np.float64) @ inputs["value"]
    close(got["output"], np.where(inputs["query_mask"][..., None], output, 0), made.file.dtype)


def test_bad_input_is_refused_in_one_line(
    consumer: Consumer, files: dict[str, Made], tmp_path: Path
) -> None:
    made = files["heads"]

    def told(what: str, model: Path = made.path, **changed: np.ndarray) -> str:
        inputs = {name: array for name, array in (made.alone | changed).items() if array.size}
        return consumer.refusal(model, inputs, tmp_path / what)

    assert "nothing.onnx" in told("missing", tmp_path / "nothing.onnx")
    whole = made.path.read_bytes()
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        cut = tmp_path / f"cut_{length}.onnx"
        cut.write_bytes(whole[:length])
        told(cut.stem, cut)
    assert "key_and_value_must_have_the_same_length" in told("key", key=made.alone["key"][:, :, 1:])
    told("dim", key=made.alone["key"][..., 1:])
    told("batch", value=made.alone["value"][1:])
    told("mask", value_mask=made.given["value_mask"][:, 1:])
    told("bytes", query=made.alone["query"].astype(np.float64))
    told("bias", bias=made.given["bias"][..., 1:])
    told("fixed", files["fixed"].path)
    assert "query" in told("query", query=np.empty(0))
    assert "stranger" in told("stranger", stranger=np.zeros((1, 1), np.bool_))
    short = files["additive_input"]
    inputs = short.alone | {"scale": short.weights["scale"][1:]}
    told_scale = consumer.refusal(short.path, inputs, tmp_path / "scale")
    assert "scale_query_and_key_must_have_the_same_dim" in told_scale
    (tmp_path / "no_bytes").mkdir()
    given = write(made.alone, tmp_path / "no_bytes/in")
    (given / "value.bin").unlink()
    assert re.fullmatch(
        r"error: .*value\.bin.*\n", consumer.run(made.path, given, tmp_path, code=1)
    )
    assert "usage: " in consumer.run(made.path, code=1)


@pytest.mark.parametrize("name", FILES)
def test_the_table_of_the_page_is_what_a_file_has(files: dict[str, Made], name: str) -> None:
    row = r"^\| `(\w+)` \| (?:input|output|initializer|as)[^|]*\| ([^|]*) \| [^|]* \|$"
    table = dict(re.findall(row, PAGE.read_text(), re.MULTILINE))
    assert len(table) == 11
    file, graph = files[name].file, onnx.load_model(files[name].path).graph
    tensors = {value.name: value.type.tensor_type for value in (*graph.input, *graph.output)}
    assert list(tensors) == [name for name in table if name in tensors]
    for name, tensor in tensors.items():
        listed = [dims.split(", ") for dims in re.findall(r"`\[(\w[^]]*)\]`", table[name])]
        other = (name == "value" and "key" not in tensors) or (name == "bias" and file.heads > 0)
        dims = listed[other] if listed else []
        if name == "scale" and file.mode != "additive":
            dims = []
        if file.heads and dims[:1] == ["batch"]:
            dims.insert(1, "heads")
        fixed = file.export.get("dims", {})
        found = [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]
        assert found == [fixed.get(dim, dim) for dim in dims], name
        weight = name in ("scale", "concat_score_weight")
        kind = "float32" if weight and file.policy != file.dtype else file.dtype
        kind = "bool" if table[name].startswith("bool") else kind
        assert onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type) == numpy_dtype(kind), name


def test_the_pins_are_those_of_the_examples() -> None:
    for pin, file in (
        (r'^ort = \{ version = "(\S+)"', "rust/Cargo.toml"),
        (r"^require github.com/yalue/onnxruntime_go (\S+)$", "go/go.mod"),
        (r"<artifactId>onnxruntime</artifactId>\s*<version>(\S+)</version>", "java/pom.xml"),
    ):
        found = [re.findall(pin, (r / file).read_text(), re.MULTILINE) for r in (HERE, EXAMPLES)]
        assert found[0] == found[1] != []
