"""`onnx-attn demo`: the attention of one sentence on another, computed by an exported file."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from ..arrays import Array
from ..errors import OnnxAttnError
from ..file.disk import write_file
from ..layer import Attention
from ..plot import INSTALL_HINT, can_plot, save_heatmap
from ..session import AttentionSession
from .matching import Match, clear_matches, matches, sentence_similarity
from .sample import Sample, load_sample, real
from .terminal import Voice, heatmap

# The embeddings have a norm near 0.9, so no dot product of two of them is much above 0.8, and a
# softmax of such numbers is nearly flat: "puppy" would put 0.26 on "dog". Five times as much
# makes it 0.84; eight times leaves hardly a second choice to be seen.
SCALE = 5.0


def run_demo(directory: Path, console: Console) -> list[Path]:
    """Export the layer, run the file on the sample, explain and write the results.

    Args:
        directory: where the files go; made when missing. Files of the same name are replaced.
        console: what the explanation is printed on, at most 40 lines of 80 columns.

    Returns:
        The files written: `text_similarity.onnx`, `text_similarity_pair.npz`,
        `text_similarity_batch.npz` and, where matplotlib is installed, a `.png` of each `.npz`.

    Raises:
        OnnxAttnError: the directory or a file in it cannot be written.
    """
    sample = load_sample()
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OnnxAttnError(
            f"{directory}: expected a directory to write into: {error}. Fix: name another one."
        ) from error

    layer = Attention(use_scale=True)
    layer.set_weights([SCALE])
    model = layer.export(
        directory / "text_similarity.onnx", return_attention_scores=True, masks="both"
    )
    session = AttentionSession(model, device="cpu")
    say = Voice(console)
    written = {model: f"the layer, Attention(use_scale=True): {model.stat().st_size / 1000:.0f} kB"}
    written |= _show_pair(sample, session, directory, say)
    written |= _show_batch(sample, session, directory, say)

    say.line()
    say.line(f"Wrote, in {directory.resolve()}:", wrap=False)
    for path, what in written.items():
        say.line(f"  {path.name:<26} {what}")
    if not can_plot():
        say.line(f"For the heatmaps as pictures: {INSTALL_HINT}")
    return list(written)


def _show_pair(
    sample: Sample, session: AttentionSession, directory: Path, say: Voice
) -> dict[Path, str]:
    """The first pair alone, without padding."""
    query_tokens = real(sample.query_tokens[0], sample.query_mask[0])
    value_tokens = real(sample.value_tokens[0], sample.value_mask[0])
    query = sample.query[:1, : len(query_tokens)]  # [1, Tq, dim]
    value = sample.value[:1, : len(value_tokens)]  # [1, Tv, dim]
    output, scores = session(query, value)
    found = matches(scores[0], query_tokens, value_tokens)

    say.line(f'query: "{sample.query_text[0]}"')
    say.line(f'value: "{sample.value_text[0]}"')
    say.table(heatmap(scores[0], query_tokens, value_tokens, [match.value for match in found]))
    say.line(
        "A row: how one word of the query divides its attention over the words of the value. "
        + _sentence(clear_matches(found))
    )

    archive = _save(
        directory / "text_similarity_pair.npz",
        query=query,
        value=value,
        output=output,
        attention_scores=scores,
        query_tokens=np.array([query_tokens]),
        value_tokens=np.array([value_tokens]),
    )
    picture = _picture(sample, 0, scores[0], query_tokens, value_tokens, archive)
    return {archive: "this pair: query, value, output, attention_scores", **picture}


def _show_batch(
    sample: Sample, session: AttentionSession, directory: Path, say: Voice
) -> dict[Path, str]:
    """All pairs at once, the short ones padded."""
    query, value = sample.query, sample.value
    query_mask, value_mask = sample.query_mask, sample.value_mask
    output, scores = session(query, value, query_mask=query_mask, value_mask=value_mask)
    similarity = sentence_similarity(query, output, query_mask)

    say.line()
    say.line(
        f"{len(query)} pairs in one batch, float32{list(query.shape)} and {list(value.shape)}, "
        "short ones padded; how close each word is to what it found (mean cosine):"
    )
    order: list[int] = np.argsort(-similarity, kind="stable").tolist()
    for row in order:
        pair = f"{sample.query_text[row]} / {sample.value_text[row]}"
        say.line(f"  {similarity[row]:.2f}  {pair}")
    _, unmasked = session(query, value)
    padded = np.broadcast_to(~value_mask[:, None, :], scores.shape)  # [batch, Tq, Tv]
    wasted = (unmasked * padded).sum(-1)[query_mask]  # [real words]
    say.line(
        f"value_mask: the largest weight on padding is {_exact(scores[padded].max())}; unmasked, "
        f"padding would draw up to {wasted.max():.2f} of a word's attention."
    )
    say.line(
        "query_mask: the largest output of a padded query row is "
        f"{_exact(np.abs(output[~query_mask]).max())}; its weights stay, as in Keras."
    )

    archive = _save(
        directory / "text_similarity_batch.npz",
        query=query,
        value=value,
        query_mask=query_mask,
        value_mask=value_mask,
        output=output,
        attention_scores=scores,
        similarity=similarity,
        query_tokens=np.array(sample.query_tokens),
        value_tokens=np.array(sample.value_tokens),
    )
    shown = _padded_on_both_sides(sample)
    picture = _picture(
        sample,
        shown,
        scores[shown],
        sample.query_tokens[shown],
        sample.value_tokens[shown],
        archive,
        query_mask=query_mask[shown],
        value_mask=value_mask[shown],
    )
    return {archive: "the batch: the same, with masks and similarity", **picture}


def _padded_on_both_sides(sample: Sample) -> int:
    both = ~sample.query_mask.all(axis=1) & ~sample.value_mask.all(axis=1)
    return int(both.argmax())


def _sentence(found: list[Match]) -> str:
    if not found:
        return "No word of the query clearly looks at a single other word."
    phrases = [f'"{m.query}" looks at "{m.value}" ({m.weight:.2f})' for m in found]
    return "Different words that found each other: " + ", ".join(phrases) + "."


def _exact(number: float) -> str:
    """A bare `0` for an exact zero only."""
    return "exactly 0" if number == 0 else f"{number:.1e}"


def _save(path: Path, **arrays: Any) -> Path:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return write_file(path, stream.getvalue())


def _picture(
    sample: Sample,
    pair: int,
    scores: Array,
    query_tokens: list[str],
    value_tokens: list[str],
    archive: Path,
    **masks: Array,
) -> dict[Path, str]:
    if not can_plot():
        return {}
    picture = save_heatmap(
        scores,
        archive.with_suffix(".png"),
        query_labels=query_tokens,
        value_labels=value_tokens,
        title=f'"{sample.query_text[pair]}"\nlooks at "{sample.value_text[pair]}"',
        **masks,
    )
    return {picture: "one pair of it, hidden words striped" if masks else "the table as a picture"}
