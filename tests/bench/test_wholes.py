"""Whole models in the benchmark: what fails is a cell with its reason, what differs is told."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from onnx_attn.bench.measure import suite
from onnx_attn.bench.measure.turns import Plan, Turns
from onnx_attn.bench.report.page import report, short
from onnx_attn.bench.report.stats import Results
from onnx_attn.bench.wholes import measure, models
from onnx_attn.bench.wholes.models import GRAPH, GRAPHS, MASKS, WHOLES, Whole, shown
from onnx_attn.bench.wholes.skeleton import draw, pack
from onnx_attn.cli import load_commands

SMALL = Whole("keras_multi_head", 2, 24, "tails")

MAKERS = """
import os, shutil
import onnx

def copies(source, target, graph):
    shutil.copy(source, target)

def spoils(source, target, graph):
    model = onnx.load(source)
    for tensor in model.graph.initializer:
        if len(tensor.dims) == 2:
            tensor.raw_data = bytes(len(tensor.raw_data))
    onnx.save(model, target)

def refuses(source, target, graph):
    raise IndexError("no fusion for this")

def dies(source, target, graph):
    os._exit(3)

def garbage(source, target, graph):
    target.write_bytes(b"no model")
"""
NAMES = [f"makers:{name}" for name in ("copies", "spoils", "refuses", "dies", "garbage")]


@pytest.fixture(scope="module", autouse=True)
def makers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("makers")
    (folder / "makers.py").write_text(MAKERS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *filter(None, sys.path)]))
        patch.syspath_prepend(str(folder))
        yield


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    request = suite.Request(
        parts=["models"],
        wholes=[SMALL],
        whole_candidates=measure.choose_candidates(NAMES),
        turns=Turns(processes=1, rounds=1, seconds=0.001),
    )
    return suite.run(request, lambda _: None)


def test_who_gives_the_originals_numbers_is_timed(data: dict[str, Any]) -> None:
    (cell,) = data["models"]["cells"]
    for name in ("original", "makers:copies"):
        result = cell["results"][name]
        assert result["status"] == "ok"
        assert result["error"] == 0
        assert result["turns"][0]["fastest"] <= result["turns"][0]["median"]
        assert result["load"] > 0
        assert result["growth"] >= 0
        assert data["models"]["graphs"][SMALL.graph][name]["masks"] == dict.fromkeys(MASKS, 0.0)


def test_other_numbers_are_told_under_each_mask(data: dict[str, Any]) -> None:
    (cell,) = data["models"]["cells"]
    assert cell["results"]["makers:spoils"]["status"] == "differs"
    masks = data["models"]["graphs"][SMALL.graph]["makers:spoils"]["masks"]
    assert all(masks[mask] > 0.1 for mask in MASKS)
    assert "not the original's numbers" in report(data)


@pytest.mark.parametrize(
    ("name", "status", "words"),
    [
        ("refuses", "cannot", "no fusion for this"),
        ("dies", "cannot", "code 3"),
        ("garbage", "failed", "cannot be loaded"),
    ],
)
def test_what_fails_is_a_cell_with_its_reason(
    data: dict[str, Any], name: str, status: str, words: str
) -> None:
    (cell,) = data["models"]["cells"]
    result = cell["results"][f"makers:{name}"]
    assert result["status"] == status
    assert words in result["reason"]
    assert result["turns"] == []
    assert words in report(data).split("### What failed, and why")[1]


def test_the_command_writes_both_forms(tmp_path: Path) -> None:
    out = tmp_path / "models.json"
    arguments = ["bench", "--models", "--quick", "--cell", "keras_attention"]
    arguments += ["--candidate", "rewritten", "--processes", "1", "--rounds", "1"]
    done = CliRunner().invoke(load_commands(), [*arguments, "--output", str(out)])
    assert done.exit_code == 0, done.output
    results = json.loads(out.read_text())
    assert results["models"]["cells"][0]["results"]["rewritten"]["status"] == "ok"
    page = out.with_suffix(".md").read_text()
    assert page == CliRunner().invoke(load_commands(), ["bench", "--report", str(out)]).output
    assert "Keras Attention, causal, 1x256" in short(results)


def test_our_wrong_numbers_end_the_command_with_an_error(data: dict[str, Any]) -> None:
    told = json.loads(json.dumps(data))
    told["models"]["candidates"]["makers:spoils"]["kind"] = "ours"
    (line,) = suite.wrong_results(told)
    assert SMALL.name in line


def test_an_unknown_name_is_one_line() -> None:
    for arguments, named in (
        (["--candidate", "nobody"], "onnxscript-ort"),
        (["--cell", "no such"], "encoder.ts 8x512"),
    ):
        done = CliRunner().invoke(load_commands(), ["bench", "--models", *arguments])
        assert done.exit_code == 2
        assert named in " ".join(done.output.split())


def test_weights_are_drawn_the_same_each_time(tmp_path: Path) -> None:
    model = draw(GRAPHS / "keras_attention.onnx.gz")
    assert model == draw(GRAPHS / "keras_attention.onnx.gz")
    pack(model, tmp_path / "again.onnx.gz")
    again = draw(tmp_path / "again.onnx.gz")
    sizes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    assert {tensor.name: list(tensor.dims) for tensor in again.graph.initializer} == sizes
    largest = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    weights = onnx.numpy_helper.to_array(largest)
    assert 0 < weights.std() < 1


@pytest.mark.parametrize("graph", GRAPH)
def test_every_model_is_there_with_its_inputs(graph: str) -> None:
    model = draw(GRAPHS / f"{graph}.onnx.gz")
    onnx.checker.check_model(model)
    assert tuple(entry.name for entry in model.graph.input) == GRAPH[graph].inputs
    assert graph in {whole.graph for whole in WHOLES}


def test_masks_hide_where_they_say() -> None:
    def hidden(mask: Any) -> Any:
        return ~shown(Whole("encoder.ts", 4, 40, mask))

    assert not hidden("none").any()
    assert hidden("tails").sum() == 60
    np.testing.assert_array_equal(hidden("front"), hidden("tails")[:, ::-1])
    assert 20 < hidden("gaps").sum() < 80
    assert not hidden("gaps")[:, 0].any()
    ids = models.inputs(Whole("keras_multi_head", 4, 40, "tails"))["ids"]
    np.testing.assert_array_equal(ids == 0, hidden("tails"))


def test_steps_are_counted() -> None:
    plan = Plan([SMALL], measure.choose_candidates(["makers:copies"]), Turns(1, 1, 1, 1, 0.001))
    told: list[str] = []
    measure.run(plan, told.append)
    assert len(told) == measure.steps(plan)


def test_goals_can_be_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    goals = importlib.import_module("model_goals").goals

    def found(ours: float, peer: float, growth: float) -> dict[str, tuple[str, bool]]:
        def result(median: float) -> dict[str, Any]:
            turn = {"process": 0, "median": median, "fastest": median}
            return {"status": "ok", "turns": [turn], "load": median, "growth": growth}

        results = {
            "original": result(300.0),
            "rewritten": result(ours),
            "onnxscript-ort": result(peer),
        }
        cells = [
            {**vars(whole), "name": whole.name, "results": results}
            for whole in (
                Whole("encoder.ts", 8, 512, "tails"),
                Whole("encoder.ts", 1, 32, tiny=True),
            )
        ]
        kinds = {"original": "original", "rewritten": "ours", "onnxscript-ort": "peer"}
        data = {
            "settings": {"headline": "auto"},
            "candidates": {name: {"label": name, "kind": kind} for name, kind in kinds.items()},
            "cells": cells,
            "graphs": {"encoder.ts": {}},
        }
        return {f"{g.what}: {g.wanted}": (g.got, g.met) for g in goals(Results(data))}

    met = found(190.0, 200.0, 100e6)
    assert len(met) == 5
    assert all(good for _, good in met.values()), met
    assert met["encoder 8x512 tails, either export: best peer / ours >= 1"] == ("1.05", True)
    missed = found(460.0, 200.0, 140e6)
    assert not any(good for _, good in missed.values()), missed
