"""Makes the file of this folder with Keras itself.

Needs keras 3.15.1 and h5py (``pip install keras h5py``; ``KERAS_BACKEND=jax``), with
whose store KerasHub 0.32.0 writes its files. ``small.lora.h5`` holds a Dense and two
EinsumDense layers with random factors, as ``save_lora_weights`` of a backbone writes
them; ``small.npz`` an input of each layer and what the adapter adds to its output.
"""

from pathlib import Path

import keras
import numpy as np
from keras.src.saving.saving_lib import H5IOStore

HERE, RANK, ALPHA = Path(__file__).parent, 2, 6
keras.utils.set_random_seed(0)
layers = {
    "3": (keras.layers.Dense(5), (4, 6)),
    "12": (keras.layers.EinsumDense("btd,ndh->btnh", (None, 3, 4)), (2, 3, 6)),
    "7": (keras.layers.EinsumDense("btnh,nhd->btd", (None, 6)), (2, 3, 3, 4)),
}
draw = np.random.default_rng(0).standard_normal
store = H5IOStore(HERE / "small.lora.h5", mode="w")
store.make("lora")["rank"] = RANK
arrays = {}
for index, (layer, shape) in layers.items():
    layer.build(shape)
    x = draw(shape).astype(np.float32)
    plain = layer(x)
    layer.enable_lora(RANK, lora_alpha=ALPHA)
    layer.lora_kernel_b.assign(keras.random.normal(layer.lora_kernel_b.shape))
    inner = store.make(f"lora/{index}")
    inner["lora_kernel_a"] = layer.lora_kernel_a
    inner["lora_kernel_b"] = layer.lora_kernel_b
    arrays |= {f"{index}/x": x, f"{index}/added": np.asarray(layer(x) - plain)}
store.close()
np.savez(HERE / "small.npz", **arrays)
