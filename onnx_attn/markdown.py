"""A table in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_table(
    head: Sequence[str], rows: Iterable[Sequence[str]], numbers: bool = False
) -> str:
    """A Markdown table; `numbers` puts all but the first column right. Texts are single lines."""
    rule = ["---", *["---:" if numbers else "---"] * (len(head) - 1)]
    texts = [[text.replace("|", r"\|") for text in line] for line in (head, *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (texts[0], rule, *texts[1:]))
