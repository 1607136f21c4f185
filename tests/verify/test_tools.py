"""Promise: the table of tools tells the truth, whatever a tool does, and its check can fail."""

import os
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from fake_tools import crashes, hangs, leaves, raises, untouched, wrong
from onnx_attn.cli import load_commands
from onnx_attn.verify.tools import expected, registry, table
from onnx_attn.verify.tools.cases import case_names, make_cases
from onnx_attn.verify.tools.cell import Outcome, measure
from onnx_attn.verify.tools.expected import LIMITS, Limit
from onnx_attn.verify.tools.registry import TOOLS
from onnx_attn.verify.tools.table import (
    Table,
    differences,
    markdown,
    measure_cases,
    unknown_limits,
)
from onnx_attn.verify.tools.tool import Case, Tool

KNOWN = Limit("fake", ("dense*",), "no such", "the fake tool knows no such thing")


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Case:
    cases = {case.name: case for case in make_cases(tmp_path_factory.mktemp("cases"))}
    assert list(cases) == case_names()
    return cases["dense"]


def test_a_right_product_has_its_error(dense: Case) -> None:
    outcome = measure(Tool("fake", untouched), dense, 60)
    assert outcome.why is None
    assert outcome.error is not None
    assert 0 < outcome.error < 1e-5


@pytest.mark.parametrize(
    ("apply", "why"),
    [
        (wrong, "numbers are off by 1"),
        (partial(raises, words="no such"), "ValueError: no such in /x and more"),
        (leaves, "SystemExit: usage"),
        pytest.param(
            crashes,
            "the process died of SIGKILL",
            marks=pytest.mark.skipif(os.name == "nt", reason="no signals on Windows"),
        ),
    ],
)
def test_a_fault_is_a_no_with_its_reason(dense: Case, apply, why: str) -> None:
    assert measure(Tool("fake", apply), dense, 60) == Outcome(why=why)


def test_a_hanging_tool_is_ended(dense: Case) -> None:
    begun = time.monotonic()
    assert measure(Tool("fake", hangs), dense, 3) == Outcome(why="no end within 3 s")
    assert time.monotonic() - begun < 60


def test_a_crash_leaves_the_other_cells(dense: Case) -> None:
    tools = [Tool("crashes", crashes), Tool("fake", untouched)]
    seen: list[tuple[int, int]] = []
    made = measure_cases(tools, [dense], lambda *done: seen.append(done), 60)
    assert seen == [(1, 2), (2, 2)]
    assert made.cells["crashes", "dense"].why
    assert made.cells["fake", "dense"].why is None


def _table(outcome: Outcome, file: str = "dense") -> Table:
    return Table(("fake",), (file,), {("fake", file): outcome})


def test_what_is_expected_is_no_difference() -> None:
    assert differences(_table(Outcome(why="ValueError: no such type")), [KNOWN]) == []
    assert differences(_table(Outcome(error=1e-7), "auto"), [KNOWN]) == []


def test_an_unlisted_no_is_a_difference() -> None:
    (line,) = differences(_table(Outcome(why="no such type"), "auto"), [KNOWN])
    assert "fake on auto" in line
    assert "not listed: no such type" in line


def test_another_no_than_the_listed_is_a_difference() -> None:
    (line,) = differences(_table(Outcome(why="the process died of SIGSEGV")), [KNOWN])
    assert "not listed: the process died of SIGSEGV" in line


def test_a_stale_no_is_a_difference() -> None:
    (line,) = differences(_table(Outcome(error=1e-7)), [KNOWN])
    assert "fake on dense works now" in line


def test_a_limit_about_no_cell_is_found() -> None:
    (line,) = unknown_limits([KNOWN], ["other"], ["dense"])
    assert "fake on dense*" in line
    assert unknown_limits([KNOWN], ["fake"], ["dense causal"]) == []


def test_every_listed_limit_is_about_a_cell() -> None:
    assert unknown_limits(LIMITS, [tool.name for tool in TOOLS], case_names()) == []
    assert all(limit.says and limit.why and "\n" not in limit.why for limit in LIMITS)


def test_the_page_has_numbers_and_reasons() -> None:
    page = markdown(
        Table(
            ("fake",),
            ("auto", "dense", "fused"),
            {
                ("fake", "auto"): Outcome(error=2e-7),
                ("fake", "dense"): Outcome(why="no such type"),
                ("fake", "fused"): Outcome(why="a surprise"),
            },
        ),
        [KNOWN],
    )
    assert "| fake | 2e-07 | no [1] | no [2] |" in page
    assert f"1. {KNOWN.why}" in page
    assert "2. Not expected: a surprise" in page


@pytest.mark.parametrize(
    ("limits", "code", "says"),
    [
        ((), 0, ""),
        ((Limit("fake", ("dense",), "no such", "it cannot"),), 1, "fake on dense works now"),
        ((Limit("gone", ("dense",), "no such", "it cannot"),), 1, "about no cell: gone"),
    ],
)
def test_the_command_checks_and_writes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    limits: tuple[Limit, ...],
    code: int,
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "TOOLS", (Tool("fake", untouched),))
    monkeypatch.setattr(expected, "LIMITS", limits)
    made = _table(Outcome(error=1e-7))
    monkeypatch.setattr(table, "measure_table", lambda *_: made)
    run = partial(CliRunner().invoke, load_commands())
    assert run(["tools", "--write"]).exit_code == 2
    (tmp_path / "docs").mkdir()
    result = run(["tools", "--write", "--check"])
    assert result.exit_code == code
    assert says in result.output
    assert "| fake | 1e-07 |" in (tmp_path / "docs" / "tools.md").read_text()
    assert run(["tools", "--write", "--tool", "fake"]).exit_code == 2


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    tools = (Tool("fake", untouched, needs=("no_such_package_here",)),)
    monkeypatch.setattr(registry, "TOOLS", tools)
    result = CliRunner().invoke(load_commands(), ["tools"])
    assert result.exit_code == 2
    assert "no_such_package_here" in result.output
    assert "onnx_attn[tools]" in result.output


@pytest.mark.tools
def test_the_whole_table_is_as_expected() -> None:
    registry.require(TOOLS)
    made = table.measure_table(TOOLS, case_names(), lambda *_: None)
    assert differences(made, LIMITS) == []
    numbers = [cell.error for cell in made.cells.values() if cell.error is not None]
    assert np.all(np.isfinite(numbers))
