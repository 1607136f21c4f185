"""Runtimes for JavaScript: ONNX Runtime in Node, as WebAssembly in Node, and in a browser."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from .children import run_children
from .environments import node_packages
from .runtime import Answer, ModelFacts, Report, RuntimeMissingError, Task, bfloat16_limit, one_line

PROGRAMS = Path(__file__).with_name("js")
CHROMIUM = "ONNX_ATTN_CHROMIUM"
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


class _InNode:
    """A program of the folder js/, run by Node."""

    package: str
    program: str
    arguments: tuple[str, ...] = ()
    _folder: Path

    def start(self, install: bool, report: Report) -> str:
        self._folder = node_packages(PROGRAMS, install, report)
        packages = json.loads((PROGRAMS / "package.json").read_text())["dependencies"]
        return packages[self.package]

    def run(self, tasks: Sequence[Task]) -> Iterator[Answer]:
        node = shutil.which("node") or "node"
        return run_children([node, str(self._folder / self.program), *self.arguments], tasks)


class Node(_InNode):
    """onnxruntime-node: ONNX Runtime's native library."""

    name = "node"
    title = "onnxruntime-node"
    package = "onnxruntime-node"
    program = "node.mjs"
    arguments = ("onnxruntime-node",)

    def limit(self, facts: ModelFacts) -> str | None:
        if facts.optional_inputs:
            return "ignores, without a word, what is fed to optional inputs"
        return bfloat16_limit(facts)


class Web(_InNode):
    """onnxruntime-web's WebAssembly, in Node."""

    name = "web"
    title = "onnxruntime-web in Node"
    package = "onnxruntime-web"
    program = "node.mjs"
    arguments = ("onnxruntime-web",)

    def limit(self, facts: ModelFacts) -> str | None:
        return _web_limit(facts)


class Browser(_InNode):
    """onnxruntime-web's WebAssembly, in headless Chromium."""

    name = "browser"
    title = "onnxruntime-web in Chromium"
    package = "onnxruntime-web"
    program = "browser.mjs"

    def start(self, install: bool, report: Report) -> str:
        chromium = _chromium()
        version = super().start(install, report)
        self.arguments = (chromium,)
        return f"{version}, {_version(chromium)}"

    def limit(self, facts: ModelFacts) -> str | None:
        return _web_limit(facts)


def _web_limit(facts: ModelFacts) -> str | None:
    if facts.optional_inputs:
        return "refuses what is fed to optional inputs"
    return bfloat16_limit(facts)


def _chromium() -> str:
    if given := os.environ.get(CHROMIUM):
        if shutil.which(given) is None:
            raise RuntimeMissingError(f"{CHROMIUM}={given} is no program")
        return given
    for name in CHROMIUM_NAMES:
        if path := shutil.which(name):
            return path
    raise RuntimeMissingError(
        f"Chromium is not there: apt-get install chromium, or set {CHROMIUM} to a Chrome's path"
    )


def _version(chromium: str) -> str:
    try:
        said = subprocess.run(
            [chromium, "--version"], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise RuntimeMissingError(f"{chromium} --version failed: {one_line(error)}") from error
    # "Chromium 156.0.8078.79 built on ...": the name and the major version.
    words = said.stdout.split()
    number = next((word for word in words if word[0].isdigit()), "of unknown version")
    return f"Chromium {number.split('.')[0]}"
