"""Write saved models with attention layers, with the Keras that is installed.

    python make_files.py write FOLDER [KIND ...]
    python make_files.py pack FOLDER saved.tar.xz

README.md beside this file says with which versions `saved.tar.xz` was made, and what is in it.
Needs no package of this project, and runs on Python 3.9 and later.
"""

import inspect
import io
import json
import pathlib
import sys
import tarfile

import numpy as np

try:
    import tf_keras as keras

    GENERATION = "tf_keras" + keras.__version__
except ImportError:
    try:
        import keras

        if not keras.__version__.startswith("3."):
            raise ImportError
        GENERATION = "keras" + keras.__version__
    except ImportError:
        import tensorflow as tf
        from tensorflow import keras

        GENERATION = "tf" + tf.__version__

IS_KERAS_3 = GENERATION.startswith("keras3")
VERSION = tuple(int(part) for part in GENERATION.lstrip("kerastf_").split(".")[:2])
# Attention in Keras 3 before 3.12 fails on a value mask [batch, Tv].
MASKS_WORK = not (3, 0) <= VERSION < (3, 12)
layers = keras.layers
DIM, TQ, TV = 4, 3, 5


def shared_inputs():
    rng = np.random.default_rng(7)
    return {
        "query": rng.normal(size=(2, TQ, DIM)).astype("float32"),
        "value": rng.normal(size=(2, TV, DIM)).astype("float32"),
        "key": rng.normal(size=(2, TV, DIM)).astype("float32"),
        "query_mask": np.array([[True, True, False], [True, True, True]]),
        "value_mask": np.array([[True, True, True, False, False], [False, True, True, True, True]]),
    }


def make_inputs():
    return {
        "query": keras.Input((None, DIM), name="query"),
        "value": keras.Input((None, DIM), name="value"),
        "key": keras.Input((None, DIM), name="key"),
        "query_mask": keras.Input((None,), dtype="bool", name="query_mask"),
        "value_mask": keras.Input((None,), dtype="bool", name="value_mask"),
    }


def takes(function, argument):
    return argument in inspect.signature(function).parameters


def causal_arguments():
    """(constructor arguments, call arguments) for a causal layer in this generation."""
    if takes(layers.Attention.call, "use_causal_mask"):
        return {}, {"use_causal_mask": True}
    return {"causal": True}, {}


class Recorder:
    """Collects the attention layers of a model with the way each is called."""

    def __init__(self):
        self.calls = {}
        self.inputs = make_inputs()
        self.used = []

    def __getitem__(self, name):
        if name not in self.used:
            self.used.append(name)
        return self.inputs[name]

    def model(self, outputs, name):
        return keras.Model([self.inputs[used] for used in self.used], outputs, name=name)

    def __call__(self, path, layer, names, masks=None, **call):
        """Call ``layer`` on the symbolic inputs called ``names``, and remember how."""
        if not MASKS_WORK:
            masks = None
        self.calls[path] = (layer, names, masks, call)
        given = dict(call)
        if masks is not None:
            given["mask"] = [None if name is None else self[name] for name in masks]
        return layer([self[name] for name in names], **given)


def set_weights(layer, index):
    values = []
    for weight in layer.weights:
        name = weight.name.split("/")[-1].split(":")[0]
        if name not in ("scale", "concat_score_weight"):
            continue
        shape = tuple(weight.shape)
        base = 0.25 + 0.125 * index + (0.5 if name == "concat_score_weight" else 0.0)
        if shape:
            value = base + 0.25 * np.arange(shape[0])
        else:
            value = np.array(-base if index % 3 == 2 else base)
        weight.assign(value.astype("float32"))
        values.append((name, value.astype("float32")))
    return values


def as_float32(array):
    return np.asarray(keras.ops.convert_to_numpy(array) if IS_KERAS_3 else array).astype("float32")


def tensor(array):
    if IS_KERAS_3:
        return keras.ops.convert_to_tensor(array)
    import tensorflow as tf

    return tf.constant(array)


def write_io(path, calls):
    """Give every layer its weights, call it by itself, and write down what came out."""
    arrays = shared_inputs()
    result = dict(arrays)
    told, values = {}, {}
    for index, (layer_path, (layer, names, masks, call)) in enumerate(calls.items()):
        if id(layer) not in values:
            values[id(layer)] = set_weights(layer, index)
        for name, value in values[id(layer)]:
            result[f"weights.{layer_path}.{name}"] = value
        given = {key: value for key, value in call.items() if key != "return_attention_scores"}
        if masks is not None:
            given["mask"] = [None if name is None else tensor(arrays[name]) for name in masks]
        inputs = [tensor(arrays[name]) for name in names]
        output, scores = layer(inputs, return_attention_scores=True, **given)
        result["output." + layer_path] = as_float32(output)
        result["scores." + layer_path] = as_float32(scores)
        causal = bool(call.get("use_causal_mask") or getattr(layer, "causal", False))
        told[layer_path] = {"inputs": names, "masks": masks, "causal": causal}
    # Member names of a .npz are file names.
    named = {name.replace("/", "!"): value for name, value in result.items()}
    np.savez_compressed(path, calls=json.dumps(told), **named)


def family():
    """Each kind of attention layer beside weightless ones, in an order their names do not give."""
    call = Recorder()
    built, called = causal_arguments()
    outputs = [
        call("zulu", layers.Attention(name="zulu"), ["query", "value"]),
        call(
            "causal_scaled",
            layers.Attention(name="causal_scaled", use_scale=True, dropout=0.25, **built),
            ["query", "value"],
            [None, "value_mask"],
            **called,
        ),
        call(
            "bahdanau",
            layers.AdditiveAttention(name="bahdanau"),
            ["query", "value", "key"],
            ["query_mask", "value_mask"],
        ),
        call(
            "additive_plain",
            layers.AdditiveAttention(use_scale=False, name="additive_plain"),
            ["query", "value"],
            ["query_mask", None],
        ),
    ]
    if takes(layers.Attention.__init__, "score_mode") or IS_KERAS_3:
        outputs += [
            call(
                "yankee", layers.Attention(name="yankee", score_mode="concat"), ["query", "value"]
            ),
            call(
                "alpha",
                layers.Attention(name="alpha", score_mode="concat", use_scale=True),
                ["query", "value", "key"],
                ["query_mask", "value_mask"],
            ),
        ]
    if not IS_KERAS_3 or VERSION >= (3, 6):  # before, Keras 3 gives one output here
        outputs += call(
            "scored",
            layers.Attention(name="scored", use_scale=True),
            ["query", "value"],
            return_attention_scores=True,
        )
    return call.model(outputs, "family"), call


def nested():
    """Models inside models, a wrapper, a layer that is used twice and one shared by two models."""
    call = Recorder()
    built, called = causal_arguments()

    def self_attending(name, layer_name, path, **arguments):
        tokens = keras.Input((None, DIM), name=name + "_in")
        layer = layers.Attention(name=layer_name, use_scale=True, **arguments)
        call.calls[path] = (layer, ["query", "query"], None, {})
        return keras.Model(tokens, layers.Dense(DIM)(layer([tokens, tokens])), name=name)

    innermost = self_attending("innermost", "att", "outer/inner/innermost/att")
    inner_in = keras.Input((None, DIM), name="inner_in")
    inner_v = keras.Input((None, DIM), name="inner_v")
    inner_att = layers.Attention(name="inner_att", use_scale=True, **built)
    call.calls["outer/inner/inner_att"] = (inner_att, ["query", "value"], None, dict(called))
    hidden = inner_att([innermost(inner_in), inner_v], **called)
    inner = keras.Model([inner_in, inner_v], hidden, name="inner")

    outer_in = keras.Input((None, DIM), name="outer_in")
    additive = layers.AdditiveAttention(name="add")
    call.calls["outer/add"] = (additive, ["query", "query"], None, {})
    outer = keras.Model(outer_in, additive([inner([outer_in, outer_in]), outer_in]), name="outer")

    stack = keras.Sequential(
        [
            keras.Input((None, DIM)),
            layers.Dense(DIM),
            self_attending("bit", "bit_att", "stack/bit/bit_att"),
        ],
        name="stack",
    )

    twice = layers.Attention(name="twice", use_scale=True)
    first = call("twice", twice, ["query", "value"], ["query_mask", None])
    masks = {"mask": [None, call["value_mask"]]} if MASKS_WORK else {}
    second = twice([first, call["value"], call["key"]], **masks)
    recorded = ["query_mask", "value_mask"] if MASKS_WORK else None
    call.calls["twice"] = (twice, ["query", "value", "key"], recorded, {})
    body = stack(outer(second))
    outputs = []
    if VERSION >= (3, 5) or (2, 10) <= VERSION < (3, 0):  # TimeDistributed takes them
        per_step = self_attending("per_step", "step_att", "wrapped/per_step/step_att")
        frames = layers.Reshape((1, -1, DIM))(body)
        outputs = [layers.TimeDistributed(per_step, name="wrapped")(frames)]
    last = layers.Attention(name="att", use_scale=True)
    call.calls["att"] = (last, ["query", "value"], None, {})
    outputs.append(last([body, call["value"]]))
    return call.model(outputs, "nested"), call


def masking():
    """Masks that no call argument names in every generation: made by Embedding and Masking."""
    call = Recorder()
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    others = keras.Input((None, DIM), name="others")
    embedded = layers.Embedding(8, DIM, mask_zero=True)(tokens)
    masked = layers.Masking()(others)
    both, value_only = (
        layers.Attention(name="both", use_scale=True),
        layers.Attention(name="value_only"),
    )
    call.calls["both"] = (both, ["query", "value"], ["query_mask", "value_mask"], {})
    call.calls["value_only"] = (value_only, ["query", "value"], [None, "value_mask"], {})
    outputs = [both([embedded, masked]), value_only([others, masked])]
    return keras.Model([tokens, others], outputs, name="masking"), call


def dtypes():
    """16-bit and 64-bit weights and the mixed policies."""
    call = Recorder()
    outputs = []
    own = ["bfloat16"] if IS_KERAS_3 else []  # Keras 2 cannot save bfloat16 weights
    for dtype in ["float16", "float64", "mixed_float16", "mixed_bfloat16", *own]:
        name = "half" if dtype == "float16" else dtype
        arguments = {"dtype": dtype}
        if not IS_KERAS_3 and dtype.startswith("mixed"):
            arguments["dtype"] = keras.mixed_precision.Policy(dtype)
        layer = layers.Attention(name=name, use_scale=True, **arguments)
        outputs.append(call(name, layer, ["query", "value"], [None, "value_mask"]))
    return call.model(outputs, "dtypes"), call


def custom():
    """Classes a reader does not know, a Lambda, and a user's own class that is called Attention."""
    call = Recorder()
    registered = getattr(keras, "saving", keras.utils)
    if not hasattr(registered, "register_keras_serializable"):
        registered = keras.utils

    @registered.register_keras_serializable("house")
    class Block(layers.Layer):
        def __init__(self, inner=None, **arguments):
            super().__init__(**arguments)
            self.inner = inner or layers.Attention(name="hidden", use_scale=True)

        def build(self, shape):
            if hasattr(self.inner, "build"):
                self.inner.build([shape, shape])
            super().build(shape)

        def call(self, x):
            return self.inner([x, x])

        def get_config(self):
            return super().get_config()

    @registered.register_keras_serializable("house")
    class Telling(Block):
        def get_config(self):
            return dict(super().get_config(), inner=layers.serialize(self.inner))

    class Attention(layers.Layer):
        def __init__(self, units=2, **arguments):
            super().__init__(**arguments)
            self.units = units

        def build(self, shape):
            self.scale = self.add_weight(name="scale", shape=(self.units,), initializer="ones")
            super().build(shape)

        def call(self, x):
            return x * self.scale[0]

        def get_config(self):
            return dict(super().get_config(), units=self.units)

    told = layers.Attention(name="told", use_scale=True)
    call.calls["telling/told"] = (told, ["query", "query"], None, {})
    # Compiled under a name of its own, so that no path of the machine gets into the files.
    double = eval(compile("lambda x: x * 2.0", "house.py", "eval"))
    own = Attention(name="mine")(call["query"])
    blocked = Telling(told, name="telling")(Block(name="block")(own))
    doubled = layers.Lambda(double, name="doubled")(blocked)
    outputs = [
        call("real", layers.Attention(name="real", use_scale=True), ["query", "value"]),
        call(
            "other",
            layers.Attention(name="other", use_scale=True),
            ["query", "value"],
            ["query_mask", None],
        ),
        doubled,
    ]
    return call.model(outputs, "custom"), call


def shared():
    """One layer in two models, a model of a user's class, a model called on a list."""
    call = Recorder()
    layer = layers.Attention(name="common", use_scale=True)
    output = call("common", layer, ["query", "value"])
    tokens = keras.Input((None, DIM), name="tokens")
    inner = keras.Model(tokens, layer([tokens, tokens]), name="inner")
    call.calls["inner/common"] = (layer, ["query", "query"], None, {})

    class House(keras.Model):
        pass

    own = layers.Attention(name="own", use_scale=True)
    rooms = keras.Input((None, DIM), name="rooms")
    house = House(inputs=rooms, outputs=own([rooms, rooms]), name="house")
    call.calls["house/own"] = (own, ["query", "query"], None, {})
    outputs = [output, inner(call["query"]), house(call["query"])]
    if not IS_KERAS_3:  # Keras 3 saves this one without its weights
        listed = layers.Attention(name="listed", use_scale=True)
        outputs.append(keras.Sequential([listed], name="alone")([call["query"], call["value"]]))
        call.calls["alone/listed"] = (listed, ["query", "value"], None, {})
    return call.model(outputs, "shared"), call


KINDS = {f.__name__: f for f in (family, nested, shared, masking, dtypes, custom)}


def save(kind, out):
    model, recorder = KINDS[kind]()
    name = f"{GENERATION}_{kind}"
    write_io(out / (name + "_io.npz"), recorder.calls)
    path = str(out / name)
    if VERSION >= (2, 12):
        # Keras 2.12 writes HDF5 to this name unless told otherwise.
        model.save(path + ".keras", **({"save_format": "keras_v3"} if VERSION == (2, 12) else {}))
    model.save_weights(path + ".weights.h5")
    (out / (name + ".json")).write_text(json.dumps(json.loads(model.to_json())))
    model.save(path + ".h5")


def write(folder, kinds):
    folder.mkdir(parents=True, exist_ok=True)
    for kind in kinds or KINDS:
        if kind == "masking" and not MASKS_WORK:
            continue
        try:
            save(kind, folder)
        except Exception as error:
            print(GENERATION, kind, "failed:", type(error).__name__, error)  # noqa: T201
        else:
            print(GENERATION, kind)  # noqa: T201


def pack(folder, archive):
    """All files of a folder in one archive, the same bytes for the same files."""
    with tarfile.open(archive, "w:xz", preset=9) as packed:
        for path in sorted(folder.iterdir()):
            entry = tarfile.TarInfo(path.name)
            data = path.read_bytes()
            entry.size = len(data)
            packed.addfile(entry, io.BytesIO(data))


if __name__ == "__main__":
    if sys.argv[1] == "pack":
        pack(pathlib.Path(sys.argv[2]), sys.argv[3])
    else:
        write(pathlib.Path(sys.argv[2]), sys.argv[3:])
