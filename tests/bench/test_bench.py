"""The benchmark tells the truth: right results only, wrong and missing ones by name."""

from __future__ import annotations

import json
import os
import runpy
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from onnx_attn import InputError
from onnx_attn.bench import cells
from onnx_attn.bench.candidate import Candidate
from onnx_attn.bench.candidates import candidates
from onnx_attn.bench.cells import CELLS, QUICK_CELLS, TOLERANCE, Cell
from onnx_attn.bench.measure import suite, turns
from onnx_attn.bench.measure.turns import Plan, RefusedError, Turns, run_cells, worker
from onnx_attn.bench.measure.worker import timed
from onnx_attn.bench.ours import HEADLINE, SCHEDULES
from onnx_attn.bench.report.page import far_table, report
from onnx_attn.bench.report.stats import Results, verdict
from onnx_attn.cli import load_commands
from onnx_attn.reference import attention

ROOT = Path(__file__).parents[2]
TINY = Cell("causal ragged", 4, 5, 6, 8, causal=True, padding="ragged", tiny=True)
FRONT = Cell("causal front", 4, 8, 8, 8, causal=True, padding="front")
PLAIN = Cell("plain", 2, 5, 6, 8)

WRONG = """
import numpy as np
from onnx_attn.bench.candidate import Candidate, Prepared

def prepare(cell, tensors, threads):
    output = np.zeros((cell.batch, cell.Tq, cell.dim), np.float32)
    return Prepared(lambda: output, lambda result: {"output": result})

as_ours = Candidate("wrong:as_ours", "wrong on purpose", "ours", prepare)

def dies(cell, tensors, threads):
    import os, sys
    print("last words", file=sys.stderr, flush=True)
    os._exit(3)
"""


@pytest.fixture(scope="module", autouse=True)
def wrong_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "wrong.py").write_text(WRONG)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *filter(None, sys.path)]))
        patch.syspath_prepend(str(folder))
        yield


FEW = Turns(processes=2, rounds=1, seconds=0.001)


def measure(
    *cells: Cell, names: list[str], turns: dict[str, int] | None = None, **changes: Any
) -> dict[str, Any]:
    request = suite.Request(
        parts=["cells"],
        cells=cells,
        candidates=suite.choose_candidates(names),
        turns=replace(FEW, **(turns or {})),
    )
    return suite.run(replace(request, **changes), lambda _: None)


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    names = [
        *SCHEDULES,
        "true-masks",
        "bare",
        "keras-onnx",
        "mha",
        "matmuls",
        "wrong:prepare",
    ]
    return measure(TINY, FRONT, PLAIN, names=names)


def test_every_file_of_ours_is_checked_and_timed(measured: dict[str, Any]) -> None:
    for cell in measured["cells"]:
        for schedule in SCHEDULES:
            result = cell["results"][schedule]
            if schedule == "fused" and (cell["causal"] or cell["scores"]):
                assert result["status"] == "cannot"
                continue
            assert result["status"] == "ok", result
            assert 0 < result["error"] <= TOLERANCE
            assert {turn["alignment"] for turn in result["turns"]} == {64, 16}
            assert all(turn["median"] > 0 and turn["runs"] >= 3 for turn in result["turns"])
    assert suite.wrong_results(measured) == []


def test_a_wrong_candidate_is_no_best_peer(measured: dict[str, Any]) -> None:
    results = Results(measured)
    for cell in results.cells:
        wrong = cell["results"]["wrong:prepare"]
        assert wrong["status"] == "differs"
        assert wrong["turns"], "it is timed, and shown in brackets"
        best = results.best_peer(cell)
        assert best is not None
        assert best.name in ("bare", "keras-onnx", "mha")


def test_rows_that_see_no_key_are_told_apart(measured: dict[str, Any]) -> None:
    front = measured["cells"][1]["results"]
    assert front["mha"]["status"] == "differs"
    assert "see no key" in front["mha"]["reason"]
    assert front["keras-onnx"]["status"] == "ok"
    assert "Keras's numbers" in front["wrong:prepare"]["reason"]


def test_a_wrong_file_of_ours_is_told() -> None:
    data = measure(PLAIN, names=["bare", "wrong:as_ours"], turns={"processes": 1})
    (line,) = suite.wrong_results(data)
    assert PLAIN.name in line
    assert "wrong on purpose" in line


def test_a_candidate_that_dies_is_told_and_the_others_go_on() -> None:
    data = measure(TINY, PLAIN, names=["wrong:dies", "bare"], turns={"processes": 1})
    for cell in data["cells"]:
        died = cell["results"]["wrong:dies"]
        assert died["status"] == "failed"
        assert "last words" in died["reason"]
        assert "code 3" in died["reason"]
        assert cell["results"]["bare"]["turns"]


def test_a_missing_peer_is_named() -> None:
    nobody = Candidate("nobody", "nobody's op", "peer", lambda *_: None, (("not-there-9",),))  # type: ignore[arg-type]
    request = suite.Request(
        parts=["cells"],
        cells=[PLAIN],
        candidates=[nobody, *suite.choose_candidates(["dense", "bare"])],
        turns=replace(FEW, processes=1),
    )
    data = suite.run(request, lambda _: None)
    page = report(data)
    assert "nobody's op: missing: not-there-9 is not installed" in page
    row = next(line for line in page.split("## Everyone")[1].splitlines() if PLAIN.name in line)
    assert row.split(" | ")[1] == "missing"


def test_the_command_writes_json_and_markdown(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    arguments = ["bench", "--quick", "--cell", "plain 1x16", "--candidate", "dense"]
    arguments += ["--candidate", "bare", "--processes", "1", "--seconds", "0.001"]
    done = CliRunner().invoke(load_commands(), [*arguments, "--output", str(out)])
    assert done.exit_code == 0, done.output
    data = json.loads(out.read_text())
    assert data["machine"]["cpu"]
    assert "numpy" in data["versions"]
    page = out.with_suffix(".md").read_text()
    assert "plain 1x16x16x64" in page
    again = CliRunner().invoke(load_commands(), ["bench", "--report", str(out)])
    assert again.output == page


def test_the_command_fails_on_a_wrong_file_of_ours() -> None:
    arguments = ["bench", "--quick", "--cell", "plain 1x16", "--candidate", "wrong:as_ours"]
    arguments += ["--processes", "1", "--seconds", "0.001"]
    done = CliRunner().invoke(load_commands(), arguments)
    assert done.exit_code == 1
    assert "wrong on purpose" in done.output


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--cell", "no such cell"], "plain 1x16x16x64"),
        (["--candidate", "nobody"], "keras-onnx"),
        (["--candidate", "no_such_module:f"], "no_such_module"),
        (["--report", "no_such_file.json"], "no_such_file.json"),
        (["--quick", "--output", "no_such_folder/results.json"], "no_such_folder"),
    ],
)
def test_bad_arguments_end_in_one_clear_line(arguments: list[str], named: str) -> None:
    done = CliRunner().invoke(load_commands(), ["bench", *arguments])
    assert done.exit_code == 2
    assert named in " ".join(done.output.split())


def test_results_of_another_format_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    path.write_text('{"format": 0}')
    with pytest.raises(InputError, match=r"old\.json"):
        suite.read(path)


def test_a_run_keeps_what_it_has_so_far() -> None:
    request = suite.Request(
        parts=["cells", "session"],
        cells=[PLAIN],
        candidates=suite.choose_candidates(["bare"]),
        turns=FEW,
    )
    kept: list[tuple[int, bool]] = []

    def keep(results: dict[str, Any]) -> None:
        assert report(results)
        turns = results["cells"][0]["results"]["bare"]["turns"]
        kept.append((len(turns), "session" in results))

    suite.run(request, lambda _: None, keep)
    # After each generation of processes, and after each part.
    assert kept == [(1, False), (2, False), (2, False), (2, True)]


def test_an_error_in_any_round_of_a_load_is_told() -> None:
    def of_speed(speed: float, error: str | None) -> dict[str, Any]:
        return {"per_second": speed, "errors": int(error is not None), "first_error": error}

    rounds = [of_speed(3.0, None), of_speed(1.0, "wrong bits"), of_speed(2.0, None)]
    assert suite._median_load(rounds) == of_speed(2.0, "wrong bits")


def test_memory_session_and_load_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "QUICK_MEMORY_LENGTHS", (64, 1024))
    monkeypatch.setattr(suite, "CLIENTS", (2,))
    monkeypatch.setattr(suite, "SESSIONS", (1, 2))
    monkeypatch.setattr(suite, "LOAD_CELLS", (QUICK_CELLS[0],))
    data = measure(
        names=["dense"],
        parts=["memory", "session", "load"],
        quick=True,
        load_seconds=0.05,
        turns={"processes": 1},
    )
    for entry in data["memory"]:
        scores = 4 * entry["Tq"] * entry["Tv"]
        grown = entry["results"]["dense"]["bytes"]
        assert grown < 20 * scores + 4e6
        if entry["Tq"] == 1024:
            assert grown > scores / 2
    assert [(load["clients"], load["sessions"], load["threads"]) for load in data["load"]] == [
        (2, 1, 1),
        (2, 1, 1),
        (2, 2, 1),
    ]
    for load in data["load"]:
        assert load["errors"] == 0
        assert load["requests"] > 0
        assert load["p50"] <= load["p99"]
    assert "| plain 1x16x16x64 | 2 | 2 of 1 |" in report(data)
    page = report(data)
    for title in ("## Memory", "## The session's own cost", "## Load"):
        assert title in page
    assert {"none", "both"} == set(data["session"]["run"])


def test_a_paused_worker_goes_on() -> None:
    with worker(1) as one:
        one.pause()
        one.resume()
        assert one.ask({"do": "drop"}) is None
        with pytest.raises(RefusedError, match="prepare"):
            one.ask({"do": "time", "seconds": 0.001})


def test_timed_counts_what_it_ran() -> None:
    calls: list[int] = []
    taken = timed(lambda: calls.append(1), 0.001)
    assert taken["runs"] < len(calls)
    assert taken["q1"] <= taken["median"] <= taken["q3"]


@pytest.mark.parametrize("cell", [TINY, FRONT, PLAIN], ids=lambda cell: cell.name)
@pytest.mark.parametrize("alignment", [64, 16])
def test_inputs_are_the_same_numbers_at_the_alignment(cell: Cell, alignment: int) -> None:
    plain = cells.inputs(cell)
    for name, tensor in cells.inputs(cell, alignment).items():
        assert tensor.ctypes.data % 64 == alignment % 64
        np.testing.assert_array_equal(tensor, plain[name])
    assert ("value_mask" in plain) == (cell.padding != "none")


@pytest.mark.parametrize("cell", [TINY, FRONT, PLAIN], ids=lambda cell: cell.name)
def test_sampled_rows_are_rows_of_the_reference(
    cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = cells.expected(cell)["output"]
    tensors = cells.inputs(cell)
    mask = tensors.pop("value_mask", None)
    np.testing.assert_array_equal(
        whole, attention(**tensors, value_mask=mask, causal=cell.causal)[0]
    )
    rows = np.array([0, 2, cell.Tq - 1])
    monkeypatch.setattr(cells, "checked_rows", lambda _: rows)
    np.testing.assert_allclose(cells.expected(cell)["output"], whole[:, rows], rtol=1e-12)


def test_what_counts_of_the_scores() -> None:
    assert PLAIN.visible_share == 1
    assert replace(PLAIN, causal=True, Tq=6).visible_share == pytest.approx(21 / 36)
    assert Cell("ragged", 4, 8, 8, 8, padding="ragged").visible_share == 0.625
    one_masked = replace(FRONT, Tq=2, Tv=2, batch=2)
    # Lengths 1 and 1 of 2 at the end: the first row sees nothing, so it needs all; the second one.
    assert one_masked.visible_share == 0.75


def test_the_cells_are_the_ones_a_user_knows() -> None:
    names = [cell.name for cell in CELLS]
    assert len(set(names)) == len(names)
    assert {"plain", "decode", "causal", "ragged", "causal ragged", "causal front", "scores"} <= {
        cell.mode for cell in CELLS
    }
    assert {cell.name.split()[0] for cell in QUICK_CELLS} <= {name.split()[0] for name in names}
    assert HEADLINE in candidates()


def test_processes_are_counted_by_size() -> None:
    plan = Plan([TINY, PLAIN], suite.choose_candidates(["bare"]), Turns(1, 3, 1, 2, 0.001))
    (tiny, big) = run_cells(plan, lambda _: None)
    assert len(tiny["results"]["bare"]["turns"]) == 3 * 1
    assert len(big["results"]["bare"]["turns"]) == 1 * 2


def test_turns_know_how_fast_cores_exchange_data() -> None:
    def exchanges(threads: int) -> list[float]:
        measured = measure(TINY, names=["bare"], turns={"threads": threads, "processes": 1})
        return [turn["exchange"] for turn in measured["cells"][0]["results"]["bare"]["turns"]]

    assert exchanges(1) == [0.0]
    assert all(0.3 < together < 30 for together in exchanges(2))


@pytest.mark.parametrize("far", [False, True])
def test_rounds_follow_while_no_turn_was_near(far: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "is_far", lambda _: far)
    measured = measure(PLAIN, names=["bare"], turns={"threads": 2, "processes": 1, "rounds": 2})
    assert len(measured["cells"][0]["results"]["bare"]["turns"]) == (4 if far else 2)


def one_turn(median: float, exchange: float = 0.6) -> dict[str, Any]:
    return {
        "process": 0,
        "alignment": 64,
        "exchange": exchange,
        "median": median,
        "q1": 0,
        "q3": 0,
        "runs": 1,
    }


def results_of(**turns: list[dict[str, Any]]) -> dict[str, Any]:
    """A run of causal 16x512 by these candidates."""
    cell = next(c for c in CELLS if c.name == "causal 16x512x512x64")
    kinds = {"auto": "ours", "dense": "ours", "bare": "peer", "matmuls": "bound"}
    return {
        "settings": {"headline": "auto"},
        "candidates": {
            name: {"label": name, "missing": None, "kind": kinds[name]} for name in turns
        },
        "cells": [
            {
                **vars(cell),
                "name": cell.name,
                "visible_share": 0.5,
                "results": {
                    name: {"status": "ok", "reason": None, "error": 0.0, "turns": found}
                    for name, found in turns.items()
                },
            }
        ],
    }


def test_turns_with_cores_far_apart_are_kept_apart() -> None:
    data = results_of(
        auto=[one_turn(100), one_turn(900, 1.1)],
        bare=[one_turn(150), one_turn(160, 1.1)],
        matmuls=[one_turn(80, 1.2)],
    )
    results = Results(data)
    (cell,) = results.cells
    assert results.ratio(cell, "auto") == 1.5
    far = results.time(cell, "auto", far=True), results.best_peer(cell, far=True)
    assert far[0] is not None
    assert far[1] is not None
    assert (far[0].median, far[1].time.median) == (900, 160)
    # Where there were no near turns, the far ones stand.
    assert results.bound(cell) == 40
    text = far_table(results)
    assert "In 3 of 5 turns" in text
    assert "| causal 16x512x512x64 | 900 us |  | 160 us | bare | 0.18 |" in text
    assert far_table(Results(results_of(auto=[one_turn(1)], bare=[one_turn(1)]))) == ""


@pytest.mark.parametrize(
    ("ratio", "words"),
    [
        (1.44, "1.44 times as fast as torch"),
        (1.03, "level with torch"),
        (0.98, "level with torch"),
        (0.5, "slower: torch is 2.00 times as fast"),
    ],
)
def test_who_is_faster_is_said_in_words(ratio: float, words: str) -> None:
    assert verdict(ratio, "torch") == words


def test_goals_can_be_missed() -> None:
    goals = runpy.run_path(str(ROOT / "benchmarks/goals.py"))["goals"]

    def found(ours: float, peer: float) -> list[Any]:
        data = results_of(auto=[one_turn(ours)], bare=[one_turn(peer)], matmuls=[one_turn(1600)])
        return goals(Results(data))

    def met(ours: float, peer: float) -> list[bool]:
        return [goal.met for goal in found(ours, peer)]

    assert met(1000, 1700) == [True, True]
    assert met(1000, 1500) == [True, False]
    assert met(1000, 1300) == [False, False]
    # The two MatMuls take 1,600 us, half of which counts.
    assert found(1000, 1700)[0].at_bound == f"{1700 / 800:.2f}"
