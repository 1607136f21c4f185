"""The command line: what a user types, sees and gets when it goes wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from onnx_attn import AdditiveAttention, Attention
from onnx_attn.cli import load_commands
from onnx_attn.reference import attention

COMMANDS = ("export", "run", "inspect", "verify", "bench", "doctor", "demo")


def onnx_attn(*arguments: object) -> Any:
    return CliRunner().invoke(load_commands(), [str(argument) for argument in arguments])


def text_of(result: Any) -> str:
    return " ".join((result.stdout + result.stderr).split())


@pytest.fixture
def feeds(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    arrays = {
        "query": rng.standard_normal((2, 3, 4)).astype(np.float32),
        "value": rng.standard_normal((2, 5, 4)).astype(np.float32),
        "value_mask": np.arange(5)[None] < np.array([[5], [2]]),
    }
    np.savez(tmp_path / "inputs.npz", **arrays)
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    return tmp_path / "inputs.npz", arrays


def test_help_shows_examples_for_every_command() -> None:
    listed = text_of(onnx_attn("--help"))
    for name in COMMANDS:
        assert name in listed
        shown = text_of(onnx_attn(name, "--help"))
        assert "Examples" in shown
        assert f"$ onnx-attn {name}" in shown


def test_export_takes_every_option_of_layer_and_file(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    result = onnx_attn(
        *("export", path, "--use-scale", "--scale-value", "0.125", "--score-mode", "concat"),
        *("--concat-score-weight-value", "-2", "--causal", "--dropout", "0.5", "--seed", "3"),
        *("--dtype", "float64", "--name", "decoder", "--no-key", "--masks", "value"),
        *("--inputs", "optional", "--scale", "input", "--return-attention-scores", "--training"),
        *("--schedule", "dense", "--opset", "19", "--dims", "batch=2,dim=8"),
        *("--heads", "--bias"),
    )
    assert result.exit_code == 0, text_of(result)
    layer = Attention.load(path)
    assert layer.get_config() == {
        "use_scale": True,
        "score_mode": "concat",
        "causal": True,
        "dropout": 0.5,
        "seed": 3,
        "dtype": "float64",
        "name": "decoder",
    }
    assert [weight.item() for weight in layer.get_weights()] == [0.125, -2.0]
    assert layer.export_defaults == {
        "key": False,
        "masks": "value",
        "inputs": "optional",
        "scale": "input",
        "return_attention_scores": True,
        "training": True,
        "schedule": "dense",
        "opset": 19,
        "dims": {"batch": 2, "dim": 8},
        "heads": True,
        "bias": True,
    }


def test_export_writes_the_bytes_of_the_library(tmp_path: Path) -> None:
    onnx_attn("export", tmp_path / "cli.onnx", "--scores")
    ours = Attention().export(tmp_path / "api.onnx", return_attention_scores=True)
    assert (tmp_path / "cli.onnx").read_bytes() == ours.read_bytes()


def test_export_additive(tmp_path: Path) -> None:
    np.save(tmp_path / "scale.npy", np.arange(4.0))
    path = tmp_path / "a.onnx"
    scale = tmp_path / "scale.npy"
    result = onnx_attn("export", path, "--layer", "additive", "--scale-value", scale)
    assert result.exit_code == 0, text_of(result)
    np.testing.assert_array_equal(AdditiveAttention.load(path).get_weights()[0], np.arange(4.0))


def test_heads_and_a_bias_on_the_command_line(tmp_path: Path) -> None:
    path, rng = tmp_path / "a.onnx", np.random.default_rng(0)
    assert onnx_attn("export", path, "--heads", "--bias").exit_code == 0
    tensor = rng.standard_normal((2, 3, 5, 4)).astype(np.float32)
    bias = rng.standard_normal((1, 3, 5, 5)).astype(np.float32)
    np.savez(tmp_path / "in.npz", query=tensor, value=tensor)
    np.save(tmp_path / "bias.npy", bias)
    arguments = ("run", path, tmp_path / "in.npz", "--bias", tmp_path / "bias.npy")
    result = onnx_attn(*arguments, "-o", tmp_path / "out.npz")
    assert result.exit_code == 0, text_of(result)
    wanted, _ = attention(tensor, tensor, bias=bias)
    got = np.load(tmp_path / "out.npz")["output"]
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
    np.save(tmp_path / "bias.npy", bias[..., :4])
    refused = onnx_attn(*arguments)
    assert refused.exit_code == 2
    assert "bias: expected float32[2 or 1, 3 or 1, 5 or 1, 5 or 1]" in text_of(refused)


def test_run_from_npz_and_from_single_arrays(
    tmp_path: Path, feeds: tuple[Path, dict[str, np.ndarray]]
) -> None:
    inputs, arrays = feeds
    path = Attention(causal=True).export(tmp_path / "a.onnx", return_attention_scores=True)
    result = onnx_attn("run", path, inputs, "-o", tmp_path / "out.npz")
    assert result.exit_code == 0, text_of(result)
    shown = text_of(result)
    assert "attention_scores" in shown
    assert "2 x 3 x 5" in shown
    wanted, scores = attention(
        arrays["query"], arrays["value"], value_mask=arrays["value_mask"], causal=True
    )
    with np.load(tmp_path / "out.npz") as out:
        np.testing.assert_allclose(out["output"], wanted, rtol=1e-5, atol=2e-6)
        np.testing.assert_allclose(out["attention_scores"], scores, rtol=1e-5, atol=2e-6)
        first = dict(out)
    options = [f"--{name.replace('_', '-')}={tmp_path / name}.npy" for name in arrays]
    result = onnx_attn("run", path, *options, "-o", tmp_path / "single.npz")
    assert result.exit_code == 0, text_of(result)
    with np.load(tmp_path / "single.npz") as out:
        for name, array in first.items():
            np.testing.assert_array_equal(out[name], array)


def test_run_plots_the_scores(tmp_path: Path, feeds: tuple[Path, Any]) -> None:
    path = Attention().export(tmp_path / "a.onnx", return_attention_scores=True)
    plot = tmp_path / "heat.png"
    result = onnx_attn("run", path, feeds[0], "--plot", plot)
    assert result.exit_code == 0, text_of(result)
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_run_takes_scale_and_training(tmp_path: Path, feeds: tuple[Path, Any]) -> None:
    layer = Attention(use_scale=True, dropout=0.5)
    path = layer.export(tmp_path / "a.onnx", scale="input", training=True)
    result = onnx_attn("run", path, feeds[0], "--scale", "0", "-o", tmp_path / "out.npz")
    assert result.exit_code == 0, text_of(result)
    arrays = feeds[1]
    wanted, _ = attention(
        arrays["query"], arrays["value"], value_mask=arrays["value_mask"], scale=0.0
    )
    with np.load(tmp_path / "out.npz") as out:
        np.testing.assert_allclose(out["output"], wanted, rtol=1e-5, atol=2e-6)
    result = onnx_attn("run", path, feeds[0], "--training", "-o", tmp_path / "dropped.npz")
    assert result.exit_code == 0, text_of(result)
    with np.load(tmp_path / "dropped.npz") as out:
        assert np.abs(out["output"] - wanted).max() > 1e-3


def test_inspect_as_table_and_json(tmp_path: Path) -> None:
    path = Attention(use_scale=True, causal=True).export(tmp_path / "a.onnx")
    shown = text_of(onnx_attn("inspect", path))
    for word in ("query", "[batch, Tq, dim]", "causal=True", "opset 17", "no mask*"):
        assert word in shown
    facts = json.loads(onnx_attn("inspect", path, "--json").stdout)
    assert [tensor["name"] for tensor in facts["inputs"]] == [
        "query",
        "value",
        "key",
        "query_mask",
        "value_mask",
    ]
    assert facts["weights"] == [{"name": "scale", "dtype": "float32", "shape": [], "value": 1.0}]
    assert facts["config"]["causal"] is True
    assert facts["ir_version"] == 8


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["export", "a.onnx", "--masks", "some"], ["masks", "both"]),
        (["export", "a.onnx", "--dropout", "1"], ["dropout"]),
        (["export", "a.onnx", "--score-mode", "cosine"], ["score_mode"]),
        (["export", "a.onnx", "--scale-value", "2"], ["--use-scale"]),
        (["export", "a.onnx", "--dims", "batch"], ["--dims", "batch=1"]),
        (["export", "a.onnx", "--layer", "self"], ["--layer"]),
        (["export", "a.onnx", "--layer", "additive"], ["--scale-value"]),
        (["export", "a.onnx", "--dtype", "int8"], ["dtype", "float16"]),
        (["export", "no/such/folder/a.onnx"], ["cannot be written"]),
        (["run", "missing.onnx", "inputs.npz"], ["missing.onnx"]),
        (["run", "good.onnx", "missing.npz"], ["missing.npz", "does not exist"]),
        (["run", "good.onnx", "good.onnx"], ["good.onnx", "plain arrays"]),
        (["run", "good.onnx"], ["query is missing"]),
        (["run", "good.onnx", "wide.npz"], ["query", "float32", "float64", "astype"]),
        (["run", "good.onnx", "names.npz"], ["no input named 'queries'"]),
        (["run", "good.onnx", "inputs.npz", "--plot", "a.png"], ["--scores"]),
        (["inspect", "missing.onnx"], ["missing.onnx"]),
        (["inspect", "inputs.npy"], ["inputs.npy"]),
    ],
)
def test_errors_are_one_clear_line(
    arguments: list[str], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    query = np.zeros((1, 2, 3), np.float32)
    Attention().export("good.onnx")
    np.save("inputs.npy", query)
    np.savez("inputs.npz", query=query, value=query)
    np.savez("wide.npz", query=query.astype(np.float64), value=query)
    np.savez("names.npz", queries=query, value=query)
    result = onnx_attn(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr
    assert not Path("a.onnx").exists()


SAVED = Path(__file__).parents[1] / "keras" / "files" / "golden" / "keras3151.keras"


def test_export_from_a_saved_keras_model(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    result = onnx_attn("export", path, "--from-keras", f"{SAVED}:my_att", "--opset", "18")
    assert result.exit_code == 0, text_of(result)
    layer = Attention.load(path)
    assert layer.get_config()["causal"] is True
    assert [weight.item() for weight in layer.get_weights()] == [0.25]
    assert layer.export_defaults["masks"] == "value"
    assert layer.export_defaults["opset"] == 18


def test_inspect_of_a_saved_keras_model() -> None:
    shown = text_of(onnx_attn("inspect", SAVED))
    for word in ("my_att", "conc", "addi", "scale=0.25"):
        assert word in shown
    rows = json.loads(onnx_attn("inspect", SAVED, "--json").stdout)
    assert [row["layer"] for row in rows] == ["my_att", "conc", "addi"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--from-keras", str(SAVED)], ["3 attention layers", "my_att, conc, addi"]),
        (["--from-keras", f"{SAVED}:none"], ["'none'", "my_att, conc, addi"]),
        (["--from-keras", "missing.keras"], ["missing.keras"]),
        (["--from-keras", str(SAVED), "--causal"], ["leave out"]),
        (["--from-keras", str(SAVED), "--scale-value", "2"], ["leave out"]),
        (["--config", "config.json"], ["--from-keras"]),
    ],
)
def test_export_from_keras_errors(arguments: list[str], words: list[str], tmp_path: Path) -> None:
    result = onnx_attn("export", tmp_path / "a.onnx", *arguments)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr
