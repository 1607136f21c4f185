"""What a GPU computes and how fast, in one command and under eight minutes.

    pip install '.[cuda,test]' torch
    python benchmarks/cuda_check.py --output benchmarks/cuda.json

The tests marked cuda; every file of models/ on CUDA against its vectors; the schedules dense and
fused against torch's scaled_dot_product_attention. Each step is a process of its own with a limit
of time: a crash, a hang or a missing package costs that step alone. Written as JSON, and as tables
beside it (.md), after each step. Exit code 0: all right; 1: a step failed or a number is off; 2:
this machine has no GPU that starts (nothing is written), or bad arguments.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from onnx_attn.bench.report.tables import duration, table
from onnx_attn.device import cuda

STEPS_PROGRAM = Path(__file__).with_name("cuda_steps.py")
# Seconds of all steps, and the most of one; a step that would begin later is left out.
ALL_SECONDS = 450
TESTS_SECONDS, MODELS_SECONDS, CELL_SECONDS = 150, 90, 60
SHAPES = ((1, 4096), (16, 512), (1, 16384))
DIM = 64
DTYPES = ("float32", "float16", "bfloat16")
LAST_WORDS = 600

Step = tuple[str, Sequence[str], int]


def steps(device: str) -> list[Step]:
    """Name, arguments of cuda_steps.py and limit of each step."""
    found: list[Step] = [
        ("device", ("device", device), CELL_SECONDS),
        ("tests", ("tests",), TESTS_SECONDS),
        ("models", ("models", device), MODELS_SECONDS),
    ]
    for batch, length in SHAPES:
        for dtype in DTYPES:
            name = f"{batch}x{length}x{length}x{DIM} {dtype}"
            found.append((name, ("cell", device, str(batch), str(length), dtype), CELL_SECONDS))
    return found


def run_step(arguments: Sequence[str], seconds: float) -> dict[str, Any]:
    """What a step says: the last line that it prints is JSON, also where it is cut off later."""
    command = [sys.executable, str(STEPS_PROGRAM), *arguments]
    start = time.monotonic()
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as child:
        try:
            out, err = child.communicate(timeout=seconds)
            ended = f"ended with code {child.returncode}"
        except subprocess.TimeoutExpired:
            kill_group(child.pid)
            out, err = child.communicate()
            ended = f"not ended after {seconds:.0f} s"
        finally:
            kill_group(child.pid)
    said: dict[str, Any] = {}
    for line in out.splitlines():
        if line.startswith("{"):
            said = json.loads(line)
    failed = child.returncode != 0 or not said
    status = "failed" if failed else "wrong" if said.get("wrong") else "ok"
    return {
        "status": status,
        "seconds": round(time.monotonic() - start, 1),
        "result": said,
        "reason": f"{ended}: {err.strip()[-LAST_WORDS:]}" if failed else None,
    }


def kill_group(leader: int) -> None:
    """End what a step started, and itself."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def wrong(results: dict[str, Any]) -> list[str]:
    """Each step that failed, and each result that is off, in words."""
    found: list[str] = []
    for name, step in results["steps"].items():
        if step["reason"]:
            found.append(f"{name}: {step['reason']}")
        result = step["result"]
        found += [f"{name}: {line}" for line in result.get("wrong", [])]
        for who, one in result.get("candidates", {}).items():
            if one["status"] != "ok":
                found.append(f"{name}, {who}: {one['status']}: {one['reason']}")
    return found


def markdown(results: dict[str, Any]) -> str:
    """The tables of a run."""
    done = results["steps"]
    facts = done.get("device", {}).get("result", {})
    lines = [
        "# On a GPU",
        "",
        f"`python benchmarks/cuda_check.py`, {results['made']}, {results['seconds']} s. "
        + ". ".join(f"{name}: {text}" for name, text in facts.items() if name != "wrong")
        + ".",
        "",
        table(
            ("step", "", "seconds", "what"),
            [
                [name, step["status"], f"{step['seconds']}", step["result"].get("summary", "")]
                for name, step in done.items()
            ],
        ),
    ]
    rows: list[list[str]] = []
    for name, step in done.items():
        each = step["result"].get("candidates")
        if each:
            rows.append([name, *(_cell(each.get(who)) for who in ("dense", "fused", "torch"))])
    if rows:
        lines += [
            "",
            "## Against torch",
            "",
            "Median of a call with inputs and output on the device; in brackets the largest error "
            "over the largest number, against float64 of the same inputs.",
            "",
            table(("cell", "dense", "fused", "torch SDPA"), rows),
        ]
    off = wrong(results)
    lines += ["", "## What is wrong", "", *([f"* {line}" for line in off] or ["Nothing."])]
    return "\n".join(lines) + "\n"


def _cell(result: dict[str, Any] | None) -> str:
    if result is None:
        return "-"
    if "median" not in result:
        return result["status"]
    bad = "" if result["status"] == "ok" else f" **{result['status']}**"
    return f"{duration(result['median'])} ({result['error']:.0e}){bad}"


def write(path: Path, results: dict[str, Any]) -> None:
    """Both files, each whole."""
    for name, text in ((path, json.dumps(results, indent=1)), (path.with_suffix(".md"), None)):
        part = name.with_name(f".{name.name}.part")
        part.write_text((text + "\n") if text is not None else markdown(results))
        part.replace(name)


def main() -> int:
    """Run the steps; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", "-o", type=Path, default=Path("cuda.json"))
    parser.add_argument("--seconds", type=float, default=ALL_SECONDS, help="of all steps")
    parser.add_argument("--only", action="append", help="steps whose name contains this")
    parser.add_argument(
        "--device",
        choices=("cuda", "cpu"),
        default="cuda",
        help="cpu tries out the steps themselves; it says nothing of a GPU",
    )
    given = parser.parse_args()
    if not given.output.parent.is_dir():
        parser.exit(2, f"error: --output: there is no folder {given.output.parent}\n")
    if given.device == "cuda":
        missing = cuda.missing_piece()
        if missing is not None:
            parser.exit(2, f"error: no GPU was measured: {missing}\n")
    begin = time.monotonic()
    results: dict[str, Any] = {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": given.device,
        "steps": {},
    }
    for name, arguments, most in steps(given.device):
        if given.only and not any(word in name for word in given.only):
            continue
        left = given.seconds - (time.monotonic() - begin)
        if left < 1:
            step = {
                "status": "left out",
                "seconds": 0.0,
                "result": {},
                "reason": f"no time left of {given.seconds:.0f} s",
            }
        else:
            step = run_step(arguments, min(most, left))
        results["steps"][name] = step
        results["seconds"] = round(time.monotonic() - begin, 1)
        write(given.output, results)
        print(f"{step['status']:8} {step['seconds']:6} s  {name}", flush=True)  # noqa: T201
    off = wrong(results)
    for line in off:
        print(f"wrong: {line}")  # noqa: T201
    print(f"wrote {given.output} and {given.output.with_suffix('.md')}")  # noqa: T201
    return 1 if off else 0


if __name__ == "__main__":
    sys.exit(main())
