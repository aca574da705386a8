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
_PENDING = 'uninitialized_variables'  # where Keras keeps the variables that a StatelessScope leaves without values
_WITH_WEIGHTS = 'Dense', 'Conv1D', 'Conv2D', 'Conv3D', 'Transpose'  # ends of the names of classes of layers


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
            config = read_member(archive, _LAYERS, min(most, bounds.limit('json_bytes')))
            weights = read_member(archive, _WEIGHTS, most)
        model = _build(config, _num_values(weights, most), custom_objects)
        # Keras reads a file ten times as fast as a member of a zip.
        with folders.temporary() as folder, layers.deep_graph():
            what = f"a temporary copy of '{path}' into '{folder.parent}'"
            with files.write_errors(what, ', or set TMPDIR to another folder'):
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


def read_member(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    """Return a member of a zip, after checking its declared size and its CRC. ValueError: it declares more bytes."""
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
    """Return the network of a JSON text, if it has at most this number of weights. Only then are they allocated."""
    config = json.loads(text)  # with Python's own limit of recursion
    if not isinstance(config, dict):
        raise ValueError('its layers are not a JSON object')
    config['compile_config'] = None
    _require_few_layers(config)
    pending = global_state.get_global_attribute(_PENDING)
    global_state.set_global_attribute(_PENDING, [])
    try:
        with layers.deep_graph(), keras.StatelessScope(initialize_variables=False):  # variables have only shapes here
            model = keras.saving.deserialize_keras_object(config, dict(custom_objects or {}))
            if not isinstance(model, keras.Model):
                raise ValueError('its layers are not a network')
            shapes = [variable.shape for variable in model.weights]  # without the states of random generators
        count = sum(map(math.prod, shapes))
        if count > num_values:
            raise ValueError(f'its layers have {count} weights, but only {num_values} are stored')
        _require_small_outputs(model)
        with keras.StatelessScope():  # allocates and initializes them as it ends
            pass
    finally:  # or the next network would get the variables of one that is refused
        global_state.set_global_attribute(_PENDING, pending)
    return model


def _require_few_layers(config):
    """Raise ValueError if a network's config has too many layers, or calls them too often."""
    for row, count in (('network_layers', _count_with_weights(config)), ('keras_layers', _count_calls(config))):
        if count > bounds.limit(row):
            raise ValueError(f'it has {count} {bounds.BOUNDS[row].unit}, more than the {bounds.limit(row)} allowed')


def _count_with_weights(item):
    inside = item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
    own = isinstance(item, dict) and str(item.get('class_name')).endswith(_WITH_WEIGHTS)
    return own + sum(map(_count_with_weights, inside))


def _count_calls(item):
    """Return how often the layers in a config are called. A network inside it calls its own each time it is called."""
    if not isinstance(item, dict):
        return sum(map(_count_calls, item)) if isinstance(item, list) else 0
    lists = {key: len(value) for key, value in item.items() if isinstance(value, list)}
    inside = sum(map(_count_calls, item.values())) + lists.get('layers', 0) + lists.get('cells', 0)
    calls = max(1, lists.get('inbound_nodes', 1))
    return inside * calls + calls - 1


def _require_small_outputs(model):
    """Raise ValueError if a layer's output for one image is too large, as far as the input's size is fixed."""
    for layer in model._flatten_layers():
        for tensor in (tensor for node in layer._inbound_nodes for tensor in node.outputs):
            shape, most = tensor.shape or (1,), bounds.limit('layer_outputs')
            if None not in shape[1:] and math.prod(shape[1:], start=shape[0] or 1) > most:
                raise ValueError(f"the output of layer '{layer.name}', {shape}, has more than {most} values")
