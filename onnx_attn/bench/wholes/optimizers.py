"""Who makes a whole model faster: each takes a file and writes one."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from ...arrays import Array
from ...errors import InputError, OnnxAttnError
from ...rewrite.runs import Runner
from ..candidate import Candidate, CannotError, Kind, Prepare, Prepared
from ..candidates import imported
from .models import GRAPH, GRAPHS, Graph, Whole, file_of
from .skeleton import draw

Make = Callable[[Path, Path, Graph], None]
REASON = ".reason"
ORIGINAL = "original"


def rewritten(source: Path, target: Path, graph: Graph) -> None:  # noqa: ARG001
    """Ours: every site that can be rewritten is."""
    from ...rewrite import rewrite_model

    try:
        result = rewrite_model(source, keep_all=True)
    except OnnxAttnError as error:
        raise CannotError(str(error)) from error
    if result.model is None:
        reasons = {site.reason for site in result.sites if site.reason}
        raise CannotError("; ".join(sorted(reasons)) or "no attention found")
    target.write_bytes(result.model.SerializeToString())


def runtime_transformers(source: Path, target: Path, graph: Graph) -> None:
    """ONNX Runtime's optimizer of transformers, told the model's type and heads."""
    optimizer: Any = import_module("onnxruntime.transformers.optimizer")
    optimized = optimizer.optimize_model(
        str(source), model_type=graph.model_type, num_heads=graph.heads, hidden_size=graph.width
    )
    optimized.save_model_to_file(str(target))


def onnxscript_fusions(source: Path, target: Path, graph: Graph) -> None:  # noqa: ARG001
    """onnxscript's fusions for ONNX Runtime."""
    ir: Any = import_module("onnx_ir")
    fusions: Any = import_module("onnxscript.rewriter.ort_fusions")
    model, _ = fusions.optimize_for_ort(ir.load(str(source)))
    ir.save(model, str(target))


MAKERS: dict[str, Make] = {
    "rewritten": rewritten,
    "ort-transformers": runtime_transformers,
    "onnxscript-ort": onnxscript_fusions,
}


def write_original(graph: str, folder: Path) -> None:
    """Draw the weights of a model and write it."""
    whole = Whole(graph, 1, 1, folder=str(folder))
    model = draw(GRAPHS / f"{graph}.onnx.gz")
    file_of(whole, ORIGINAL).write_bytes(model.SerializeToString())


def make(graph: str, candidate: str, folder: str) -> None:
    """Write a candidate's form of a model, or beside its place why there is none."""
    whole = Whole(graph, 1, 1, folder=folder)
    target = file_of(whole, candidate)
    maker: Make = MAKERS[candidate] if candidate in MAKERS else imported(candidate)
    maker(file_of(whole, ORIGINAL), target, GRAPH[graph])


def give_reason(graph: str, candidate: str, folder: Path, reason: str) -> None:
    """Note why a candidate has no form of a model: its cells say so."""
    path = file_of(Whole(graph, 1, 1, folder=str(folder)), candidate)
    path.with_suffix(REASON).write_text(reason)


def made(whole: Whole, candidate: str) -> Path:
    """The file a candidate made; raises CannotError where it made none."""
    path = file_of(whole, candidate)
    reason = path.with_suffix(REASON)
    if reason.exists():
        raise CannotError(reason.read_text())
    return path


def session_of(path: Path, threads: int) -> Runner:
    """ONNX Runtime with a file."""
    return Runner(path.read_bytes(), None, path.name, threads)


def _run(name: str) -> Prepare:
    def prepare(whole: Whole, tensors: dict[str, Array], threads: int) -> Prepared:
        runner = session_of(made(whole, name), threads)

        def arrays(result: Any) -> dict[str, Array]:
            return dict(zip(runner.outputs, result, strict=True))

        return Prepared(lambda: runner(tensors), arrays)

    return prepare


def candidates() -> dict[str, Candidate]:
    """The original, ours and the peers, by name."""
    torch = (("torch",),)  # its optimizer imports it
    known: list[tuple[str, str, Kind, tuple[tuple[str, ...], ...]]] = [
        (ORIGINAL, "original", "original", ()),
        ("rewritten", "ours", "ours", ()),
        ("ort-transformers", "onnxruntime.transformers", "peer", torch),
        ("onnxscript-ort", "onnxscript's optimize_for_ort", "peer", ()),
    ]
    return {
        name: Candidate(name, label, kind, _run(name), packages)
        for name, label, kind, packages in known
    }


def find(name: str) -> Candidate:
    """The candidate called `name`, or one of your own as `module:attribute`.

    The attribute is a function of (source path, target path, `Graph`) that writes the target.
    Raises InputError for a name nobody has.
    """
    if ":" in name:
        imported(name)
        return Candidate(name, name, "peer", _run(name))
    known = candidates()
    if name not in known:
        raise InputError(f"nobody called {name!r} makes models; candidates: {', '.join(known)}")
    return known[name]
