"""Read shards back and compare them with their manifest."""

import collections
import hashlib
import itertools
import os
import pathlib
from collections.abc import Iterator

from official_resnet import files
from official_resnet.building.job import is_manifest
from official_resnet.building.progress import Log, Progress
from official_resnet.building.records import KEYS
from official_resnet.errors import UserError
from official_resnet.inputs import jpeg, tfrecords

_MAX_FAULTS = 10  # reported for each shard


def verify(output_dir: str | os.PathLike, name: str, log: Log = print) -> int:
    """Read every shard back, compare it with the manifest, and log a line for each fault; return the exit code.

    It checks the size, SHA-256 and checksums of a shard, its number of records, their keys and labels, the structure
    of each JPEG, and whether validation shards have the classes of the training shards beside them. The exit code is 0
    if nothing has changed since the build, else 1.

    Raises:
        UserError: There is no manifest.
    """
    path = pathlib.Path(os.path.expanduser(output_dir), f'{name}.manifest.json')
    manifest = files.read_json(path)
    if not is_manifest(manifest):
        raise UserError(f"'{path}' is missing or damaged; build {name} first, or pass another --output_directory")
    classes, num_faults = collections.Counter[str](), 0
    with Progress(f'verify {name}', manifest['records'], log) as progress:
        for entry in manifest['shards']:
            found = _faults(path.parent, entry, manifest, classes, progress)
            for fault in itertools.islice(found, _MAX_FAULTS):
                progress.log(f'{entry["name"]}: {fault}')
                num_faults += 1
        if fault := _fault_of_classes(path, manifest):
            progress.log(fault)
            num_faults += 1
        for synset, count in manifest['classes'].items() if not num_faults else ():
            if classes[synset] != count:
                progress.log(f"class '{synset}' has {classes[synset]} records, not {count}")
                num_faults += 1
    count = f'{num_faults or "no"} fault{"s" * (num_faults != 1)}'
    log(f'{name}: {count} in {len(manifest["shards"])} shards of {manifest["records"]} images')
    return int(num_faults > 0)


def _fault_of_classes(path, manifest):
    """Return how the classes of the validation shards differ from those of the training shards beside them, or ''."""
    train = files.read_json(path.with_name('train.manifest.json'))
    if not is_manifest(train) or train['synsets'] == manifest['synsets']:
        return ''
    ours, theirs = ({name: label for label, name in enumerate(one['synsets'])} for one in (manifest, train))
    differing = [name for name in [*ours, *theirs] if ours.get(name) != theirs.get(name)]
    labels = ' but '.join(
        f'{one.get(differing[0], "none")} in {kind}' for one, kind in ((ours, manifest['name']), (theirs, 'train'))
    )
    return f"class '{differing[0]}' has the label {labels}; delete '{manifest['name']}*' and build it again"


def _faults(folder, entry, manifest, classes, progress) -> Iterator[str]:
    """Yield the faults of a shard, and count the records of each class."""
    path = folder / entry['name']
    try:
        with open(path, 'rb', opener=files.plain) as file:
            digest = hashlib.file_digest(file, 'sha256').hexdigest()
    except OSError as error:
        yield f'cannot be read ({error.strerror})'
        return
    size = os.path.getsize(path)
    if size != entry['bytes']:
        yield f'has {size} bytes instead of {entry["bytes"]}'
    elif digest != entry['sha256']:
        yield f'has the SHA-256 {digest} instead of {entry["sha256"]}'
    count = 0
    try:
        for data in tfrecords.read(path):
            fault = _fault(data, manifest, classes)
            if fault:
                yield f'record {count} (counted from 0) {fault}'
            count += 1
            progress.update()
    except UserError as error:
        yield str(error)
    else:
        if count != entry['records']:
            yield f'has {count} records instead of {entry["records"]}'


def _fault(data, manifest, classes):
    """Return the fault of a record, or '' if there is none, and count its class."""
    try:
        example = tfrecords.decode_example(data)
    except ValueError as error:
        return f'is not a tf.train.Example ({error})'
    wrong = example.keys() ^ KEYS[manifest['layout']]
    if wrong:
        return f'has additional or missing keys: {", ".join(sorted(wrong))}'
    label, synsets = example['image/class/label'], manifest['synsets']
    if len(label) != 1 or not 1 <= label[0] < len(synsets):
        return f'has the label {label}, which is not in 1..{len(synsets) - 1}'
    expected = [os.fsencode(synsets[label[0]])]
    synset = example.get('image/class/synset', expected)
    if synset != expected:
        return f'has the class {synset} with the label {label[0]}, which is {synsets[label[0]]}'
    classes[synsets[label[0]]] += 1
    try:
        info = jpeg.inspect(b''.join(example['image/encoded']))
    except ValueError as error:
        return f'has a broken image ({error})'
    if not info.is_whole or not info.is_rgb_jpeg:
        return f'has an image that is not a whole RGB JPEG ({info.problem or jpeg.reason(info)})'
    size = example['image/width'], example['image/height']
    if size != ([info.width], [info.height]):
        return f'has the size {size}, but its image has {info.width} x {info.height}'
    return ''
