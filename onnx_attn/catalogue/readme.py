"""models/README.md: what is there, written by the build; what runs where, written by verify."""

from __future__ import annotations

import re

from ..configuration import LayerConfig
from ..errors import ModelError
from ..file.description import where_it_runs
from ..markdown import markdown_table
from .entries import CATALOGUE, Entry

NOT_YET = "Not run yet: `onnx-attn verify --runtime all models/ --write-table`."


def readme(earlier: str) -> str:
    """The README of the catalogue; the sections in `earlier` that verify wrote are kept."""
    sections = {name: section(earlier, name) or NOT_YET for name in ("results", "versions")}
    rows = [
        [
            f"[{entry.name}]({entry.name}/)",
            entry.what,
            ", ".join(f"({s.name})" if s.optional else s.name for s in entry.inputs.values()),
            _options(entry),
            where_it_runs(entry.file),
        ]
        for entry in CATALOGUE
    ]
    table = markdown_table(["model", "what", "inputs", "export options", "where it runs"], rows)
    return TEMPLATE.format(
        table=table,
        cases=_cases(),
        results=_marked("results", sections["results"]),
        versions=_marked("versions", sections["versions"]),
    )


def section(text: str, name: str) -> str:
    """The section `name` of a README, or "" where it has none."""
    match = re.search(f"{_begin(name)}\n(.*?)\n{_end(name)}", text, re.DOTALL)
    return match[1] if match else ""


def with_section(text: str, name: str, body: str) -> str:
    """`text` with `body` as its section `name`; raises ModelError if it has no such section."""
    pattern = re.compile(f"{_begin(name)}\n.*?\n{_end(name)}", re.DOTALL)
    if not pattern.search(text):
        raise ModelError(
            f"README.md has no section marked {_begin(name)}: write it with onnx-attn models build"
        )
    return pattern.sub(lambda _: _marked(name, body), text)


def _begin(name: str) -> str:
    return f"<!-- {name}: begin -->"


def _end(name: str) -> str:
    return f"<!-- {name}: end -->"


def _marked(name: str, body: str) -> str:
    return f"{_begin(name)}\n{body}\n{_end(name)}"


def _options(entry: Entry) -> str:
    defaults = LayerConfig()
    layer = [
        f"{key}={value!r}"
        for key, value in vars(entry.config).items()
        if key != "layer" and value != getattr(defaults, key)
    ]
    options = ["path", *(f"{key}={value!r}" for key, value in entry.options.items())]
    return f"`{entry.config.layer}({', '.join(layer)}).export({', '.join(options)})`"


def _cases() -> str:
    lines: list[str] = []
    for entry in CATALOGUE:
        cases = "; ".join(
            f"{number} {case.what} ({case.batch}x{case.Tq}x{case.Tv})"
            for number, case in enumerate(entry.cases)
        )
        lines.append(f"* `{entry.name}`: {cases}")
    return "\n".join(lines)


TEMPLATE = """\
# Models

Attention layers as files, each with test vectors. Made by `onnx-attn models build models`; checked
by `onnx-attn models check models` (the same files come out again) and `onnx-attn verify models`
(the files give these numbers).

{table}

Inputs in brackets may be left out. Every dim that a file names is free: batch, lengths and, but
for `additive`, whose trained scale has 8 numbers, dims of the vectors.

## The files

`NAME/model.onnx`, and beside it `test_data_set_K/input_N.pb` and `output_N.pb`: one serialized
`TensorProto` each, whose `name` is that of the input or output, N in the order of the file. This is
the layout of ONNX's own tests: `onnx.backend.test` and ONNX Runtime's `onnx_test_runner` read it.
Each set feeds every input of its file. (`onnx_test_runner` counts required inputs only: it is not
made for sets like those of `optional_inputs`.)

A number is right if `|result - expected| <= atol + rtol * |expected|`. `data.json` states both for
onnx's tests, `config.txt` for ONNX Runtime's (`per_sample_tolerance` is atol). `SHA256SUMS` lists
all files: `sha256sum --check SHA256SUMS`.

Expected outputs are computed in float64 by `onnx_attn/reference.py`, which has no ONNX in it, and
rounded to the file's type; `score - 1e9` is rounded to the type the file computes in, since that
decides what a row without any key gives. Inputs are multiples of 1/1024 or integers, which every
float type here holds exactly.

`training` is fed False, so that its numbers are fixed. A run with True is judged by `verify`
itself: every weight is 0 or the undropped weight times 1/(1-rate), the share of zeros fits the
rate (within 6 standard deviations), two runs differ, and the output follows from the weights.

What each set is (batch x Tq x Tv):

{cases}

## What runs where

The largest absolute error over all sets of a model. "no": known not to work, and seen not to.

{results}

## Versions

{versions}
"""
