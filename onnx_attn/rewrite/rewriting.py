"""From a model to its rewritten form: find, build, prove, race."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from ..errors import InputError, ModelError
from ..version import __version__
from .dims import Dims
from .expressions import ZERO
from .masks import bias_sizes, words_of
from .normal import Source, normal_form, read_source
from .proof import Prover
from .race import race
from .report import Result, SiteReport
from .runs import RunError
from .samples import Feeds, Sampler
from .sharing import share_masks
from .sites import Site, find_sites
from .splice import WALK_FROM, Splicer
from .triangles import hides_nothing

DEFAULT_BATCH, DEFAULT_LENGTH = 1, 512


def rewrite_model(
    model: onnx.ModelProto | str | os.PathLike[str],
    *,
    inputs: Mapping[str, Any] | None = None,
    at: Mapping[str, int] | None = None,
    keep_all: bool = False,
    max_difference: float = 1e-4,
    walk_from: int = WALK_FROM,
) -> Result:
    """The model with a walk over blocks in the place of its attention, proven to give the same.

    Args:
        model: A model in memory or the path of one; with weights in files of their own the path.
        inputs: Arrays by input name to prove it on, beside made ones, and to race it on.
        at: Sizes of the race by the names of the inputs' dims, like {"batch": 8, "seq": 512}.
        keep_all: Rewrite every site that can be proven, without a race.
        max_difference: The largest difference of an output, relative to its largest magnitude.
        walk_from: Fewer queries or keys take the nodes that were there.

    Raises:
        InputError: `inputs` or `at` do not fit the model.
        ModelError: There is no such model, or it does not run as it is.
        OnnxAttnError: An output of the rewritten model differs by more than `max_difference`; the
            message names the site.
    """
    if not 0 < max_difference < 1:
        raise InputError(f"max_difference must be above 0 and below 1; received {max_difference}")
    for name, size in (at or {}).items():
        if type(size) is not int or size < 1:
            raise InputError(f"at: {name} must be a positive integer; received {size!r}")
    source = read_source(model)
    before: dict[str, Any] = {"bytes": source.size, "nodes": _count(source.proto)}
    try:
        builder = Builder(source, walk_from)
    except ModelError as error:
        names = _softmax_names(source.proto)
        if not names:
            raise
        Prover(source, Sampler(ir.from_proto(source.proto), []), inputs, at)
        sites = [SiteReport(name, False, str(error)) for name in names]
        return Result(None, sites, max_difference, None, before)
    sampler = Sampler(builder.model(), builder.sites)
    sampler.sizes(1, 1, at)  # unknown names are an error whatever is found
    reports = [
        SiteReport(site.name, site.reason is None, site.reason, words_of(site, builder.dims))
        for site in builder.sites
    ]
    result = Result(None, reports, max_difference, None, before)
    if not reports:
        fused = _fused(source.proto)
        result.notes.append(
            f"its attention is written as {fused}: there is no Softmax to begin at"
            if fused
            else "the model has no Softmax, so no attention was found"
        )
    prover = Prover(source, sampler, inputs, at)
    if not keep_all:
        _leave_short(builder, reports)
    names = [report.name for report in reports if report.rewritten]
    if not names:
        return result
    result.proof = prover.prove(builder.build, names, max_difference)
    after = builder.build(names)
    if not keep_all:
        kept = _race(builder, prover, result, names, inputs, at)
        if len(kept) < len(names) and kept:
            after = builder.build(kept)
            result.proof = prover.prove(builder.build, kept, max_difference)
        if not kept:
            return result
    result.model = after
    size = after.ByteSize() + source.size - source.proto.ByteSize()
    result.after = {**(result.after or {}), "bytes": size, "nodes": _count(after)}
    return result


class Builder:
    """Writes one model with any of its sites rewritten."""

    def __init__(self, source: Source, walk_from: int) -> None:
        self.source, self.walk_from = source, walk_from
        model, sites = self._found()
        self.sites = sites
        self._model = model
        self.dims = Dims(model)
        self._built: tuple[tuple[str, ...], onnx.ModelProto] | None = None

    def _found(self) -> tuple[ir.Model, list[Site]]:
        model = normal_form(self.source)
        readable = [site for site in find_sites(model) if site.reason is None]
        if readable:
            share_masks(model, readable)
        sites = find_sites(model)
        dims = Dims(model)
        for site in sites:
            if site.scores is None or site.reason is not None:
                continue
            if bias_sizes(site.scores.bias, dims) is None:
                site.reason = "the rank of its mask is unknown"
            source = site.softmax.inputs[0]
            sizes = None if source is None else dims.of(source)
            if sizes and hides_nothing(site.scores.bias, dims, sizes[-2], sizes[-1]):
                site.scores = replace(site.scores, bias=ZERO)
        return model, sites

    def model(self) -> ir.Model:
        """The normal form that the sites were found in."""
        return self._model

    def build(self, names: Sequence[str]) -> onnx.ModelProto:
        """The model with the sites of these names rewritten."""
        wanted = tuple(names)
        if self._built is not None and self._built[0] == wanted:
            return self._built[1]
        model, sites = self._found()
        splicer = Splicer(model, self.walk_from)
        for site in sites:
            if site.name in wanted:
                splicer.rewrite(site)
        splicer.finish()
        proto = ir.to_proto(model)
        del proto.graph.value_info[:]
        proto.metadata_props.add(key="onnx_attn.rewritten", value=__version__)
        self._built = wanted, proto
        return proto

    def classes(self, names: Sequence[str]) -> list[list[str]]:
        """Names of sites by kind: those of one bias and shape gain or lose together."""
        kinds: dict[Any, list[str]] = {}
        for site in self.sites:
            if site.name in names:
                assert site.product is not None
                widths = self.dims.of(site.product.query.value)
                kinds.setdefault((words_of(site, self.dims), widths), []).append(site.name)
        return list(kinds.values())


def _leave_short(builder: Builder, reports: list[SiteReport]) -> None:
    """Sites whose lengths are known and short are not worth a race."""
    for site, report in zip(builder.sites, reports, strict=True):
        source = site.softmax.inputs[0]
        sizes = None if source is None else builder.dims.of(source)
        if report.rewritten and sizes and all(isinstance(size, int) for size in sizes[-2:]):
            queries, keys = sizes[-2:]
            if min(queries, keys) < builder.walk_from:  # pyright: ignore
                report.rewritten = False
                report.reason = f"too short to gain: {queries} queries and {keys} keys"


def _race(
    builder: Builder,
    prover: Prover,
    result: Result,
    names: list[str],
    inputs: Mapping[str, Any] | None,
    at: Mapping[str, int] | None,
) -> list[str]:
    """The names of the sites that gain; notes the figures."""
    source = builder.source
    feeds, words = _raced_on(prover, inputs, at, result)
    kept: list[str] = []
    classes = builder.classes(names)
    beside = source.size - source.proto.ByteSize()
    outcome = None
    for members in classes:
        new = builder.build(members)
        sizes = source.size, new.ByteSize() + beside
        outcome = race(source.proto, new, feeds, source.folder, sizes)
        gains = outcome.faster or outcome.lighter
        line = f"at {words}: {outcome.words}"
        result.notes.append(f"{len(members)} sites like {members[0]!r} {line}")
        if gains:
            kept += members
            continue
        for report in result.sites:
            if report.name in members:
                report.rewritten = False
                report.reason = f"no clear gain {line}"
    kept = [name for name in names if name in kept]
    if kept and len(classes) > 1:
        new = builder.build(kept)
        sizes = source.size, new.ByteSize() + beside
        outcome = race(source.proto, new, feeds, source.folder, sizes)
        result.notes.append(f"all {len(kept)} rewritten sites at {words}: {outcome.words}")
    if outcome is not None:
        result.before |= outcome.before.report()
        result.after = outcome.after.report() if kept else None
    return kept


def _raced_on(
    prover: Prover,
    inputs: Mapping[str, Any] | None,
    at: Mapping[str, int] | None,
    result: Result,
) -> tuple[Feeds, str]:
    """What both models are run on, and words for it."""
    if inputs is not None and at is None:
        return {name: np.asarray(array) for name, array in inputs.items()}, "the inputs given"
    sampler = prover.sampler
    failed = ""
    for length in (DEFAULT_LENGTH, 256, prover.length):
        sizes = sampler.sizes(DEFAULT_BATCH, length, at)
        feeds = sampler.make(sizes, "tails" if sizes and max(sizes.values()) > 1 else "none")
        try:
            prover.original(feeds)
        except RunError as error:
            failed = str(error)
            continue
        result.at = sizes
        words = ", ".join(f"{name}={size}" for name, size in sizes.items()) or "its fixed sizes"
        return feeds, words if at else f"{words} (sizes not given: name them with at)"
    if at:
        raise InputError(f"at: the original does not run at {dict(at)}: {failed}")
    sample, _ = prover.samples[0]
    return sample.feeds, sample.words


def _count(proto: onnx.ModelProto) -> int:
    """Nodes, those in bodies included."""
    total, graphs = 0, [proto.graph]
    while graphs:
        graph = graphs.pop()
        total += len(graph.node)
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    graphs.append(attribute.g)
                graphs += attribute.graphs
    return total


def _fused(proto: onnx.ModelProto) -> str:
    """The operators that compute attention whole, as optimizers and newer exporters write them."""
    names = {
        f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        for node in proto.graph.node
        if node.op_type.endswith("Attention")
    }
    return ", ".join(sorted(names))


def _softmax_names(proto: onnx.ModelProto) -> list[str]:
    return [
        node.name or f"Softmax of {node.output[0]}"
        for node in proto.graph.node
        if node.op_type == "Softmax"
    ]
