"""Saved models of every Keras generation: their attention layers, with weights, calls, numbers."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from onnx_attn import AttentionSession, InputError, ModelError, OnnxAttnError
from onnx_attn.keras import (
    describe_layers,
    export_from_keras,
    load_layer,
    load_layers,
    split_spec,
)

FILES = Path(__file__).parent / "files"
GOLDEN = FILES / "golden"

with tarfile.open(FILES / "saved.tar.xz") as archive:
    MEMBERS = sorted(archive.getnames())
MODELS = [name.removesuffix("_io.npz") for name in MEMBERS if name.endswith("_io.npz")]
FORMATS = [".keras", ".h5", ".weights.h5"]

TOLERANCES = {
    "float32": {"rtol": 1e-5, "atol": 2e-6},
    "float64": {"rtol": 1e-5, "atol": 2e-6},  # written down in float32
    "float16": {"rtol": 2e-3, "atol": 2e-3},
    "mixed_float16": {"rtol": 2e-3, "atol": 2e-3},
    "bfloat16": {"rtol": 1.6e-2, "atol": 1.6e-2},
    "mixed_bfloat16": {"rtol": 1.6e-2, "atol": 1.6e-2},
}


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    with tarfile.open(FILES / "saved.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def load(folder: Path, model: str, extension: str) -> dict[str, Any]:
    config = folder / f"{model}.json" if extension == ".weights.h5" else None
    return load_layers(folder / f"{model}{extension}", config=config)


def facts(folder: Path, model: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """How each layer was called, and the arrays by name."""
    with np.load(folder / f"{model}_io.npz") as stored:
        arrays = {name.replace("!", "/"): stored[name] for name in stored.files}
    return json.loads(str(arrays.pop("calls"))), arrays


def weights_of(arrays: dict[str, np.ndarray], path: str) -> list[np.ndarray]:
    names = [f"weights.{path}.{name}" for name in ("scale", "concat_score_weight")]
    return [arrays[name] for name in names if name in arrays]


# -- every file of every generation ------------------------------------------------------------


def test_the_files_are_of_all_three_generations() -> None:
    writers = {name.split("_")[0] for name in MEMBERS if not name.startswith("tf_keras")}
    assert {"tf2.7.4", "tf2.10.1", "tf2.12.1", "tf2.15.1", "keras3.0.5", "keras3.15.1"} <= writers
    assert "tf_keras2.21.0_family.keras" in MEMBERS
    assert len(MODELS) > 80


@pytest.mark.parametrize("model", MODELS)
def test_weights_are_found_by_the_files_own_rules(saved: Path, model: str) -> None:
    calls, arrays = facts(saved, model)
    present = [extension for extension in FORMATS if f"{model}{extension}" in MEMBERS]
    assert present
    for extension in present:
        layers = load(saved, model, extension)
        expected = set(calls)
        if extension != ".keras" and "telling/told" not in layers:
            # In most .h5 files this layer's weight bears its owner's name, of an unknown class.
            expected -= {"telling/told"}
        assert set(layers) == expected
        for path, layer in layers.items():
            wanted = weights_of(arrays, path)
            dtype = layer.get_config()["dtype"].removeprefix("mixed_")
            for weight, value in zip(layer.get_weights(), wanted, strict=True):
                np.testing.assert_allclose(weight.astype("f4"), value, rtol=1e-2)
                assert weight.dtype.name in (dtype, "float32")


@pytest.mark.parametrize("model", MODELS)
def test_outputs_are_those_of_the_saved_model(saved: Path, model: str) -> None:
    calls, arrays = facts(saved, model)
    extension = next(extension for extension in FORMATS if f"{model}{extension}" in MEMBERS)
    for path, layer in load(saved, model, extension).items():
        if path not in calls:
            assert path == "telling/told"
            continue
        call = calls[path]
        masks = call["masks"] and [None if name is None else arrays[name] for name in call["masks"]]
        output, scores = layer(
            [arrays[name] for name in call["inputs"]], mask=masks, return_attention_scores=True
        )
        assert layer.get_config()["causal"] == call["causal"]
        tolerance = TOLERANCES[layer.get_config()["dtype"]]
        np.testing.assert_allclose(output.astype("f4"), arrays[f"output.{path}"], **tolerance)
        np.testing.assert_allclose(scores.astype("f4"), arrays[f"scores.{path}"], **tolerance)


def test_golden_files() -> None:
    for name, count in (("keras3151.keras", 3), ("tf274.h5", 2)):
        layers = load_layers(GOLDEN / name)
        assert len(layers) == count
        with np.load(GOLDEN / f"{name.split('.')[0]}_io.npz") as stored:
            arrays = dict(stored)
        for path, layer in layers.items():
            names = [key for key in arrays if key.startswith(f"w_{path}.")]
            for weight, key in zip(layer.get_weights(), names, strict=True):
                np.testing.assert_array_equal(weight, arrays[key])
        my_att = layers["my_att"]
        masks = [None, arrays["vm"]]
        tolerance = TOLERANCES["float32"]
        output, scores = my_att(
            [arrays["q"], arrays["v"]], mask=masks, return_attention_scores=True
        )
        np.testing.assert_allclose(output, arrays["out_0"], **tolerance)
        np.testing.assert_allclose(scores, arrays["out_1"], **tolerance)
        last = arrays["out_0"]
        for path, key in zip(list(layers)[1:], ("out_2", "out_3"), strict=False):
            last = layers[path]([last, arrays["v"]])
            np.testing.assert_allclose(last, arrays[key], **tolerance)


# -- what the saved model's calls say ----------------------------------------------------------


def defaults(layer: Any) -> tuple[bool, str, bool]:
    given = layer.export_defaults
    return given["key"], given["masks"], given["return_attention_scores"]


@pytest.mark.parametrize("writer", ["tf2.7.4", "tf2.12.1", "tf_keras2.21.0", "keras3.15.1"])
@pytest.mark.parametrize("extension", FORMATS)
def test_calls_become_export_defaults(saved: Path, writer: str, extension: str) -> None:
    if f"{writer}_family{extension}" not in MEMBERS:
        assert (writer, extension) == ("tf2.7.4", ".keras")
        extension = ".h5"
    family = load(saved, f"{writer}_family", extension)
    assert defaults(family["zulu"]) == (False, "none", False)
    assert defaults(family["causal_scaled"]) == (False, "value", False)
    assert defaults(family["bahdanau"]) == (True, "both", False)
    assert defaults(family["additive_plain"]) == (False, "query", False)
    assert defaults(family["scored"]) == (False, "none", True)
    masking = load(saved, f"{writer}_masking", extension)
    assert defaults(masking["both"]) == (False, "both", False)
    assert defaults(masking["value_only"]) == (False, "value", False)
    nested = load(saved, f"{writer}_nested", extension)
    assert defaults(nested["twice"]) == (True, "both", False)  # what any of its calls needs
    assert defaults(nested["outer/add"])[1] == "both"  # a mask may come in from outside
    if writer == "keras3.15.1":  # Keras 2 mixes up the calls of a layer that two models share
        assert defaults(load(saved, f"{writer}_shared", extension)["common"])[1] == "none"


def test_export_takes_the_defaults_and_options_win(tmp_path: Path) -> None:
    layer = load_layers(GOLDEN / "keras3151.keras")["my_att"]
    session = AttentionSession(layer.export(tmp_path / "a.onnx"))
    assert list(session.inputs) == ["query", "value", "value_mask"]
    assert list(session.outputs) == ["output", "attention_scores"]
    path = layer.export(tmp_path / "b.onnx", masks="none", return_attention_scores=False, key=True)
    session = AttentionSession(path)
    assert list(session.inputs) == ["query", "value", "key"]
    assert list(session.outputs) == ["output"]


def keras_3_model(*layers: dict[str, Any]) -> dict[str, Any]:
    inputs = [
        {"module": "keras.layers", "class_name": "InputLayer", "config": {"name": name}}
        for name in ("q", "v", "m")
    ]
    return {
        "module": "keras",
        "class_name": "Functional",
        "config": {"name": "model", "layers": [*inputs, *layers], "input_layers": []},
    }


def tensor(name: str) -> dict[str, Any]:
    return {"class_name": "__keras_tensor__", "config": {"keras_history": [name, 0, 0]}}


def attention(
    name: str = "att", *calls: dict[str, Any], use_scale: bool = False, **config: Any
) -> dict[str, Any]:
    return {
        "module": "keras.layers",
        "class_name": "Attention",
        "config": {"name": name, "use_scale": use_scale, **config},
        "inbound_nodes": list(calls),
    }


def call(*more: Any, sources: str = "qv", **kwargs: Any) -> dict[str, Any]:
    return {"args": [[tensor(name) for name in sources], *more], "kwargs": kwargs}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file of weights for one scaled attention layer."""
    with h5py.File(tmp_path / "one.weights.h5", "w") as file:
        file["layers/attention/vars/0"] = np.float32(0.5)
    return tmp_path / "one.weights.h5"


def only(weights: Path, model: dict[str, Any]) -> Any:
    (layer,) = load_layers(weights, config=model).values()
    return layer


def test_a_call_with_positional_arguments(weights: Path) -> None:
    layer = only(weights, keras_3_model(attention("a", call([None, tensor("m")], False, True))))
    assert defaults(layer) == (False, "value", True)


def test_calls_that_disagree(weights: Path) -> None:
    calls = (call(use_causal_mask=True), call(sources="qvv", return_attention_scores=True))
    with pytest.warns(UserWarning, match="both with and without use_causal_mask"):
        layer = only(weights, keras_3_model(attention("a", *calls)))
    assert layer.get_config()["causal"] is False
    assert defaults(layer) == (True, "none", True)
    layer = only(weights, keras_3_model(attention("a", calls[0], calls[0])))
    assert layer.get_config()["causal"] is True


@pytest.mark.parametrize(
    ("maker", "masks"),
    [
        ({"class_name": "Embedding", "config": {"mask_zero": False}}, "none"),
        ({"class_name": "Embedding", "config": {"mask_zero": True}}, "query"),
        ({"class_name": "Masking", "config": {}}, "query"),
        ({"class_name": "Lambda", "config": {}}, "query"),
        ({"class_name": "Mine", "config": {}, "module": "mine"}, "query"),
        ({"class_name": "Mine", "config": {}, "module": None}, "query"),
    ],
)
def test_masks_that_no_call_names(weights: Path, maker: dict[str, Any], masks: str) -> None:
    def between(name: str, source: str) -> dict[str, Any]:
        node = {"args": [tensor(source)], "kwargs": {}}
        return {"module": "keras.layers", "class_name": "Dense", "config": {"name": name}} | {
            "inbound_nodes": [node]
        }

    maker = {"module": "keras.layers", **maker}
    maker["config"] = maker["config"] | {"name": "maker"}
    maker["inbound_nodes"] = [{"args": [tensor("q")], "kwargs": {}}]
    model = keras_3_model(
        maker, between("dense", "maker"), attention("a", call(sources=["dense", "v"]))
    )
    assert defaults(only(weights, model))[1] == masks


def test_a_layer_without_calls_keeps_the_plain_defaults(weights: Path) -> None:
    sequential = {"module": "keras", "class_name": "Sequential"}
    layer = only(weights, sequential | {"config": {"layers": [attention("a", use_scale=True)]}})
    assert layer.export_defaults == {}
    assert layer.get_weights() == [np.float32(0.5)]


# -- ways to give the configuration ------------------------------------------------------------


def test_configuration_of_weights(saved: Path) -> None:
    weights = saved / "keras3.15.1_family.weights.h5"
    text = (saved / "keras3.15.1_family.json").read_text()
    wanted = load_layers(weights, config=saved / "keras3.15.1_family.json")
    as_tuples = json.loads(text)["config"] | {"input_layers": ("query", 0, 0)}
    for config in (
        text,
        json.loads(text),
        as_tuples,
        str(saved / "keras3.15.1_family.json"),
        saved / "keras3.15.1_family.keras",
        saved / "keras3.15.1_family.h5",
    ):
        layers = load_layers(weights, config=config)
        assert {path: repr(layer) for path, layer in layers.items()} == {
            path: repr(layer) for path, layer in wanted.items()
        }
    with pytest.raises(InputError, match="without the model's configuration"):
        load_layers(weights)
    with pytest.raises(InputError, match="holds its own configuration"):
        load_layers(saved / "keras3.15.1_family.keras", config=text)
    for config in (3, {"class_name": object(), "config": {}}, [1]):
        with pytest.raises(InputError, match="config must"):
            load_layers(weights, config=config)
    for config in ("{", '{"a": 1}', '{"class_name": "Model", "config": 4}', {}, "nowhere.json"):
        with pytest.raises(ModelError, match=r"no JSON|no configuration|does not exist"):
            load_layers(weights, config=config)
    with pytest.raises(ModelError, match="holds no configuration"):
        load_layers(weights, config=weights)


def test_hdf5_is_known_by_its_bytes(saved: Path, tmp_path: Path) -> None:
    odd = tmp_path / "old.keras"
    odd.write_bytes((saved / "tf2.7.4_family.h5").read_bytes())
    assert set(load_layers(odd)) == set(load_layers(saved / "tf2.7.4_family.h5"))
    odd = tmp_path / "new.h5"
    odd.write_bytes((saved / "keras3.5.0_family.keras").read_bytes())
    assert set(load_layers(odd)) == set(load_layers(saved / "keras3.5.0_family.keras"))


# -- the command line's part -------------------------------------------------------------------


def test_model_and_layer_in_one_word(tmp_path: Path) -> None:
    odd = tmp_path / "a:b.keras"
    odd.touch()
    (tmp_path / "m.keras").touch()
    assert split_spec(str(odd)) == (odd, None)
    assert split_spec(f"{odd}:c") == (odd, "c")
    assert split_spec(f"{odd}:c:d") == (odd, "c:d")
    assert split_spec(f"{tmp_path / 'm.keras'}:outer/att") == (tmp_path / "m.keras", "outer/att")
    for spec in ("C:\\models\\m.keras", "nowhere.keras:att", "x" * 5000, "a\0b:c"):
        with pytest.raises(ModelError, match="no such file"):
            split_spec(spec)
    with pytest.raises(InputError, match="expected a layer's name"):
        split_spec(f"{odd}:")


def test_one_layer_of_a_model(saved: Path, tmp_path: Path) -> None:
    model = str(saved / "keras3.15.1_nested.keras")
    assert load_layer(f"{model}:outer/inner/inner_att").name == "inner_att"
    assert load_layer(f"{model}:bit_att").name == "bit_att"
    assert load_layer(f"{model}:att").name == "att"
    with pytest.raises(
        InputError, match=r"has 7 attention layers.*Layers: .*outer/inner/inner_att"
    ):
        load_layer(model)
    with pytest.raises(InputError, match=r"no attention layer is called 'nowhere'.*Layers: twice"):
        load_layer(f"{model}:nowhere")
    path = export_from_keras(f"{model}:outer/inner/inner_att", tmp_path / "a.onnx", masks="none")
    session = AttentionSession(path)
    assert session.config["causal"] is True
    assert list(session.inputs) == ["query", "value"]


def test_rows_for_inspect(saved: Path) -> None:
    rows = describe_layers(saved / "keras3.15.1_family.keras")
    assert json.loads(json.dumps(rows)) == rows
    row = {row["layer"]: row for row in rows}["alpha"]
    assert row["class"] == "Attention"
    assert row["config"]["score_mode"] == "concat"
    assert set(row["weights"]) == {"scale", "concat_score_weight"}
    assert row["export_defaults"]["masks"] == "both"
    assert row["calls"] == 1


# -- nothing heavy is imported, nothing in a file is executed -----------------------------------

CHECK = """
import sys, onnx_attn.keras
from onnx_attn.keras import load_layers
layers = load_layers({path!r})
for layer in layers.values():
    layer.to_onnx()
{more}
heavy = sorted({{"tensorflow", "tf_keras", "keras", "torch", "jax"}} & set(sys.modules))
sys.exit(f"imported {{heavy}}" if heavy else 0)
"""


def run_check(path: Path, more: str = "") -> subprocess.CompletedProcess[str]:
    code = CHECK.format(path=str(path), more=more)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_loading_imports_no_framework() -> None:
    for name in ("keras3151.keras", "tf274.h5"):
        done = run_check(GOLDEN / name)
        assert done.returncode == 0, done.stderr


def test_the_import_test_can_fail(tmp_path: Path) -> None:
    (tmp_path / "torch.py").touch()
    done = run_check(GOLDEN / "tf274.h5", f"sys.path.insert(0, {str(tmp_path)!r}); import torch")
    assert done.returncode == 1
    assert "imported ['torch']" in done.stderr


def test_nothing_in_a_file_is_imported_or_run(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evil_module.py").write_text("raise SystemExit('executed')")
    monkeypatch.syspath_prepend(tmp_path)
    evil = {"class_name": "Evil", "module": "evil_module", "config": {"name": "evil"}}
    lambda_code = {
        "class_name": "__lambda__",
        "config": {"code": "aW1wb3J0IGV2aWxfbW9kdWxl", "defaults": None, "closure": None},
    }
    model = keras_3_model(
        evil,
        {
            "class_name": "Lambda",
            "module": "keras.layers",
            "config": {"name": "l", "function": lambda_code},
        },
        attention("a", use_scale=True, call=None) | {"registered_name": "evil_module>Attention"},
    )
    model["config"]["layers"][-1]["config"].pop("call")
    assert only(weights, model).get_weights() == [np.float32(0.5)]
    assert "evil_module" not in sys.modules


def test_without_h5py(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(OnnxAttnError, match=r"needs h5py: pip install 'onnx_attn\[keras\]'"):
        load_layers(GOLDEN / "tf274.h5")


# -- bad input ---------------------------------------------------------------------------------


def rewrite(path: Path, target: Path, **members: bytes) -> Path:
    """A copy of a .keras archive with members replaced, compressed."""
    names = {"config": "config.json", "weights": "model.weights.h5"}
    replaced = {names[key]: data for key, data in members.items()}
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, replaced.get(name, old.read(name)))
    return target


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("nothing.keras", None, "does not exist"),
        ("empty.keras", b"", "no saved Keras model"),
        ("text.h5", b"hello, world", "no saved Keras model"),
        ("short.h5", b"\x89HDF", "damaged"),
        ("magic.h5", b"\x89HDF\r\n\x1a\n" + bytes(100), "damaged"),
        ("magic.keras", b"PK\x03\x04" + bytes(100), "damaged"),
    ],
)
def test_what_is_no_saved_model(
    tmp_path: Path, name: str, data: bytes | None, message: str
) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(ModelError, match=message):
        load_layers(tmp_path / name)


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is a folder: save the model as one file"):
        load_layers(tmp_path)


def test_truncated_files(saved: Path, tmp_path: Path) -> None:
    for name in ("keras3.15.1_family.keras", "tf2.7.4_family.h5", "keras3.15.1_nested.h5"):
        data = (saved / name).read_bytes()
        for part in (10, 100, len(data) // 4, len(data) // 2, len(data) - 100, len(data) - 1):
            (tmp_path / name).write_bytes(data[:part])
            with pytest.raises(ModelError, match=name):
                load_layers(tmp_path / name)


def test_an_archive_without_its_parts(tmp_path: Path) -> None:
    for missing in ("config.json", "model.weights.h5"):
        with zipfile.ZipFile(tmp_path / "m.keras", "w") as file:
            for name in {"config.json", "model.weights.h5"} - {missing}:
                file.writestr(name, "{}")
        with pytest.raises(ModelError, match=f"has no {missing}"):
            load_layers(tmp_path / "m.keras")


def test_zip_bombs(tmp_path: Path) -> None:
    model = GOLDEN / "keras3151.keras"
    bomb = rewrite(model, tmp_path / "a.keras", config=b" " * (40 << 20))
    with pytest.raises(ModelError, match="over 32 MiB: refused"):
        load_layers(bomb)
    # An archive that lies about a size is cut there, and the checksum tells.
    data = bytearray(rewrite(model, tmp_path / "c.keras").read_bytes())
    with zipfile.ZipFile(tmp_path / "c.keras") as file:
        size = file.getinfo("model.weights.h5").file_size
    at = data.rindex(size.to_bytes(4, "little"))
    data[at : at + 4] = (1000).to_bytes(4, "little")
    (tmp_path / "c.keras").write_bytes(data)
    with pytest.raises(ModelError, match="the archive cannot be read"):
        load_layers(tmp_path / "c.keras")


def test_a_compressed_archive_is_read(tmp_path: Path) -> None:
    path = rewrite(GOLDEN / "keras3151.keras", tmp_path / "small.keras")
    assert load_layers(path)["my_att"].get_weights() == [np.float32(0.25)]


SCALED = keras_3_model(attention("att", call(), use_scale=True))
ADDITIVE = keras_3_model(
    attention("att", call(), use_scale=True) | {"class_name": "AdditiveAttention"}
)


def with_weights(tmp_path: Path, fill: Callable[[Any], None], layer: str = "attention") -> Path:
    path = tmp_path / "bad.weights.h5"
    with h5py.File(path, "w") as file:
        fill(file.create_group(f"layers/{layer}/vars"))
    return path


def put(value: Any) -> Callable[[Any], None]:
    def fill(group: Any) -> None:
        group["0"] = value

    return fill


def test_weights_of_the_wrong_shape(tmp_path: Path) -> None:
    for value in (np.ones(3, "f4"), np.ones((1, 1), "f4")):
        with pytest.raises(ModelError, match=r"scale of layer 'att' should be a scalar.*\[1|3"):
            load_layers(with_weights(tmp_path, put(value)), config=SCALED)
    for value in (np.float32(1), np.ones((2, 2), "f4")):
        path = with_weights(tmp_path, put(value), "additive_attention")
        with pytest.raises(ModelError, match="scale of layer 'att' should be a vector"):
            load_layers(path, config=ADDITIVE)
    for value in (np.int32(1), "text", np.complex64(1)):
        with pytest.raises(ModelError, match="weight att/scale should be floating point"):
            load_layers(with_weights(tmp_path, put(value)), config=SCALED)


def test_weights_missing_or_too_many(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"the file holds 0\. Was the model saved before"):
        load_layers(with_weights(tmp_path, lambda _: None), config=SCALED)
    with pytest.raises(ModelError, match="holds no weights for it"):
        load_layers(with_weights(tmp_path, put(np.float32(1)), "attention_1"), config=SCALED)

    def two(group: Any) -> None:
        group["0"] = group["1"] = np.float32(1)

    with pytest.raises(ModelError, match=r"should have 1 weights \(scale\); the file holds 2"):
        load_layers(with_weights(tmp_path, two), config=SCALED)

    def misnamed(group: Any) -> None:
        group["7"] = np.float32(1)

    with pytest.raises(ModelError, match="weight att/scale is no array"):
        load_layers(with_weights(tmp_path, misnamed), config=SCALED)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["numbers"] = np.ones(3)
    with pytest.raises(ModelError, match="holds no Keras weights"):
        load_layers(tmp_path / "other.h5", config=SCALED)


def test_reads_of_hdf5_are_bounded_and_stay_inside_the_file(tmp_path: Path) -> None:
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["0"] = np.float32(42)
    (tmp_path / "raw").write_bytes(bytes(4))

    def huge(group: Any) -> None:
        group.create_dataset("0", (1 << 40,), "f4", chunks=(1 << 20,), compression="gzip")

    def huge_chunk(group: Any) -> None:
        group.create_dataset("0", (1,), "f4", maxshape=(None,), chunks=(1 << 28,))

    def external_link(group: Any) -> None:
        group["0"] = h5py.ExternalLink(str(secret), "/0")

    def soft_link(group: Any) -> None:
        group["x"] = np.float32(1)
        group.file["y"] = h5py.SoftLink(group.name + "/x")
        del group["x"]
        group["0"] = h5py.SoftLink("/y")

    def external_data(group: Any) -> None:
        group.create_dataset("0", (1,), "f4", external=[(str(tmp_path / "raw"), 0, 4)])

    def virtual(group: Any) -> None:
        layout = h5py.VirtualLayout((1,), "f4")
        layout[0] = h5py.VirtualSource(str(secret), "0", shape=())
        group.create_virtual_dataset("0", layout)

    def nothing(group: Any) -> None:
        group["0"] = h5py.Empty("f4")

    for fill, message in (
        (huge, "should be a scalar or one number per feature"),
        (huge_chunk, "should be a scalar or one number per feature"),
        (external_link, "is a link"),
        (soft_link, "is a link"),
        (external_data, "kept outside the file"),
        (virtual, "kept outside the file"),
        (nothing, "is no array"),
    ):
        with pytest.raises(ModelError, match=message):
            load_layers(with_weights(tmp_path, fill), config=SCALED)


def test_a_text_heap_that_hdf5_would_walk_for_ever(saved: Path, tmp_path: Path) -> None:
    data = bytearray((saved / "tf2.7.4_family.h5").read_bytes())
    heap = data.rindex(b"GCOL", 0, data.index(b'{"class_name"'))
    data[heap + 16 : heap + 32] = bytes(16)  # an object that takes no room
    path = tmp_path / "endless.h5"
    path.write_bytes(data)
    code = f"from onnx_attn.keras import load_layers; load_layers({str(path)!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert "ModelError" in done.stderr
    assert "a text in it cannot be read" in done.stderr


def named_weights(path: Path, fill: Callable[[Any], None]) -> Path:
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = ["outer"]
        fill(file.create_group("outer"))
    return path


def test_names_in_h5_files(tmp_path: Path) -> None:
    def model(*names: str) -> dict[str, Any]:
        made = keras_3_model(attention("att", call(), use_scale=True))
        for name in reversed(names):
            made["config"]["name"] = name
            made["config"]["input_layers"] = []
            made = keras_3_model(made)
        return made

    path = tmp_path / "named.weights.h5"
    named_weights(path, lambda group: group.update({"att/scale:0": np.float32(3)}))
    (layer,) = load_layers(path, config=model("outer")).values()
    assert layer.get_weights() == [3]
    two = {"a/att/scale:0": np.float32(1), "b/att/scale:0": np.float32(2)}
    named_weights(path, lambda group: group.update(two))
    with pytest.raises(
        ModelError, match=r"2 weights called scale could belong to layer 'outer/att'"
    ):
        load_layers(path, config=model("outer"))
    (layer,) = load_layers(path, config=model("outer", "b")).values()
    assert layer.get_weights() == [2]

    def circle(group: Any) -> None:
        group["self"] = group
        group["again"] = group

    with pytest.raises(ModelError, match="its groups never end"):
        load_layers(named_weights(path, circle), config=model("outer"))


def test_configurations_that_make_no_sense(weights: Path) -> None:
    no_attention = keras_3_model({"class_name": "Dense", "config": {}, "module": "keras.layers"})
    with pytest.raises(ModelError, match="has no Attention or AdditiveAttention layer"):
        load_layers(weights, config=no_attention)
    twice = keras_3_model(attention("att"), attention("att"))
    with pytest.raises(ModelError, match="two attention layers are called 'att'"):
        load_layers(weights, config=twice)
    for config in ({"dropout": 2.0}, {"score_mode": "cosine"}, {"dtype": "int8"}, {"future": 1}):
        with pytest.raises(ModelError, match="layer 'att'"):
            load_layers(weights, config=keras_3_model(attention("att", **config)))
    for nodes in ([3], ["x"], [{}], [{"args": [], "kwargs": {}}], [{"args": 1, "kwargs": 2}], 7):
        model = keras_3_model(attention("att") | {"inbound_nodes": nodes})
        with pytest.raises(ModelError, match="the configuration of layer 'att' is damaged"):
            load_layers(weights, config=model)
    deep: Any = {"class_name": "Functional", "config": {"layers": []}}
    for _ in range(300):
        deep = {"class_name": "Functional", "config": {"layers": [deep]}}
    with pytest.raises(ModelError):
        load_layers(weights, config=deep)
    with pytest.raises(ModelError, match="damaged"):
        load_layers(weights, config='{"a":' + "[" * 100_000)


def test_a_users_own_attention_class_counts_but_is_not_ours(tmp_path: Path) -> None:
    own = {"class_name": "Attention", "module": None, "registered_name": "Attention"}
    own["config"] = {"name": "mine", "use_scale": True}  # type: ignore[assignment]
    with h5py.File(tmp_path / "x.weights.h5", "w") as file:
        file["layers/attention/vars/0"] = np.float32(1)
        file["layers/attention_1/vars/0"] = np.float32(2)
    model = keras_3_model(own, attention("theirs", use_scale=True))
    layers = load_layers(tmp_path / "x.weights.h5", config=model)
    assert [layer.get_weights() for layer in layers.values()] == [[2]]


# -- damage of any kind ------------------------------------------------------------------------


def damaged(data: bytes, flips: list[tuple[int, int]], cut: int | None) -> bytes:
    changed = bytearray(data)
    for at, bit in flips:
        changed[at % len(data)] ^= 1 << bit
    return bytes(changed[: None if cut is None else cut % len(data)])


FLIPS = st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 7)), min_size=1, max_size=8)
CUTS = st.none() | st.integers(0, 1 << 20)
SETTINGS = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def outcome(path: Path, config: Path | None = None) -> list[Any] | None:
    try:
        rows = describe_layers(path, config=config)
    except (ModelError, InputError):
        return None
    return rows


@SETTINGS
@given(flips=FLIPS, cut=CUTS)
@example(flips=[(4, 0)], cut=None)
def test_a_damaged_archive_is_refused_or_read_right(
    saved: Path, tmp_path: Path, flips: list[tuple[int, int]], cut: int | None
) -> None:
    whole = saved / "keras3.15.1_masking.keras"
    path = tmp_path / "damaged.keras"
    path.write_bytes(damaged(whole.read_bytes(), flips, cut))
    assert outcome(path) in (None, outcome(whole))


@pytest.mark.filterwarnings("ignore:.*use_causal_mask:UserWarning")
@SETTINGS
@given(
    name=st.sampled_from(["tf2.7.4_family.h5", "tf2.12.1_nested.weights.h5"]), flips=FLIPS, cut=CUTS
)
def test_damaged_hdf5_raises_nothing_else(
    saved: Path, tmp_path: Path, name: str, flips: list[tuple[int, int]], cut: int | None
) -> None:
    path = tmp_path / "damaged.h5"
    path.write_bytes(damaged((saved / name).read_bytes(), flips, cut))
    config = saved / "tf2.12.1_nested.json" if "weights" in name else None
    rows = outcome(path, config)
    assert rows is None or all(row["class"] in ("Attention", "AdditiveAttention") for row in rows)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


def replaced(value: Any, at: int, new: Any) -> tuple[Any, int]:
    """`value` with its `at`-th node (depth first) replaced; and how many nodes were passed."""
    if at == 0:
        return new, 1
    seen = 1
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        changed = dict(value) if isinstance(value, dict) else list(value)
        for key, item in items:
            changed[key], passed = replaced(item, at - seen, new) if at >= seen else (item, 0)
            seen += passed
        return changed, seen
    return value, seen


@pytest.mark.filterwarnings("ignore:.*use_causal_mask:UserWarning")
@SETTINGS
@given(
    name=st.sampled_from(["keras3.15.1_nested", "tf2.7.4_nested", "tf2.12.1_shared"]),
    at=st.integers(0, 1200),
    new=JSON,
)
def test_a_damaged_configuration_raises_nothing_else(
    saved: Path, name: str, at: int, new: Any
) -> None:
    config, _ = replaced(json.loads((saved / f"{name}.json").read_text()), at, new)
    with contextlib.suppress(OnnxAttnError):
        load_layers(saved / f"{name}.weights.h5", config=json.dumps(config))


@pytest.mark.soak
@pytest.mark.parametrize(
    "name", ["tf2.7.4_family.h5", "keras3.15.1_masking.h5", "tf2.12.1_custom.keras"]
)
def test_damage_by_thousands_in_a_child_process(saved: Path, tmp_path: Path, name: str) -> None:
    """What HDF5 does to a whole process, a crash or an endless loop, shows only from outside."""
    code = """
import random, sys, warnings
from pathlib import Path
from onnx_attn import OnnxAttnError
from onnx_attn.keras import describe_layers
warnings.simplefilter("ignore")
data, target = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2])
for seed in range(5000):
    draw = random.Random(seed)
    changed = bytearray(data)
    for _ in range(draw.choice([1, 1, 1, 2, 8, 50])):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    target.write_bytes(changed if draw.random() < 0.9 else changed[: draw.randrange(len(data))])
    try:
        describe_layers(target)
    except OnnxAttnError:
        pass
print("done")
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(saved / name), str(tmp_path / "damaged")],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.stdout == "done\n", (done.returncode, done.stderr[-2000:])
