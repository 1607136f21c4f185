"""`onnx-attn demo`: the attention of one sentence on another, computed by an exported file.

The sample beside this module holds a few sentence pairs and the trained embeddings of their word
pieces; `examples/text_similarity/` says how it was made.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from ..errors import OnnxAttnError
from ..file.disk import write_file
from ..layer.attention import Attention
from ..plot import INSTALL_HINT, can_plot, save_heatmap, weight_text
from ..session.session import AttentionSession

# The embeddings have a norm near 0.9, so no dot product of two of them is much above 0.8, and a
# softmax of such numbers is nearly flat: "puppy" would put 0.26 on "dog". Five times as much
# makes it 0.84; eight times leaves hardly a second choice to be seen.
SCALE = 5.0

# A match is clear when it takes more than all other words together.
_CLEAR = 0.5

# The anchors of matplotlib's "viridis", so that terminal and picture look alike.
_COLOURS = np.array([[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]])

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Sample:
    """Sentence pairs as one padded batch.

    Attributes:
        query_text, value_text: the sentences, one of each a pair.
        query_tokens, value_tokens: their word pieces, a list a sentence, all of one length
            (Tq, Tv); the short ones end in `[PAD]`.
        query, value: float32 `[pairs, Tq, dim]` and `[pairs, Tv, dim]`, the trained embedding of
            each token; padding holds the trained embedding of `[PAD]`, not zeros.
        query_mask, value_mask: bool `[pairs, Tq]` and `[pairs, Tv]`, False on padding.
        about: source and licence of the sentences and the embeddings.
    """

    query_text: list[str]
    value_text: list[str]
    query_tokens: list[list[str]]
    value_tokens: list[list[str]]
    query: npt.NDArray[np.float32]
    value: npt.NDArray[np.float32]
    query_mask: npt.NDArray[np.bool_]
    value_mask: npt.NDArray[np.bool_]
    about: dict[str, Any]


@dataclass(frozen=True)
class Match:
    """The value token that a query token looks at most, and with what weight."""

    query: str
    value: str
    weight: float


def load_sample() -> Sample:
    """The sample that ships with the package."""
    resource = files("onnx_attn") / "data" / "text_similarity.npz"
    with resource.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        arrays: dict[str, Array] = dict(archive)
    query_ids, value_ids = arrays["query_ids"], arrays["value_ids"]
    return Sample(
        query_text=arrays["query_text"].tolist(),
        value_text=arrays["value_text"].tolist(),
        query_tokens=arrays["tokens"][query_ids].tolist(),
        value_tokens=arrays["tokens"][value_ids].tolist(),
        query=arrays["embeddings"][query_ids],  # [pairs, Tq, dim]
        value=arrays["embeddings"][value_ids],  # [pairs, Tv, dim]
        query_mask=query_ids != 0,
        value_mask=value_ids != 0,
        about=json.loads(arrays["about"].item()),
    )


def sentence_similarity(query: Array, output: Array, query_mask: Array) -> npt.NDArray[np.float64]:
    """How close each word is, on average, to what it found in the other sentence.

    The mean over the words of a query of the cosine between its embedding and its row of the
    output, as float64 `[batch]`, 1 where every word found itself. `query` and `output` are
    `[batch, Tq, dim]`, `query_mask` is `[batch, Tq]`.
    """
    query, output = query.astype(np.float64), output.astype(np.float64)
    norms = np.linalg.norm(query, axis=-1) * np.linalg.norm(output, axis=-1)  # [batch, Tq]
    cosine = np.divide((query * output).sum(-1), norms, out=np.zeros_like(norms), where=norms > 0)
    return (cosine * query_mask).sum(-1) / query_mask.sum(-1)


def matches(scores: Array, query_tokens: list[str], value_tokens: list[str]) -> list[Match]:
    """For each query token the value token with the largest of `scores` `[Tq, Tv]`."""
    return [
        Match(token, value_tokens[int(row.argmax())], float(row.max()))
        for token, row in zip(query_tokens, scores, strict=True)
    ]


def clear_matches(found: list[Match]) -> list[Match]:
    """The different words that clearly found each other, the clearest first."""
    clear = {
        match
        for match in found
        # "on" finding "on" is no news, and the rest of a split word ("##rs") is no word.
        if match.weight > _CLEAR and match.query != match.value and match.query[:2] != "##"
    }
    return sorted(clear, key=lambda match: (-match.weight, match.query))


def heatmap(
    scores: Array, query_tokens: list[str], value_tokens: list[str], last: list[str]
) -> Table:
    """`scores` `[Tq, Tv]` as a table for the terminal, with a `last` word for each row."""
    widths = [max(len(token) + 2, 6) for token in value_tokens]
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, collapse_padding=True)
    table.add_column("", justify="right", no_wrap=True)
    # One cell a row for all weights: padding between columns would cut the colours apart.
    table.add_column(_joined(value_tokens, widths, Style(bold=True)), no_wrap=True)
    table.add_column(Text("looks at", style="italic"), no_wrap=True)
    for token, row, word in zip(query_tokens, scores, last, strict=True):
        weights = Text()
        for weight, width in zip(row.tolist(), widths, strict=True):
            weights.append(weight_text(weight).center(width), style=_heat(weight))
        table.add_row(Text(token, style="bold"), weights, Text(word, style="italic"))
    return table


def _joined(tokens: list[str], widths: list[int], style: Style) -> Text:
    centred = (token.center(width) for token, width in zip(tokens, widths, strict=True))
    return Text("".join(centred), style=style)


def _heat(weight: float) -> Style:
    """The colour of a weight; none for a small one, so that the rest stands out."""
    if weight < 0.05:
        return Style(dim=True)
    place = weight * (len(_COLOURS) - 1)
    red, green, blue = (
        int(np.interp(place, np.arange(len(_COLOURS)), _COLOURS[:, channel]))
        for channel in range(3)
    )
    # Not "black" and "white": themes of terminals redefine those.
    foreground = "rgb(0,0,0)" if weight > 0.6 else "rgb(255,255,255)"
    return Style(color=foreground, bgcolor=f"rgb({red},{green},{blue})")


def run_demo(directory: Path, console: Console) -> list[Path]:
    """Export the layer, run the file on the sample, explain and write the results.

    Args:
        directory: where the files go; made when missing. Files of the same name are replaced.
        console: what the explanation is printed on.

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
    say = _Voice(console)
    say.line(
        "Attention lets every word of one sentence (the query) look for the words of another "
        "(the value) that are close to it. Here a word is its trained embedding, "
        f"{sample.query.shape[-1]} numbers. The layer, Attention(use_scale=True) with scale "
        f"{SCALE:g}, is one file of {model.stat().st_size / 1000:.1f} kB, {model.name}, "
        "and ONNX Runtime runs it."
    )
    written = [model]
    written += _show_pair(sample, session, directory, say)
    written += _show_batch(sample, session, directory, say)

    say.heading("Files")
    say.line(f"In {directory.resolve()}:", wrap=False)
    for path in written:
        say.line(f"  {path.name}")
    if not can_plot():
        say.line(f"For the heatmaps as pictures: {INSTALL_HINT}")
    return written


class _Voice:
    """Prints plain text: brackets in tokens and paths are no markup."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def heading(self, text: str) -> None:
        self._console.print()
        self._console.rule(Text(text, style="bold"), align="left")
        self._console.print()

    def line(self, text: str = "", *, wrap: bool = True) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=not wrap)

    def table(self, table: Table) -> None:
        self._console.print()
        self._console.print(table)
        self._console.print()


def _show_pair(
    sample: Sample, session: AttentionSession, directory: Path, say: _Voice
) -> list[Path]:
    """The first pair alone, without padding."""
    query_tokens = _real(sample.query_tokens[0], sample.query_mask[0])
    value_tokens = _real(sample.value_tokens[0], sample.value_mask[0])
    query = sample.query[:1, : len(query_tokens)]  # [1, Tq, dim]
    value = sample.value[:1, : len(value_tokens)]  # [1, Tv, dim]
    output, scores = session(query, value)
    found = matches(scores[0], query_tokens, value_tokens)

    say.heading("One sentence looks at another")
    say.line(f'query: "{sample.query_text[0]}"')
    say.line(f'value: "{sample.value_text[0]}"')
    say.table(heatmap(scores[0], query_tokens, value_tokens, [match.value for match in found]))
    say.line(
        "Each row sums to 1: it is how one word of the query divides its attention over the "
        "words of the value. Its row of the output is the average of the value's embeddings "
        "with these weights."
    )
    say.line()
    say.line(_sentence(clear_matches(found)))

    archive = _save(
        directory / "text_similarity_pair.npz",
        query=query,
        value=value,
        output=output,
        attention_scores=scores,
        query_tokens=np.array([query_tokens]),
        value_tokens=np.array([value_tokens]),
    )
    return [archive, *_picture(sample, 0, scores[0], query_tokens, value_tokens, archive)]


def _show_batch(
    sample: Sample, session: AttentionSession, directory: Path, say: _Voice
) -> list[Path]:
    """All pairs at once, the short ones padded."""
    query, value = sample.query, sample.value
    query_mask, value_mask = sample.query_mask, sample.value_mask
    output, scores = session(query, value, query_mask=query_mask, value_mask=value_mask)
    similarity = sentence_similarity(query, output, query_mask)

    say.heading(f"{len(query)} pairs in one padded batch")
    say.line(
        f"query is {query.dtype}{list(query.shape)}, [batch, Tq, dim]; "
        f"value is {value.dtype}{list(value.shape)}, [batch, Tv, dim]. "
        "Short sentences are filled up with [PAD]; query_mask and value_mask say which words "
        "are real."
    )
    table = Table(box=None, padding=(0, 0, 1, 2), pad_edge=False)
    table.add_column("query, value")
    table.add_column("clear matches", no_wrap=True)
    table.add_column("similarity", justify="right", no_wrap=True)
    order: list[int] = np.argsort(-similarity, kind="stable").tolist()
    for row in order:
        found = matches(
            scores[row][query_mask[row]],
            _real(sample.query_tokens[row], query_mask[row]),
            sample.value_tokens[row],
        )
        clear = [f"{m.query} -> {m.value} {m.weight:.2f}" for m in clear_matches(found)]
        table.add_row(
            Text(f"{sample.query_text[row]}\n{sample.value_text[row]}"),
            Text("\n".join(clear) or "none"),
            f"{similarity[row]:.2f}",
        )
    say.table(table)
    say.line(
        "similarity: the cosine between a word and what it found (its row of the output), "
        "averaged over the words of the query. A match is clear if a word gives another word "
        f"more than {_CLEAR} of its attention. A long or rare word is split into pieces: "
        f"{_split_word(sample)}."
    )

    shown = _padded_on_both_sides(sample)
    query_tokens, value_tokens = sample.query_tokens[shown], sample.value_tokens[shown]
    last = [
        match.value if row.any() else "(output 0)"
        for match, row in zip(
            matches(scores[shown], query_tokens, value_tokens), output[shown], strict=True
        )
    ]
    say.heading("What the masks do")
    say.line("A pair of this batch, padding and all:")
    say.table(heatmap(scores[shown], query_tokens, value_tokens, last))
    _, unmasked = session(query, value)
    padded = np.broadcast_to(~value_mask[:, None, :], scores.shape)  # [batch, Tq, Tv]
    wasted = (unmasked * padded).sum(-1)[query_mask]  # [real words]
    first = scores[0][np.ix_(query_mask[0], value_mask[0])]
    _, alone = session(query[:1, query_mask[0]], value[:1, value_mask[0]])
    say.line(
        f"value_mask: the largest weight on padding is "
        f"{_exact(scores[padded].max())} in the whole batch. Without the masks, padding would "
        f"draw up to {wasted.max():.2f} of a word's attention."
    )
    say.line(
        "query_mask: the largest output of a padded query row is "
        f"{_exact(np.abs(output[~query_mask]).max())}. The weights in that row stay, as in Keras."
    )
    say.line(
        "The largest difference between the weights of the first pair in the batch and alone is "
        f"{_exact(np.abs(first - alone[0]).max())}."
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
    return [archive, *_picture(sample, shown, scores[shown], query_tokens, value_tokens, archive)]


def _real(tokens: list[str], mask: Array) -> list[str]:
    return [token for token, real in zip(tokens, mask, strict=True) if real]


def _padded_on_both_sides(sample: Sample) -> int:
    both = ~sample.query_mask.all(axis=1) & ~sample.value_mask.all(axis=1)
    return int(both.argmax())


def _split_word(sample: Sample) -> str:
    """The pieces of the first word in the sample that the tokenizer splits."""
    for tokens in (*sample.query_tokens, *sample.value_tokens):
        for first, second in pairwise(tokens):
            if second.startswith("##"):
                return f'"{first}{second[2:]}" into {first} and {second}'
    raise OnnxAttnError("the sample holds no word that is split into pieces")


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
) -> list[Path]:
    if not can_plot():
        return []
    return [
        save_heatmap(
            scores,
            archive.with_suffix(".png"),
            query_labels=query_tokens,
            value_labels=value_tokens,
            title=f'"{sample.query_text[pair]}"\nlooks at "{sample.value_text[pair]}"',
        )
    ]
