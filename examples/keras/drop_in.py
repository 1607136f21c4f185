"""Take the attention out of a trained Keras model and run it as an ONNX file: same predictions.

The model judges whether a question and a passage are about the same topic: embedding, Conv1D,
attention of the question on the passage, pooling. Its data is made here: each topic has its words,
and sentences mix them with words of no topic. Sentences are padded at the end, so masks matter.

    pip install 'onnx_attn[keras]' 'keras>=3.15' tensorflow-cpu
    python examples/keras/drop_in.py            # writes similarity.keras, attention.onnx, ...
"""

from __future__ import annotations

import argparse
from pathlib import Path

import keras
import numpy as np

from onnx_attn import AttentionSession
from onnx_attn.keras import load_layers

TOPICS, WORDS_OF_A_TOPIC, COMMON_WORDS = 5, 6, 9
VOCABULARY = 1 + TOPICS * WORDS_OF_A_TOPIC + COMMON_WORDS  # 0 is padding
QUESTION, PASSAGE = 8, 14  # longest sentences, in words
FEATURES = 12


def make_pairs(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Questions int32[count, 8], passages int32[count, 14], and whether their topics agree."""
    rng = np.random.default_rng(seed)
    same = rng.random(count) < 0.5
    topics = rng.integers(TOPICS, size=count)
    others = (topics + rng.integers(1, TOPICS, size=count)) % TOPICS
    questions = np.stack([sentence(rng, topic, QUESTION) for topic in topics])
    passages = np.stack([sentence(rng, t, PASSAGE) for t in np.where(same, topics, others)])
    return questions, passages, same.astype(np.float32)


def sentence(rng: np.random.Generator, topic: int, longest: int) -> np.ndarray:
    words = np.zeros(longest, np.int32)
    length = rng.integers(3, longest + 1)
    own = 1 + topic * WORDS_OF_A_TOPIC + rng.integers(WORDS_OF_A_TOPIC, size=length)
    common = VOCABULARY - COMMON_WORDS + rng.integers(COMMON_WORDS, size=length)
    words[:length] = np.where(rng.random(length) < 0.6, own, common)
    words[rng.integers(length)] = own[0]  # at least one word tells the topic
    return words


def build_model() -> keras.Model:
    question = keras.Input((QUESTION,), dtype="int32", name="question")
    passage = keras.Input((PASSAGE,), dtype="int32", name="passage")
    embed = keras.layers.Embedding(VOCABULARY, FEATURES, name="embed")
    encode = keras.layers.Conv1D(FEATURES, 3, padding="same", activation="tanh", name="encode")
    query, value = encode(embed(question)), encode(embed(passage))
    # Said outright: Conv1D drops a mask that comes with its input.
    query_mask, value_mask = keras.ops.not_equal(question, 0), keras.ops.not_equal(passage, 0)
    attention = keras.layers.Attention(use_scale=True, name="attention")
    attended = attention([query, value], mask=[query_mask, value_mask])
    pooled = keras.layers.GlobalAveragePooling1D(name="pool_query")(query, mask=query_mask)
    found = keras.layers.GlobalAveragePooling1D(name="pool_attended")(attended, mask=query_mask)
    product = keras.layers.Multiply(name="product")([pooled, found])
    together = keras.layers.Concatenate(name="together")([pooled, found, product])
    answer = keras.layers.Dense(1, activation="sigmoid", name="answer")(together)
    return keras.Model([question, passage], answer, name="similarity")


def train(model: keras.Model, pairs: int = 3000, epochs: int = 8) -> float:
    """Train, and return the accuracy on pairs not seen."""
    questions, passages, same = make_pairs(pairs, seed=1)
    model.compile("adam", "binary_crossentropy", metrics=["accuracy"])
    model.optimizer.learning_rate = 0.01
    model.fit([questions, passages], same, batch_size=64, epochs=epochs, verbose=0)
    questions, passages, same = make_pairs(1000, seed=2)
    return model.evaluate([questions, passages], same, verbose=0)[1]


def before_attention(
    model: keras.Model, questions: np.ndarray, passages: np.ndarray
) -> dict[str, np.ndarray]:
    """What reaches the attention layer: query [n, 8, 12], value [n, 14, 12] and their masks."""
    part = keras.Model(model.inputs, model.get_layer("attention").input)
    arrays = part.predict([questions, passages], verbose=0)
    return dict(zip(("query", "value", "query_mask", "value_mask"), arrays, strict=True))


def after_attention(
    model: keras.Model, given: dict[str, np.ndarray], attended: np.ndarray
) -> np.ndarray:
    """The model's answers [n, 1] from the output of the attention layer on."""
    mask = keras.ops.convert_to_tensor(given["query_mask"])
    pooled = model.get_layer("pool_query")(given["query"], mask=mask)
    found = model.get_layer("pool_attended")(attended, mask=mask)
    product = model.get_layer("product")([pooled, found])
    answer = model.get_layer("answer")(model.get_layer("together")([pooled, found, product]))
    return keras.ops.convert_to_numpy(answer)


def run(folder: Path) -> float:
    """Train, save, export, compare; returns the largest difference of the answers."""
    keras.utils.set_random_seed(7)
    model = build_model()
    accuracy = train(model)
    print(f"trained: {accuracy:.1%} of 1000 new pairs judged right")

    saved = folder / "similarity.keras"
    keras.Model(model.inputs, model.outputs, name=model.name).save(saved)  # without the optimizer

    layer = load_layers(saved)["attention"]
    file = layer.export(folder / "attention.onnx")
    session = AttentionSession(file, device="cpu")
    print(f"{file.name}: {', '.join(session.inputs)}; scale {layer.get_weights()[0]:.4f}")

    questions, passages, same = make_pairs(1000, seed=2)
    given = before_attention(model, questions, passages)
    attended = session.run(given)["output"]
    answers = after_attention(model, given, attended)
    wanted = model.predict([questions, passages], verbose=0)
    difference = float(np.abs(answers - wanted).max())

    print("  same topic?  Keras   attention as ONNX")
    for row in range(5):
        truth = "yes" if same[row] else "no"
        print(f"  {truth:<11} {wanted[row, 0]:.6f}  {answers[row, 0]:.6f}")
    print(f"largest difference over {len(answers)} pairs: {difference:.1e}")

    few = {name: array[:8] for name, array in given.items()}
    by_keras = model.get_layer("attention")(
        [few["query"], few["value"]], mask=[few["query_mask"], few["value_mask"]]
    )
    few["output"] = keras.ops.convert_to_numpy(by_keras)
    np.savez_compressed(folder / "attention_io.npz", **few)
    return difference


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(), help="folder to write to")
    raise SystemExit(run(parser.parse_args().out) > 1e-5)
