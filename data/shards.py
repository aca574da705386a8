"""Pictures -> `<name>-00000-of-01024` ...: TFRecord files of tf.train.Example, built by several processes.

A shard's bytes depend on the pictures, the seed and its number alone. Each is written in `.<name>.progress`, the job's
folder, and put in place by a rename; so a build that is killed at any point goes on with the same command and ends with
the same bytes. `<name>.manifest.json` comes last and says what was written, encoded anew and left out.

Processes are programs of their own, which stop when the pipe to them closes; they map pictures and boxes from the job's
folder into memory and hold one picture at a time.
"""

import collections
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import pathlib
import shutil
import sys

import numpy as np
import shard_job
from pictures import Pictures

from official_resnet.errors import UserError
from official_resnet.inputs import jpeg, tfrecords

IMAGENET_KEYS = frozenset(
    """
    image/encoded image/format image/colorspace image/channels image/height image/width image/filename
    image/class/label image/class/text image/class/synset image/object/bbox/xmin image/object/bbox/ymin
    image/object/bbox/xmax image/object/bbox/ymax image/object/bbox/label""".split()
)
FOLDER_KEYS = frozenset(key for key in IMAGENET_KEYS if 'bbox' not in key and 'synset' not in key)
KEYS = {'imagenet': IMAGENET_KEYS, 'folder': FOLDER_KEYS}  # by layout

_VERSION = 1  # of what a shard's bytes depend on
_MAX_FAULTS = 10  # of a shard that are told


class Boxes:
    """Boxes of pictures, as two arrays: names, bytes [n], sorted, and coordinates, float32 [n, 4]."""

    def __init__(self, names, coordinates):
        self.names, self.coordinates = names, coordinates

    def of(self, basename):
        """Return [(xmin, ymin, xmax, ymax)] of a picture, each 0..1 of its size."""
        name = os.fsencode(basename)
        if len(name) > self.names.dtype.itemsize:
            return []  # longer than any here; numpy would cut it
        key = np.array(name, self.names.dtype)
        begin, end = (np.searchsorted(self.names, key, side) for side in ('left', 'right'))
        return [tuple(row) for row in self.coordinates[begin:end].tolist()]


def read_boxes(path):
    """Return the Boxes of a CSV file: `name.JPEG,xmin,ymin,xmax,ymax` a line; those of a picture keep their order.

    Raises:
        UserError: it cannot be read, or a line is something else.
    """
    remedy = 'make it by data/bounding_boxes.py, or pass another --bounding_box_file'
    try:
        with open(path, 'rb') as file:
            is_empty = not file.read(1)
        table = (
            np.loadtxt(path, [('name', 'S64'), ('box', '<f4', 4)], delimiter=',', comments=None, ndmin=1)
            if not is_empty
            else np.empty(0, [('name', 'S64'), ('box', '<f4', 4)])
        )
    except OSError as error:
        raise UserError(f"bounding_box_file '{path}' cannot be read ({error.strerror}); {remedy}") from None
    except ValueError as error:
        raise UserError(f"bounding_box_file '{path}': {str(error).splitlines()[0].rstrip('.')}; {remedy}") from None
    xmin, ymin, xmax, ymax = table['box'].T
    is_right = (xmin >= 0) & (ymin >= 0) & (xmax >= xmin) & (ymax >= ymin) & (xmax <= 1) & (ymax <= 1)
    if not is_right.all():
        wrong = int(np.argmin(is_right))
        raise UserError(
            f"bounding_box_file '{path}' has the box {table['box'][wrong].tolist()} in line {wrong + 1}, "
            f'not xmin, ymin, xmax, ymax in 0..1; {remedy}'
        )
    order = np.argsort(table['name'], kind='stable')
    width = max(1, int(np.char.str_len(table['name']).max(initial=1)))
    return Boxes(table['name'][order].astype(f'S{width}'), table['box'][order])


@dataclasses.dataclass(frozen=True, eq=False)
class Options:
    """What goes into the records besides the pictures."""

    texts: dict = dataclasses.field(default_factory=dict)  # class -> what people call it
    boxes: Boxes | None = None
    seed: int = 12345  # of the order; upstream's
    check: str = 'structure'  # or 'decode', see jpeg.to_rgb_jpeg
    on_broken: str = 'skip'  # or 'fail'
    layout: str = 'imagenet'  # or 'folder': without synset and boxes

    def save(self, folder):
        """Write the files that `load` reads."""
        plain = {field: getattr(self, field) for field in ('texts', 'seed', 'check', 'on_broken', 'layout')}
        pathlib.Path(folder, 'options.json').write_text(json.dumps(plain))
        boxes = self.boxes or Boxes(np.empty(0, 'S1'), np.empty((0, 4), np.float32))
        np.save(f'{folder}/box_names.npy', boxes.names)
        np.save(f'{folder}/box_coordinates.npy', boxes.coordinates)

    @classmethod
    def load(cls, folder):
        """Return what `save` wrote, the boxes mapped into memory."""
        boxes = Boxes(*(np.load(f'{folder}/box_{part}.npy', mmap_mode='r') for part in ('names', 'coordinates')))
        return cls(boxes=boxes, **json.loads(pathlib.Path(folder, 'options.json').read_text()))

    def digest(self):
        """Return a SHA-256 of what shards depend on; of on_broken they do not, as long as there are any."""
        digest = hashlib.sha256(json.dumps([self.texts, self.seed, self.check, self.layout], sort_keys=True).encode())
        if self.boxes is not None and len(self.boxes.names):
            digest.update(self.boxes.names.tobytes())
            digest.update(self.boxes.coordinates.tobytes())
        return digest.hexdigest()


def image_example(data, width, height, label, text, filename):
    """Return the features of a picture of an own folder, for tfrecords.encode_example.

    Args:
        data: RGB JPEG.
        width, height: pixels.
        label: from 1; 0 is kept for the background.
        text, filename: str; the filename without folders.
    """
    return {
        'image/encoded': data,
        'image/format': b'JPEG',
        'image/colorspace': b'RGB',
        'image/channels': 3,
        'image/height': height,
        'image/width': width,
        'image/filename': os.fsencode(filename),
        'image/class/label': label,
        'image/class/text': text.encode(errors='surrogateescape'),
    }


def imagenet_example(data, width, height, label, synset, text, filename, boxes):
    """Return the features of a picture of ImageNet: image_example's, the synset, and [(xmin, ymin, xmax, ymax)]."""
    xmin, ymin, xmax, ymax = np.array(boxes, np.float32).reshape(-1, 4).T
    return {
        **image_example(data, width, height, label, text, filename),
        'image/class/synset': synset.encode(),
        'image/object/bbox/xmin': xmin,
        'image/object/bbox/ymin': ymin,
        'image/object/bbox/xmax': xmax,
        'image/object/bbox/ymax': ymax,
        'image/object/bbox/label': np.full(len(boxes), label, np.int64),
    }


def shard_rows(count, shard, num_shards, seed):
    """Return which of `count` pictures a shard has, in its order."""
    return _order(count, seed)[count * shard // num_shards : count * (shard + 1) // num_shards]


@functools.lru_cache(maxsize=1)
def _order(count, seed):
    """Return 0..count-1 shuffled. By raw numbers, which numpy keeps forever; its shuffles may change (NEP 19)."""
    return np.argsort(np.random.PCG64(seed).random_raw(count), kind='stable').astype(np.int32)


def build_shard(pictures, shard, num_shards, options, output, *, opener=None, on_picture=None):
    """Write one shard and return its summary.

    Args:
        pictures: all of the data set.
        shard: 0..num_shards-1.
        options: Options.
        output: binary file.
        opener: how pictures are opened, see Pictures.read_bytes.
        on_picture: called with the bytes of each picture written, 0 for a broken one.

    Returns:
        JSON values: 'shard', 'records', 'bytes', 'sha256', 'classes' {class: records}, 'reencoded' and 'broken', both
        {name of the picture: reason}.

    Raises:
        UserError: a picture cannot be read, or is broken and on_broken is 'fail'.
    """
    digest, classes = hashlib.sha256(), collections.Counter()
    summary = {'shard': shard, 'records': 0, 'bytes': 0, 'reencoded': {}, 'broken': {}}
    for i in shard_rows(len(pictures), shard, num_shards, options.seed).tolist():
        data, name = pictures.read_bytes(i, opener), pictures.name(i)
        try:
            encoded, width, height = jpeg.to_rgb_jpeg(data, options.check)
        except ValueError as error:
            if options.on_broken == 'fail':
                raise UserError(
                    f"picture '{name}' is broken ({error}); mend or remove it, or pass --on_broken=skip"
                ) from None
            summary['broken'][name] = str(error)
        else:
            if encoded is not data:
                summary['reencoded'][name] = jpeg.reason(jpeg.inspect(data))
            record = tfrecords.frame(tfrecords.encode_example(_features(pictures, i, options, encoded, width, height)))
            output.write(record)
            digest.update(record)
            classes[pictures.synset(i)] += 1
            summary['records'] += 1
            summary['bytes'] += len(record)
        if on_picture:
            on_picture(0 if name in summary['broken'] else len(record))
    return {**summary, 'classes': dict(sorted(classes.items())), 'sha256': digest.hexdigest()}


def _features(pictures, i, options, encoded, width, height):
    label, synset, basename = pictures.label(i), pictures.synset(i), pictures.basename(i)
    if options.layout == 'folder':
        return image_example(encoded, width, height, label, options.texts.get(synset, synset), basename)
    boxes = options.boxes.of(basename) if options.boxes else []
    return imagenet_example(encoded, width, height, label, synset, options.texts.get(synset, ''), basename, boxes)


def build(
    pictures,
    name,
    output_dir,
    num_shards,
    num_threads=8,
    *,
    texts=None,
    boxes=None,
    seed=12345,
    check='structure',
    on_broken='skip',
    layout='imagenet',
    log=print,
):
    """Write all shards that are not there yet, then the manifest; return it.

    Args:
        pictures: Pictures.
        name: 'train', 'validation'; files begin with it.
        output_dir: made if need be.
        num_shards: files.
        num_threads: processes; upstream's name.
        texts: {class: what people call it}.
        boxes: Boxes, or None.
        seed: of the order.
        check: 'structure' or 'decode', see jpeg.to_rgb_jpeg.
        on_broken: 'skip' or 'fail'.
        layout: 'imagenet', or 'folder': records without synset and boxes.
        log: called with lines.

    Returns:
        The manifest: 'name', 'layout', 'seed', 'check', 'fingerprint', 'records', 'bytes', 'synsets', 'classes'
        {class: records}, 'shards' [{'name', 'records', 'bytes', 'sha256'}], 'reencoded' and 'broken' {name: reason}.

    Raises:
        UserError: files of another build stand there, another one is going on, the disk is full or read-only, a picture
            cannot be read, or is broken and on_broken is 'fail'. What is finished stays.
    """
    job = shard_job.Job(os.path.abspath(os.path.expanduser(output_dir)), name, num_shards)
    try:
        return _build(job, pictures, Options(texts or {}, boxes, seed, check, on_broken, layout), num_threads, log)
    except OSError as error:
        raise _write_error(job, error) from None
    finally:
        job.close()


def _build(job, pictures, options, num_threads, log):
    kept = job.open(fingerprint(pictures, options, job.num_shards))
    if kept:
        todo = [i for i, entry in enumerate(kept['shards']) if not job.has_size(i, entry['bytes'])]
    else:
        todo = [i for i in range(job.num_shards) if not _is_finished(job, i, options)]
    if kept and not todo:
        log(
            f"{job.name} is complete, {kept['records']} images in {job.num_shards} shards in '{job.output_dir}': "
            'nothing to do'
        )
    else:
        _require_space(job, pictures, len(todo))
        pictures.save(job.folder / 'pictures')  # also when going on: the pictures may have moved
        options.save(job.folder)
        _build_shards(job, pictures, todo, num_threads, log)
        if kept:
            _compare(job, kept, todo)
        else:
            kept = manifest(job.name, job.num_shards, pictures, options, _summaries(job))
            shard_job.write_json(job.manifest_path, kept)
        odd = [
            f'{len(kept[key])} {what}'
            for key, what in (('reencoded', 'pictures encoded anew'), ('broken', 'broken ones left out'))
            if kept[key]
        ]
        log(
            f'{job.name}: {kept["bytes"] / 1e9:.3f} GB in {job.num_shards} shards'
            + (f"; {', '.join(odd)}, named in '{job.manifest_path}'" if odd else '')
        )
        log(f'Finished writing all {kept["records"]} images in data set.')
    job.remove()
    return kept


def _is_finished(job, shard, options):
    summary = job.summary(shard)
    return summary is not None and not (summary['broken'] and options.on_broken == 'fail')


def _require_space(job, pictures, num_shards):
    """Raise if the pictures yet to be written, as far as their sizes are known, do not fit on the disk."""
    sizes = pictures.rows['size']
    needed = int(sizes[sizes > 0].sum()) * num_shards // job.num_shards
    free = shutil.disk_usage(job.output_dir).free
    if needed > free:
        raise UserError(
            f"'{job.output_dir}' has {free / 1e9:.1f} GB free, {job.name} takes {needed / 1e9:.1f} GB; "
            'free some space, or pass another --output_directory'
        )


def _build_shards(job, pictures, todo, num_threads, log):
    done = len(pictures) - sum(map(len, (shard_rows(len(pictures), i, job.num_shards, 0) for i in todo)))
    if done:
        log(f'{job.name}: going on, {job.num_shards - len(todo)} of {job.num_shards} shards are finished')
    progress = shard_job.Progress(job.name, len(pictures), done, log)

    def on_message(message):
        if 'tick' in message:
            progress.add(*message['tick'])
        for name, reason in message.get('broken', {}).items():
            progress.log(f"broken, left out: '{name}' ({reason})")

    command = [sys.executable, os.path.abspath(__file__), str(job.output_dir), job.name, str(job.num_shards)]
    try:
        shard_job.run_processes(command, [job.lock], todo, num_threads, on_message)
    finally:
        progress.close()


def _compare(job, manifest, shards):
    """Raise if shards that were missing came out otherwise than the manifest has them."""
    for shard in shards:
        summary, entry = job.summary(shard), manifest['shards'][shard]
        if summary['sha256'] != entry['sha256']:
            raise UserError(
                f"'{entry['name']}' was missing, and the pictures now give another one than "
                f"'{job.manifest_path}' tells of; delete that and '{job.output_dir / job.name}-*' to start "
                'over'
            )


def fingerprint(pictures, options, num_shards):
    """Return a hash of all that the shards of a build depend on."""
    return hashlib.sha256(json.dumps([_VERSION, num_shards, pictures.digest(), options.digest()]).encode()).hexdigest()


def manifest(name, num_shards, pictures, options, summaries):
    """Return the manifest, see `build`, of the summaries of all shards, which build_shard gave, in any order."""
    result = {
        'name': name,
        'layout': options.layout,
        'seed': options.seed,
        'check': options.check,
        'fingerprint': fingerprint(pictures, options, num_shards),
        'records': 0,
        'bytes': 0,
        'synsets': list(pictures.synsets),
        'classes': dict.fromkeys(pictures.synsets[1:], 0),
        'shards': [],
        'reencoded': {},
        'broken': {},
    }
    for summary in sorted(summaries, key=lambda summary: summary['shard']):
        result['shards'].append(
            {
                'name': shard_job.shard_name(name, summary['shard'], num_shards),
                **{key: summary[key] for key in ('records', 'bytes', 'sha256')},
            }
        )
        for key in ('records', 'bytes'):
            result[key] += summary[key]
        for synset, count in summary['classes'].items():
            result['classes'][synset] += count
        for key in ('reencoded', 'broken'):
            result[key].update(summary[key])
    return result


def _summaries(job):
    """Yield the summary of each shard."""
    for shard in range(job.num_shards):
        summary = job.summary(shard)
        if summary is None:
            raise UserError(f"'{job.output_dir / job.shard_name(shard)}' has gone away; run the same command again")
        yield summary


def _write_error(job, error):
    return UserError(
        f"'{job.output_dir}' cannot be written ({error.strerror or error}); mend that and run the same "
        'command again, which continues, or pass another --output_directory'
    )


def verify(output_dir, name, log=print):
    """Read every shard back, compare it with the manifest, and log a line for each fault; return an exit code.

    Size, SHA-256 and checksums of a shard, its number of records, their keys and labels, and each JPEG's structure.

    Returns:
        0 if all is as it was built, 1 if not.

    Raises:
        UserError: there is no manifest.
    """
    path = pathlib.Path(os.path.expanduser(output_dir), f'{name}.manifest.json')
    manifest = shard_job.read_json(path)
    if manifest is None:
        raise UserError(f"'{path}' is missing or damaged; build {name} first, or pass another --output_directory")
    classes, num_faults = collections.Counter(), 0
    progress = shard_job.Progress(f'verify {name}', manifest['records'], 0, log)
    for entry in manifest['shards']:
        for fault in itertools.islice(_faults(path.parent, entry, manifest, classes, progress.add), _MAX_FAULTS):
            progress.log(f'{entry["name"]}: {fault}')
            num_faults += 1
    for synset in manifest['synsets'][1:] if not num_faults else ():
        if classes[synset] != manifest['classes'][synset]:
            progress.log(f"class '{synset}' has {classes[synset]} records instead of {manifest['classes'][synset]}")
            num_faults += 1
    progress.close()
    log(
        f'{name}: {num_faults or "no"} fault{"s" * (num_faults != 1)} in {len(manifest["shards"])} shards of '
        f'{manifest["records"]} images'
    )
    return int(num_faults > 0)


def _faults(folder, entry, manifest, classes, on_picture):
    """Yield what is wrong with a shard, counting the records of each class."""
    path = folder / entry['name']
    try:
        with open(path, 'rb') as file:
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
            on_picture(1, len(data))
    except UserError as error:
        yield str(error)
    else:
        if count != entry['records']:
            yield f'has {count} records instead of {entry["records"]}'


def _fault(data, manifest, classes):
    """Return what is wrong with a record, '' if nothing is."""
    try:
        example = tfrecords.decode_example(data)
    except ValueError as error:
        return f'is no tf.train.Example ({error})'
    wrong = example.keys() ^ KEYS[manifest['layout']]
    if wrong:
        return f'has keys too many or lacks some: {", ".join(sorted(wrong))}'
    label, synsets = example['image/class/label'], manifest['synsets']
    if len(label) != 1 or not 1 <= label[0] < len(synsets):
        return f'has the label {label}, not one of 1..{len(synsets) - 1}'
    synset = example.get('image/class/synset', [synsets[label[0]].encode()])
    if synset != [synsets[label[0]].encode()]:
        return f'has the class {synset} with the label {label[0]}, which is {synsets[label[0]]}'
    classes[synsets[label[0]]] += 1
    try:
        info = jpeg.inspect(b''.join(example['image/encoded']))
    except ValueError as error:
        return f'has a broken picture ({error})'
    if not info.is_whole or not info.is_rgb_jpeg:
        return f'has a picture that is no RGB JPEG ({info.problem or jpeg.reason(info)})'
    size = example['image/width'], example['image/height']
    if size != ([info.width], [info.height]):
        return f'has the size {size}, its picture {info.width} x {info.height}'
    return ''


def _serve(output_dir, name, num_shards):
    """Be a process of a build."""
    job = shard_job.Job(output_dir, name, int(num_shards))
    pictures, options = Pictures.load(job.folder / 'pictures'), Options.load(job.folder)

    def build_one(shard, tick):
        try:
            summary = job.write_shard(
                shard, lambda file: build_shard(pictures, shard, job.num_shards, options, file, on_picture=tick)
            )
        except OSError as error:
            raise _write_error(job, error) from None
        return {'shard': shard, 'broken': summary['broken']}

    shard_job.serve(build_one)


if __name__ == '__main__':
    _serve(*sys.argv[1:])
