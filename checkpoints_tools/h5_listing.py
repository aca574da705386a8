"""List the arrays of an HDF5 file as JSON, in a process that the caller can end: `python h5_listing.py FILE LIMITS`.

A few damaged bytes send HDF5's library (1.14) into an endless loop. In a process of its own, with limits, that is an
error like any other. No link is followed, and only arrays that are stored contiguously in the file are listed.
"""

import json
import resource
import sys

import h5py


def listing(path: str, limits: dict[str, int]) -> list[list]:
    """Return [[names of groups and array, shape, dtype, offset in the file, layer], ...].

    The layer's name is an attribute of the group 'vars' that Keras 3 writes, or None. `limits` are those of bounds.
    """
    rows = []
    with h5py.File(path, 'r') as file:
        for place, item in _datasets(file, limits):
            offset = item.id.get_offset()
            if offset is None and item.size:
                where = f'{"/".join(place)!r} is compressed or chunked, or its values are not in the file'
                raise ValueError(f'{where}; rewrite the file by h5repack -l CONTI')
            parent = '/'.join(place[:-1])
            layer = file[parent].attrs.get('name') if place[-2:-1] == ('vars',) else None
            if layer is not None and not (isinstance(layer, str) and len(layer) <= limits['hdf5_name']):
                raise ValueError(f'{parent!r} has a name that is not a short string')
            rows.append([place, item.shape, item.dtype.str, offset or 0, layer])
    return rows


def _datasets(group, limits, place=(), left=None):
    """Yield (names, dataset) of all arrays in a group."""
    objects, depth, length = (limits[f'hdf5_{what}'] for what in ('objects', 'depth', 'name'))
    left = left or [objects]
    for name in group:
        here, left[0] = (*place, name), left[0] - 1
        where = '/'.join(here)[:length]
        if left[0] < 0 or len(here) > depth or len(name) > length:
            most = f'{objects} objects, {depth} groups in one another, or {length} characters'
            raise ValueError(f'{where!r}: more than {most}')
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise ValueError(f'{where!r} is a link, which is not followed')
        item = group[name]
        if isinstance(item, h5py.Group):
            yield from _datasets(item, limits, here, left)
        elif isinstance(item, h5py.Dataset) and item.dtype.kind in 'fiu' and item.shape is not None:
            yield here, item
        else:
            raise ValueError(f'{where!r} is not an array of numbers')


if __name__ == '__main__':
    limits = json.loads(sys.argv[2])
    for kind, limit in ((resource.RLIMIT_CPU, limits['hdf5_seconds']), (resource.RLIMIT_AS, limits['hdf5_memory'])):
        hard = resource.getrlimit(kind)[1]  # the caller's limit, which may be lower
        resource.setrlimit(kind, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    try:
        print(json.dumps(listing(sys.argv[1], limits)))
    except Exception as error:  # h5py raises most of Python's built-in exceptions for a damaged file
        print(json.dumps({'error': ' '.join(str(error).split())[:300]}))
