"""List the arrays of an HDF5 file as JSON, in a process that the caller can end: `python h5_listing.py FILE`.

A few damaged bytes send HDF5's library (1.14) into an endless loop. In a process of its own, with limits, that is an
error like any other. No link is followed, and only arrays that are stored contiguously in the file are listed.
"""

import json
import resource
import sys

import h5py

MAX_OBJECTS = 20_000  # groups and arrays in a file; ResNet152V2 with Adam's slots has about 6,000
MAX_DEPTH = 12
MAX_NAME = 200  # characters
MAX_SECONDS, MAX_MEMORY = 30, 4 << 30  # CPU time, and bytes of address space, much of which the libraries take


def listing(path: str) -> list[list]:
    """Return [[names of groups and array, shape, dtype, offset in the file, layer], ...].

    The layer's name is an attribute of the group 'vars' that Keras 3 writes, or None.
    """
    rows = []
    with h5py.File(path, 'r') as file:
        for place, item in _datasets(file):
            offset = item.id.get_offset()
            if offset is None and item.size:
                where = f'{"/".join(place)!r} is compressed or chunked, or its values are not in the file'
                raise ValueError(f'{where}; rewrite the file by h5repack -l CONTI')
            parent = '/'.join(place[:-1])
            layer = file[parent].attrs.get('name') if place[-2:-1] == ('vars',) else None
            if layer is not None and not (isinstance(layer, str) and len(layer) <= MAX_NAME):
                raise ValueError(f'{parent!r} has a name that is not a short string')
            rows.append([place, item.shape, item.dtype.str, offset or 0, layer])
    return rows


def _datasets(group, place=(), left=None):
    """Yield (names, dataset) of all arrays in a group."""
    left = left or [MAX_OBJECTS]
    for name in group:
        here, left[0] = (*place, name), left[0] - 1
        where = '/'.join(here)[:MAX_NAME]
        if left[0] < 0 or len(here) > MAX_DEPTH or len(name) > MAX_NAME:
            limits = f'{MAX_OBJECTS} objects, {MAX_DEPTH} groups in one another, or {MAX_NAME} characters'
            raise ValueError(f'{where!r}: more than {limits}')
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise ValueError(f'{where!r} is a link, which is not followed')
        item = group[name]
        if isinstance(item, h5py.Group):
            yield from _datasets(item, here, left)
        elif isinstance(item, h5py.Dataset) and item.dtype.kind in 'fiu' and item.shape is not None:
            yield here, item
        else:
            raise ValueError(f'{where!r} is not an array of numbers')


if __name__ == '__main__':
    for kind, limit in ((resource.RLIMIT_CPU, MAX_SECONDS), (resource.RLIMIT_AS, MAX_MEMORY)):
        hard = resource.getrlimit(kind)[1]  # the caller's limit, which may be lower
        resource.setrlimit(kind, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    try:
        print(json.dumps(listing(sys.argv[1])))
    except Exception as error:  # h5py raises most of Python's built-in exceptions for a damaged file
        print(json.dumps({'error': ' '.join(str(error).split())[:300]}))
