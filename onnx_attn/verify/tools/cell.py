"""One cell of the table: one tool over one file, in a child process with a time limit."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import warnings
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path

import numpy as np

from .tool import Array, Call, Case, Tool

WHY_LENGTH = 400


@dataclass(frozen=True)
class Outcome:
    """The largest error of a tool's product, or why there is none."""

    error: float | None = None
    why: str | None = None


def start_server() -> SpawnContext | ForkServerContext:
    """Where children come from: forked off a process that has imported what all need."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "onnx_attn.verify.tools.registry",
            "onnx_attn.verify.tools.cell",
            "onnx_attn.cli.app",
            "onnx.version_converter",
            "onnxruntime.quantization",
            "onnxscript.version_converter",
        ]
    )
    return context


def measure(tool: Tool, case: Case, seconds: float) -> Outcome:
    """Run one cell in a child: a crash, an error and a hang are outcomes, not ends."""
    context = start_server()
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(tool, case, sender), daemon=True)
    child.start()
    sender.close()
    try:
        if not receiver.poll(seconds):
            return Outcome(why=f"no end within {seconds:g} s")
        return receiver.recv()
    except EOFError:
        child.join(seconds)
        return Outcome(why=_death(child.exitcode))
    finally:
        child.kill()
        child.join()
        receiver.close()


def judge(tool: Tool, case: Case, folder: Path) -> Outcome:
    """Apply the tool, run what it made, compare with the reference."""
    product = tool.apply(case, folder)
    made = product.run(product.path(folder), [call.feeds for call in product.calls])
    error = max(_error(outputs, call) for outputs, call in zip(made, product.calls, strict=True))
    if not error <= tool.tolerance:  # NaN is off, too
        return Outcome(why=f"numbers are off by {error:.1g}")
    return Outcome(error=error)


def _error(outputs: list[Array], call: Call) -> float:
    if len(outputs) != len(call.wanted):
        raise ValueError(f"{len(outputs)} outputs, expected {len(call.wanted)}")
    for output, wanted in zip(outputs, call.wanted, strict=True):
        if output.shape != wanted.shape:
            raise ValueError(f"an output of shape {output.shape}, expected {wanted.shape}")
    return max(
        float(np.max(np.abs(output.astype(np.float64) - wanted)))
        for output, wanted in zip(outputs, call.wanted, strict=True)
    )


def _child(tool: Tool, case: Case, sender: Connection) -> None:
    # Tools print; what they say of an error is in the exception.
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        try:
            outcome = judge(tool, case, Path(folder))
        # Whatever a tool raises is the cell; SystemExit too: some tools call exit().
        except (Exception, SystemExit) as error:
            words = " ".join(str(error).replace(folder, "").split())
            outcome = Outcome(why=f"{type(error).__name__}: {words}"[:WHY_LENGTH])
        sender.send(outcome)
    sender.close()


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        return f"the process died of {signal.Signals(-code).name}"
    return f"the process ended without an answer, exit code {code}"
