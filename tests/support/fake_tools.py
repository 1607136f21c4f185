"""Tools that do one thing each to a file, in a module that child processes can import."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from onnx_attn.verify.tools.tool import Call, Case, Product


def untouched(case: Case, folder: Path) -> Product:
    del folder
    return Product(case.load(), case.calls)


def wrong(case: Case, folder: Path) -> Product:
    del folder
    call = case.calls[0]
    return Product(case.path, (Call(call.feeds, (call.wanted[0] + 1,)),))


def raises(case: Case, folder: Path, words: str) -> Product:
    del case
    raise ValueError(f"{words} in {folder}/x\nand more")


def leaves(case: Case, folder: Path) -> Product:
    del case, folder
    raise SystemExit("usage")


def crashes(case: Case, folder: Path) -> Product:
    del case, folder
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def hangs(case: Case, folder: Path) -> Product:
    del case, folder
    time.sleep(600)
    raise AssertionError
