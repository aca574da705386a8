"""Load the network of a .keras file, or of a network.json: whole, and within what its file can hold.

A .keras file is a zip of config.json, the layers, and model.weights.h5. A few bytes of it may declare terabytes: a
compressed member, a chunked array, a layer. So all declared sizes are compared with the file's own before anything of
these sizes is allocated.
"""

import io
import json
import math
import os
import zipfile
from collections.abc import Mapping
from typing import Any

import h5py
import keras
import numpy as np
from keras.src.backend.common import global_state

from official_resnet import bounds, damage, files, folders, layers

KIND = 'a .keras file'
_LAYERS, _WEIGHTS = 'config.json', 'model.weights.h5'


def load(path: str | os.PathLike, remedy: str, custom_objects: Mapping[str, Any] | None = None) -> keras.Model:
    """Return the network of a .keras file, not compiled.

    Args:
        path: The file.
        remedy: What the message of an error says to do.
        custom_objects: {name of a class in the file: the class to take}.

    Raises:
        UserError: The file is missing, or damaged, or declares more than it holds.
    """
    with damage.reported(path, remedy, kind=KIND):
        with open(path, 'rb', opener=files.plain) as file, zipfile.ZipFile(file) as archive:
            most = bounds.limit('keras_inflation') * os.path.getsize(path)
            config = _read(archive, _LAYERS, min(most, bounds.limit('json_bytes')))
            weights = _read(archive, _WEIGHTS, most)
        model = _build(config, _num_values(weights, most), custom_objects)
        # Keras reads a file ten times as fast as a member of a zip.
        with folders.temporary() as folder, layers.deep_graph():
            (folder / _WEIGHTS).write_bytes(weights)
            model.load_weights(folder / _WEIGHTS)
    return model


def from_json(
    path: str | os.PathLike, arrays: Mapping[str, np.ndarray], remedy: str, custom_objects: Mapping[str, Any]
) -> keras.Model:
    """Return the network whose layers are in a JSON file, with initial weights; `arrays` are those it will get."""
    with damage.reported(path, remedy):
        num_values = sum(array.size for array in arrays.values())
        return _build(files.read_bytes(path, 'json_bytes'), num_values, custom_objects)


def _read(archive, name, most):
    """Return a member of a zip, after checking its declared size and its CRC."""
    info = archive.getinfo(name)
    if info.file_size > most:
        raise ValueError(f'it declares {info.file_size} bytes of {name}, more than the {most} that are read')
    return archive.read(info)


def _num_values(weights, most):
    """Return the number of values in an HDF5 file. Raise ValueError if it declares more than `most` bytes of them."""
    sizes = []

    def add(name, item) -> None:
        if isinstance(item, h5py.Dataset):
            sizes.append((item.size or 0, item.nbytes))

    with h5py.File(io.BytesIO(weights), 'r') as file:
        file.visititems(add)
    num_bytes = sum(num_bytes for _, num_bytes in sizes)
    if num_bytes > most:
        raise ValueError(f'it declares {num_bytes} bytes of weights, more than the {most} that are read')
    return sum(count for count, _ in sizes)


def _build(text, num_values, custom_objects):
    """Return the network of a JSON text, if it has at most this number of weights. Only then, they are allocated."""
    config = json.loads(text)  # with Python's own limit of recursion
    if not isinstance(config, dict):
        raise ValueError('its layers are no object')
    config['compile_config'] = None
    with layers.deep_graph(), keras.StatelessScope(initialize_variables=False):  # variables have only shapes here
        model = keras.saving.deserialize_keras_object(config, dict(custom_objects or {}))
        if not isinstance(model, keras.Model):
            raise ValueError('its layers are no network')
        shapes = [variable.shape for variable in model.weights]  # without the states of random generators
    count = sum(map(math.prod, shapes))
    if count > num_values:
        global_state.set_global_attribute('uninitialized_variables', [])
        raise ValueError(f'its layers have {count} weights, but only {num_values} are stored')
    with keras.StatelessScope():  # allocates and initializes them as it ends
        pass
    return model
