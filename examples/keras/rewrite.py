"""A trained Keras model of three attention layers, exported, rewritten, and compared.

The model reads a long sequence of tokens and says of which of two of them there were more. What
`model.export(format="onnx")` writes holds every score matrix; `onnx-attn rewrite` writes a file
that computes the same without them.

    pip install onnx_attn 'keras>=3.15' tensorflow-cpu tf2onnx
    python examples/keras/rewrite.py                 # writes model.onnx and faster.onnx
"""

from __future__ import annotations

import argparse
from pathlib import Path

import keras
import numpy as np
import onnx
import onnxruntime

from onnx_attn.rewrite import rewrite_model

VOCABULARY, WIDTH, HEADS = 50, 128, 4  # token 0 is padding
ONE, OTHER = 3, 4
TRAINED_LENGTH, LONG = 48, 1024
LIMIT = 1e-4


def make_sequences(count: int, length: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens int32[count, length], the last ones padding, and which token was more frequent."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, VOCABULARY, (count, length)).astype(np.int32)
    likely = rng.random((count, 1)) < 0.5
    chosen = rng.random((count, length)) < 0.3
    ones = rng.random((count, length)) < np.where(likely, 0.7, 0.3)
    tokens = np.where(chosen, np.where(ones, ONE, OTHER), tokens)
    tokens[np.arange(length) >= rng.integers(length // 2, length + 1, (count, 1))] = 0
    more = (tokens == ONE).sum(1) > (tokens == OTHER).sum(1)
    return tokens.astype(np.int32), more.astype(np.float32)


def build_model() -> keras.Model:
    """Three causal attention layers: keras.layers.Attention and two of several heads."""
    layers = keras.layers
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    states = layers.Embedding(VOCABULARY, WIDTH, mask_zero=True)(tokens)
    for heads in (1, HEADS, HEADS):
        normal = layers.LayerNormalization()(states)
        if heads == 1:
            query, value = layers.Dense(WIDTH)(normal), layers.Dense(WIDTH)(normal)
            attended = layers.Attention(use_scale=True)([query, value], use_causal_mask=True)
        else:
            attention = layers.MultiHeadAttention(heads, WIDTH // heads)
            attended = attention(normal, normal, use_causal_mask=True)
        states = layers.Add()([states, attended])
    pooled = layers.GlobalAveragePooling1D()(states)
    return keras.Model(tokens, layers.Dense(1, activation="sigmoid")(pooled), name="more_of_one")


def train(model: keras.Model, sequences: int = 2000, epochs: int = 3) -> float:
    """Train on short sequences, and return the accuracy on long ones."""
    model.compile(keras.optimizers.Adam(0.001), "binary_crossentropy", metrics=["accuracy"])
    tokens, more = make_sequences(sequences, TRAINED_LENGTH, seed=1)
    model.fit(tokens, more, batch_size=64, epochs=epochs, verbose=0)
    tokens, more = make_sequences(32, LONG, seed=2)
    return model.evaluate(tokens, more, batch_size=4, verbose=0)[1]


def predict(file: Path, tokens: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: tokens})[0]


def run(folder: Path, keep_all: bool = False) -> float:
    """Train, export, rewrite, compare; returns the largest difference of a prediction."""
    keras.utils.set_random_seed(7)
    model = build_model()
    print(f"trained: {train(model):.1%} of 32 sequences of {LONG} tokens judged right")
    exported, faster = folder / "model.onnx", folder / "faster.onnx"
    model.export(str(exported), format="onnx", verbose=False)

    tokens, _ = make_sequences(2, LONG, seed=3)
    name = onnx.load(exported).graph.input[0].name
    # In a shell, with the tokens in feeds.npz:
    #   onnx-attn rewrite model.onnx -o faster.onnx --inputs feeds.npz
    result = rewrite_model(exported, inputs={name: tokens}, keep_all=keep_all)
    for site in result.sites:
        words = "rewritten" if site.rewritten else f"left alone: {site.reason}"
        print(f"  attention with {site.mask}: {words}")
    for note in result.notes:
        print(f"  {note}")
    if result.model is None:
        print("nothing was gained here, so nothing is rewritten")
        return 0.0
    onnx.save(result.model, faster)
    for when, found in (("before", result.before), ("after", result.after)):
        if found and "milliseconds" in found:
            print(
                f"{when}: {found['milliseconds']:.0f} ms, memory growth "
                f"{found['memory_growth_bytes'] / 2**20:.0f} MB, file {found['bytes']:,} bytes"
            )

    tokens, _ = make_sequences(8, LONG, seed=4)
    by_keras = model.predict(tokens, verbose=0)
    before, after = predict(exported, tokens), predict(faster, tokens)
    print("  Keras      exported   rewritten")
    for row in range(4):
        shown = (array[row, 0] for array in (by_keras, before, after))
        print("  " + "   ".join(f"{number:.6f}" for number in shown))
    difference = float(max(np.abs(after - by_keras).max(), np.abs(after - before).max()))
    print(f"largest difference over {len(tokens)} sequences: {difference:.1e}")
    return difference


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(), help="folder to write to")
    parser.add_argument("--keep-all", action="store_true", help="rewrite without the race")
    arguments = parser.parse_args()
    raise SystemExit(run(arguments.out, arguments.keep_all) > LIMIT)
