"""Promise: every schedule gives the same numbers, and the one that runs is the one that pays.

The thresholds are shrunk where small tensors must cross them: a graph reads them when it is built.
What the real thresholds decide is looked up in ONNX Runtime's own record of the nodes it ran.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from golden import CALLS, FILE_CASES, compare, feeds_of, load
from golden import make_layer as golden_layer
from onnx_attn import AttentionSession
from onnx_attn.graph.schedules import thresholds
from onnx_attn.reference import attention
from oracle import MODES, close, wanted_of, weights_for
from protos import nodes_of
from schedules import (
    GOOD,
    LENGTHS,
    MASKS,
    SHRUNK,
    WRONG,
    masks_for,
    model_of,
    nodes_run,
    numbers,
    raw,
    session_for,
    shaped,
    stretched,
)
from strategies import TOLERANCE, Case, cases


@pytest.mark.parametrize("schedule", ["auto", "tiled"])
@pytest.mark.parametrize("mode", MODES)
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_schedule_agrees_with_the_reference(
    limits: str, mode: str, schedule: str, data: st.DataObject
) -> None:
    dtype = data.draw(st.sampled_from(["float32", "float64", "float16", "bfloat16"]))
    case: Case = data.draw(cases(dtype, largest=20 if limits == "shrunk" else 9))
    if limits == "real" and mode == "dot":
        longest = data.draw(st.sampled_from([0, 129, 256, 300, 341, 513]))
        case = stretched(case, longest) if longest else case
    causal, use_scale = data.draw(st.booleans()), data.draw(st.booleans())
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    weights = weights_for(mode, use_scale, case.query.shape[-1], rng)
    typed = {name: weight.astype(case.query.dtype) for name, weight in weights.items()}
    scores_wanted = data.draw(st.booleans())
    session = session_for(
        limits,
        mode,
        {"use_scale": use_scale, "causal": causal, "dtype": dtype},
        return_attention_scores=scores_wanted,
        masks=data.draw(st.sampled_from(masks_for(case))),
        scale="input" if weights else "constant",
        schedule=schedule,
    )
    results = session.run({**case.feeds(), **typed})
    output, scores = wanted_of(case, mode, causal, typed, dtype)
    close(results["output"], output, dtype)
    if scores_wanted:
        close(results["attention_scores"], scores, dtype)


# (batch, Tq, Tv); shrunk, the last four take causal parts: halves, four of them, four, eight.
SMALL_SHAPES = [(1, 1, 1), (2, 3, 5), (3, 6, 6), (2, 9, 4), (2, 5, 11), (2, 14, 13)]
SMALL_SHAPES += [(1, 10, 10), (2, 13, 13), (3, 16, 16), (1, 57, 57)]


@pytest.mark.parametrize("schedule", ["auto", "tiled"])
@pytest.mark.parametrize("masks", ["both", "none"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_reference_evaluator_runs_every_branch(
    mode: str, causal: bool, masks: str, schedule: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, number in SHRUNK.items():
            patch.setattr(thresholds, name, number)
        model = model_of(
            mode, {"causal": causal, "use_scale": False}, masks=masks, schedule=schedule
        )
    evaluator = ReferenceEvaluator(model)
    rng = np.random.default_rng(3)
    for batch, queries, keys in SMALL_SHAPES:
        for hidden in ("nothing", "tail", "front", "row", "gap"):
            value_mask = np.ones((batch, keys), np.bool_)
            if hidden == "tail":
                value_mask[0, keys // 2 :] = False
            elif hidden == "front":
                value_mask[-1, : keys // 2] = False
            elif hidden == "row":
                value_mask[0] = False
            elif hidden == "gap":
                value_mask[0, 1:-1:2] = False
            if masks == "none" and hidden != "nothing":
                continue
            case = Case(
                query=rng.uniform(-1, 1, (batch, queries, 4)).astype(np.float32),
                value=rng.uniform(-1, 1, (batch, keys, 3)).astype(np.float32),
                key=rng.uniform(-1, 1, (batch, keys, 4)).astype(np.float32),
                query_mask=np.array([[True]]) if masks == "both" else None,
                value_mask=value_mask if masks == "both" else None,
            )
            (output,) = evaluator.run(None, case.feeds())
            close(output, wanted_of(case, mode, causal, {}, "float32")[0], "float32")


# Where a key's weight is 0 for |scores| < 5e8, tiles do not read it: no NaN, no larger score.
NOT_IN_TILES = {"nan_in_masked_value", "mask_leak_below_1e9"}
assert set(CALLS) >= NOT_IN_TILES


@pytest.mark.usefixtures("limits")
@pytest.mark.parametrize("schedule", ["auto", "dense", "tiled"])
@pytest.mark.parametrize("name", [name for name in FILE_CASES if name not in NOT_IN_TILES])
def test_golden_cases_in_every_schedule(name: str, schedule: str) -> None:
    case = CALLS[name]
    arrays = load(case)
    model = golden_layer(case, arrays).to_onnx(schedule=schedule, return_attention_scores=True)
    results = AttentionSession(model.SerializeToString(), device="cpu").run(feeds_of(case, arrays))
    compare(results["output"], arrays["output"], case)
    if "scores" in arrays:
        compare(results["attention_scores"], arrays["scores"], case)


ONE = np.array([[True]])
# What runs: (causal, batch, Tq, Tv, dim, value mask or None), and how many Scans and Softmaxes.
CHOICES = {
    "tiny": ((False, 1, 16, 16, 64, ONE), 0, 1),
    "tiny causal, masked": ((True, 1, 16, 16, 64, np.ones((1, 16), np.bool_)), 0, 1),
    "decoding": ((False, 64, 1, 50, 512, ONE), 0, 1),
    "decoding, long": ((False, 1, 1, 4096, 64, ONE), 0, 1),
    "short": ((False, 32, 128, 128, 64, ONE), 0, 1),
    "plain 512": ((False, 2, 512, 512, 64, ONE), 0, 1),
    "plain 3,072": ((False, 1, 3072, 3072, 16, ONE), 0, 1),
    "plain, many scores": ((False, 2, 3072, 3072, 16, ONE), 3, 12),
    "plain, many scores in short rows": ((False, 70, 512, 512, 16, ONE), 0, 1),
    "causal 128": ((True, 4, 128, 128, 64, ONE), 0, 1),
    "causal 512: halves": ((True, 2, 512, 512, 32, ONE), 0, 2),
    "causal 511: halves of odd length": ((True, 2, 511, 511, 32, ONE), 0, 2),
    "causal, many rows: four parts": ((True, 4, 512, 512, 32, ONE), 0, 4),
    "causal 1,024: four longer parts": ((True, 1, 1024, 1024, 32, ONE), 0, 4),
    "causal, longer, more rows: eight parts": ((True, 3, 1021, 1021, 32, ONE), 0, 8),
    "causal 1,501: eight parts": ((True, 1, 1501, 1501, 32, ONE), 0, 8),
    "causal, too many scores: row by row": ((True, 9, 2048, 2048, 1, ONE), 10, 72),
    "causal, a key more than queries: row by row": ((True, 1, 512, 513, 32, ONE), 2, 2),
    "causal, a query without a key: row by row": ((True, 1, 513, 512, 32, ONE), 2, 3),
    "ragged 512": ((False, 2, 512, 512, 32, np.arange(512)[None] < [[128], [512]]), 3, 2),
    "causal, ragged": ((True, 2, 512, 512, 32, np.arange(512)[None] < [[128], [512]]), 0, 4),
    "causal, little shown": ((True, 2, 512, 512, 32, np.arange(512)[None] < [[64], [320]]), 3, 4),
    "causal, ragged, long": ((True, 2, 768, 768, 32, np.arange(768)[None] < [[384], [768]]), 3, 6),
    "causal, ragged, many": (
        (True, 140, 512, 512, 1, np.ones((140, 512), np.bool_)),
        141,
        280,
    ),
    # The first row has queries that see nothing: two walks.
    "causal, front": ((True, 2, 512, 512, 32, np.arange(512)[None] >= [[128], [0]]), 4, 5),
}


@pytest.mark.parametrize("name", CHOICES)
def test_auto_takes_the_form_that_pays(name: str, tmp_path: Path) -> None:
    (causal, batch, queries, keys, dim, mask), scans, softmaxes = CHOICES[name]
    feeds = {
        "query": numbers(batch, queries, dim),
        "value": numbers(batch, keys, dim, seed=1),
        "key": numbers(batch, keys, dim, seed=2),
        "query_mask": ONE,
        "value_mask": mask,
    }
    model = model_of("dot", {"causal": causal})
    ran = nodes_run(model, feeds, tmp_path)
    assert (ran["Scan"], ran["Softmax"]) == (scans, softmaxes)
    if mask is ONE:
        # A mask of [[True]] costs what no mask costs.
        bare = {name: feeds[name] for name in ("query", "value", "key")}
        unmasked = nodes_run(model_of("dot", {"causal": causal}, masks="none"), bare, tmp_path)
        assert (unmasked["Scan"], unmasked["Softmax"]) == (scans, softmaxes)
    if softmaxes > 1:
        (tiled,) = raw(model).run(None, feeds)
        (dense,) = raw(model_of("dot", {"causal": causal}, schedule="dense")).run(None, feeds)
        np.testing.assert_allclose(tiled, dense, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("length", [100, 400, 401, 900, 1402])
@pytest.mark.parametrize("causal", [False, True])
def test_a_query_mask_alone_holds_in_every_form(causal: bool, length: int) -> None:
    query, shown = numbers(2, length, 8), np.arange(length)[None] >= [[50], [0]]
    masked = raw(model_of("dot", {"causal": causal}, masks="query"))
    (output,) = masked.run(
        None, {"query": query, "value": query, "key": query, "query_mask": shown}
    )
    wanted, _ = attention(query, query, query, query_mask=shown, causal=causal)
    assert not output[0, :50].any()
    np.testing.assert_allclose(output, wanted, **TOLERANCE["float32"])


@pytest.mark.parametrize("rows", ["own", "shared", "whole"])
@pytest.mark.parametrize("length", [303, 400, 697])
@pytest.mark.parametrize("causal", [False, True], ids=["rows", "causal parts"])
def test_gaps_in_a_value_mask(causal: bool, length: int, rows: str, tmp_path: Path) -> None:
    """Ragged rows, all but the last with gaps, one mask for all rows, or one bool a row.

    Every query sees a key; so causal files go in parts, others in rows, which are told apart by
    whether they have a gap.
    """
    query = numbers(3, length, 8)
    shown = np.arange(length)[None] < [[length // 2], [length], [length - 1]]
    shown[:2, 5:90:7] = False
    if rows == "shared":
        shown = shown[:1] | shown[1:2]
    elif rows == "whole":
        shown = np.array([[True], [True], [True]])
    feeds = {"query": query, "value": query, "key": query, "value_mask": shown}
    model = model_of("dot", {"causal": causal}, masks="value")
    assert (nodes_run(model, feeds, tmp_path)["Scan"] == 0) == causal
    (output,) = raw(model).run(None, feeds)
    wanted, _ = attention(
        query, query, query, value_mask=np.broadcast_to(shown, (3, length)), causal=causal
    )
    np.testing.assert_allclose(output, wanted, **TOLERANCE["float32"])


@pytest.mark.parametrize(("queries", "dim"), [(1, 64), (5, 129), (130, 129), (257, 512), (9, 768)])
@pytest.mark.parametrize("hidden", ["all", "front", "all but the last"])
@pytest.mark.parametrize("causal", [False, True])
def test_rows_without_a_key_are_keras_exact(
    causal: bool, hidden: str, queries: int, dim: int
) -> None:
    """Scores below 32 snap to one multiple of 64: equal weights over every key, future ones too."""
    keys = 300
    query, key = numbers(2, queries, dim) * 0.1, numbers(2, keys, dim, seed=2) * 0.1
    value = numbers(2, keys, 3, seed=1)
    mask = np.ones((2, keys), np.bool_)
    mask[0] = False
    if hidden == "front":
        mask[0, 150:] = True
    elif hidden == "all but the last":
        mask[0, -1] = True
    model = model_of("dot", {"causal": causal}, schedule="tiled", return_attention_scores=True)
    session = AttentionSession(model.SerializeToString(), device="cpu")
    output, scores = session(query, value, key, value_mask=mask)
    wanted = attention(query, value, key, value_mask=mask, causal=causal)
    np.testing.assert_allclose(output, wanted[0], **TOLERANCE["float32"])
    np.testing.assert_allclose(scores, wanted[1], **TOLERANCE["float32"])
    blind = not mask[0, 0] if causal else not mask[0].any()
    if blind:
        np.testing.assert_array_equal(scores[0, 0], np.full(keys, scores[0, 0, 0]))


NAMED = {
    "value shorter": "key_and_value_must_have_the_same_length",
    "value longer": "key_and_value_must_have_the_same_length",
    "value of length 1": "key_and_value_must_have_the_same_length",
    "dim of key is 1": "query_and_key_must_have_the_same_dim",
}
# Of an addition that fails inside an If, the runtime does not say the name.
NAMED_IN_TILES = {
    "key of batch 1": "batches_and_masks_must_fit_the_query",
    "value of batch 3": "batches_and_masks_must_fit_the_query",
    "query_mask too short": "batches_and_masks_must_fit_the_query",
    "value_mask too long": "value_mask_must_fit_the_key",
    "value_mask of batch 3": "value_mask_must_fit_the_key",
}


@pytest.fixture(scope="module")
def raw_files() -> dict[tuple[str, bool, str], onnxruntime.InferenceSession]:
    return {
        (schedule, causal, masks): raw(
            model_of("dot", {"causal": causal}, schedule=schedule, masks=masks)
        )
        for schedule in ("auto", "tiled", "dense")
        for causal in (False, True)
        for masks in ("both", "query", "none")
    }


@pytest.mark.parametrize("size", LENGTHS)
@pytest.mark.parametrize("causal", [False, True], ids=["plain", "causal"])
@pytest.mark.parametrize("schedule", ["auto", "tiled", "dense"])
def test_raw_files_fail_on_shapes_that_do_not_fit(
    schedule: str, causal: bool, size: str, raw_files: Any
) -> None:
    for given_masks in ("own", "one", "query", "none"):
        session = raw_files[
            schedule, causal, given_masks if given_masks in ("query", "none") else "both"
        ]
        taken = {entry.name for entry in session.get_inputs()}
        masks = MASKS
        if given_masks == "one":
            masks = {"query_mask": (1, 1), "value_mask": (1, 1)}

        def feeds(
            shapes: dict[str, tuple[int, ...]], masks: Any = masks, taken: set[str] = taken
        ) -> dict[str, np.ndarray]:
            made = shaped({**GOOD, **masks, **shapes}, LENGTHS[size])
            return {name: array for name, array in made.items() if name in taken}

        (output,) = session.run(None, feeds({}))
        assert output.shape == (*feeds({})["query"].shape[:2], 8)
        for wrong, shapes in WRONG.items():
            if given_masks == "one" and any("mask" in name for name in shapes):
                continue
            if not set(shapes) <= taken:
                continue
            with pytest.raises(Exception, match="ONNXRuntimeError") as raised:
                session.run(None, feeds(shapes))
            if wrong in NAMED:
                assert NAMED[wrong] in str(raised.value), wrong
            elif schedule == "tiled" and wrong in NAMED_IN_TILES:
                assert NAMED_IN_TILES[wrong] in str(raised.value), wrong


@pytest.mark.parametrize("schedule", ["auto", "tiled"])
@pytest.mark.parametrize("causal", [False, True])
def test_every_opset_has_the_same_graph(causal: bool, schedule: str) -> None:
    # Masked; then, where causal, halves and four parts.
    calls = [(400, np.arange(400)[None] >= 30), (400, ONE), (401, ONE)]
    results: list[list[np.ndarray]] = []
    graphs = []
    for opset in range(17, 22):
        model = model_of("dot", {"causal": causal}, schedule=schedule, opset=opset)
        onnx.checker.check_model(model, full_check=True)
        graphs.append(
            [(node.op_type, list(node.input), list(node.output)) for node in nodes_of(model.graph)]
        )
        session = raw(model)
        results.append([])
        for length, value_mask in calls:
            feeds = {
                "query": numbers(1, length, 32),
                "value": numbers(1, length, 8, seed=1),
                "key": numbers(1, length, 32, seed=2),
                "query_mask": ONE,
                "value_mask": value_mask,
            }
            results[-1] += session.run(None, feeds)
    for graph, result in zip(graphs, results, strict=True):
        assert graph == graphs[0]
        for output, first in zip(result, results[0], strict=True):
            np.testing.assert_array_equal(output, first)


@pytest.mark.parametrize("causal", [False, True])
def test_blocks_drop_weights_in_training(causal: bool) -> None:
    """Each block draws anew; what is kept is scaled, and the output is made of the kept weights."""
    model = model_of(
        "dot",
        {"causal": causal, "dropout": 0.25, "seed": 5},
        schedule="tiled",
        training=True,
        return_attention_scores=True,
    )
    session = AttentionSession(model.SerializeToString(), device="cpu")
    query, key, value = numbers(2, 520, 8), numbers(2, 520, 8, seed=1), numbers(2, 520, 3, seed=2)
    _, whole = session(query, value, key, training=False)
    output, dropped = session(query, value, key, training=True)
    visible = whole > 0
    kept = dropped[visible] > 0
    assert abs(kept.mean() - 0.75) < 0.01
    np.testing.assert_allclose(dropped[visible][kept], whole[visible][kept] / 0.75, rtol=1e-5)
    np.testing.assert_allclose(output, dropped @ value, rtol=1e-4, atol=1e-5)
    first = slice(None, 60)
    for later in (130, 260, 400):
        same = (dropped[0, :60, first] > 0) == (dropped[0, later : later + 60, first] > 0)
        assert same.mean() < 0.95


# Not getrusage: its peak is inherited from the process that started this one.
GROWTH = """
import sys
from pathlib import Path
import numpy as np, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 2
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
length, dim = int(sys.argv[2]), int(sys.argv[3])
rng = np.random.default_rng(0)
feeds = {n: rng.uniform(-1, 1, (1, length, dim)).astype("f") for n in ("query", "value", "key")}
hidden = int(sys.argv[4])
feeds["query_mask"] = feeds["value_mask"] = np.array([[True]])
if hidden:
    feeds["value_mask"] = np.arange(length)[None] >= hidden
output = np.ones_like(feeds["query"])
def peak():
    (line,) = (l for l in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in l)
    return int(line.split()[1])
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
before = peak()
session.run(None, feeds)
print((peak() - before) / 1024 - output.nbytes / 2**20)
"""


def growth(path: Path, length: int, dim: int, hidden: int = 0) -> float:
    """MiB that one run adds to the loaded process and its inputs and outputs."""
    found = subprocess.run(
        [sys.executable, "-c", GROWTH, str(path), str(length), str(dim), str(hidden)],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(found.stdout)


LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")


@LINUX
@pytest.mark.parametrize("hidden", [0, 100])
@pytest.mark.parametrize("causal", [False, True])
def test_memory_is_that_of_blocks(causal: bool, hidden: int, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save_model(model_of("dot", {"causal": causal}), path)
    assert growth(path, 4096, 64, hidden) < 48  # the score matrix has 64


@LINUX
def test_memory_of_features_is_that_of_blocks(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save_model(model_of("concat", {"causal": True}), path)
    assert growth(path, 768, 128) < 32  # all features have 288


@LINUX
@pytest.mark.soak
@pytest.mark.parametrize("hidden", [0, 4096])
@pytest.mark.parametrize("causal", [False, True])
def test_memory_grows_with_length_not_its_square(causal: bool, hidden: int, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save_model(model_of("dot", {"causal": causal}), path)
    short, long = growth(path, 4096, 64, hidden // 4), growth(path, 16384, 64, hidden)
    assert long < 64
    assert growth(path, 65536, 64, hidden) < 6 * max(long, 4 * short)


@LINUX
@pytest.mark.soak
@pytest.mark.parametrize("mode", ["concat", "additive"])
def test_features_of_2048_within_256_megabytes(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save_model(model_of(mode, {"use_scale": False}), path)
    assert growth(path, 2048, 256) < 256
