"""From Keras: attention layers out of saved models and out of live ones.

Reading a saved model takes h5py and no Keras, TensorFlow or PyTorch.
"""

from __future__ import annotations

from .layers import (
    describe_layers,
    export_from_keras,
    from_layer,
    load_layer,
    load_layers,
    split_spec,
)

__all__ = [
    "describe_layers",
    "export_from_keras",
    "from_layer",
    "load_layer",
    "load_layers",
    "split_spec",
]
