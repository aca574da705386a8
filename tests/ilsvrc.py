"""Lay out a small ILSVRC2012 in the true shape: tar of tars, validation tar, boxes with their oddities, labels.

    python tests/ilsvrc.py DIR --pictures ../shared/data/imagenet-sample.tar

Each class is a picture of the sample; its pictures are that one with another comment, so that their bytes differ. DIR
also gets imagenet_lsvrc_2015_synsets.txt (the classes, sorted) and imagenet_metadata.txt (their names).
"""

import argparse
import dataclasses
import functools
import io
import itertools
import pathlib
import tarfile

import numpy as np
from PIL import Image

from official_resnet.inputs import other_datasets

SAMPLE = pathlib.Path(__file__).parents[1].parent / 'shared' / 'data' / 'imagenet-sample.tar'
OTHER_SYNSET = 'n00000001'  # in no list
TRAIN, VALIDATION = 'ILSVRC2012_img_train.tar', 'ILSVRC2012_img_val.tar'
BOXES, DEVKIT = 'ILSVRC2012_bbox_train_v2.tar.gz', 'ILSVRC2012_devkit_t12.tar.gz'
LABELS, VALIDATION_BOXES = 'imagenet_2012_validation_synset_labels.txt', 'ILSVRC2012_bbox_val_v3.tgz'


@dataclasses.dataclass(frozen=True)
class Layout:
    """What make wrote."""

    folder: pathlib.Path
    synsets: tuple  # sorted
    train: dict  # name -> bytes
    validation: dict  # name -> bytes
    validation_synsets: tuple  # in the order of the pictures
    csv: bytes  # the boxes that are to be found

    @property
    def flags(self):
        """The options of the programs that name this layout's lists."""
        return [
            f'--labels_file={self.folder / "imagenet_lsvrc_2015_synsets.txt"}',
            f'--metadata_file={self.folder / "imagenet_metadata.txt"}',
        ]


def make(
    folder,
    pictures=None,
    *,
    num_synsets=4,
    train_pictures=6,
    validation_pictures=2,
    boxes=True,
    labels='list',
    tar_format=tarfile.GNU_FORMAT,
):
    """Write the files of a small ILSVRC2012 into a folder and return its Layout.

    Args:
        folder: created if need be.
        pictures: tar of JPEGs <synset>_<name>.JPEG; None for `sample`.
        num_synsets: of the smallest pictures; None takes all.
        train_pictures, validation_pictures: of each class.
        boxes: whether to write the tar file of boxes.
        labels: 'list', 'devkit' (needs scipy), 'boxes' or None: which file tells the validation labels.
        tar_format: of tarfile.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    found = read_sample(pictures) if pictures else sample()
    chosen = dict(sorted(sorted(found.items(), key=lambda item: len(item[1][1]))[:num_synsets]))
    synsets = tuple(chosen)
    train = {
        f'{synset}_{7 * k + 2}.JPEG': with_comment(chosen[synset][1], f'train {k}')
        for synset in synsets
        for k in range(train_pictures)
    }
    validation_synsets = tuple(itertools.islice(itertools.cycle(reversed(synsets)), validation_pictures * len(synsets)))
    validation = {
        f'ILSVRC2012_val_{number:08d}.JPEG': with_comment(chosen[synset][1], f'validation {number}')
        for number, synset in enumerate(validation_synsets, 1)
    }
    write_tar(
        folder / TRAIN,
        {
            f'{synset}.tar': tar_bytes({name: train[name] for name in train if synset in name}, tar_format)
            for synset in reversed(synsets)
        },
        tar_format,
    )
    write_tar(folder / VALIDATION, dict(reversed(validation.items())), tar_format)
    (folder / 'imagenet_lsvrc_2015_synsets.txt').write_text(''.join(f'{synset}\n' for synset in synsets))
    (folder / 'imagenet_metadata.txt').write_text(''.join(f'{synset}\t{chosen[synset][0]}\n' for synset in synsets))
    csv = b''
    if boxes:
        files, csv = box_files(synsets, list(train))
        (folder / BOXES).write_bytes(tar_bytes(files, tar_format, 'w:gz'))
    _write_labels(folder, labels, synsets, validation_synsets)
    return Layout(folder, synsets, train, validation, validation_synsets, csv)


@functools.cache
def sample():
    """Return {synset: (name, JPEG)}: pictures of ImageNet, or, where SAMPLE is not there, drawn ones like them."""
    if SAMPLE.is_file():
        return read_sample(SAMPLE)
    random, result = np.random.default_rng(0), {}
    for i, (synset, name) in enumerate(other_datasets.imagenet_classes()[::10]):
        is_grey = i % 16 == 5  # as six of the sample are
        width, height = (600, 500) if is_grey else random.integers(200, 500, 2)  # none of the smallest, see make
        coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), np.uint8)).resize((width, height), Image.BICUBIC)
        image = Image.fromarray((np.asarray(coarse) // 2 + random.integers(0, 60, (height, width, 3))).astype(np.uint8))
        buffer = io.BytesIO()
        image.convert('L' if is_grey else 'RGB').save(buffer, 'JPEG', quality=90)
        result[synset] = name, buffer.getvalue()
    return result


@functools.cache
def read_sample(path):
    """Return {synset: (name, JPEG)} of a tar file of <synset>_<name>.JPEG."""
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"'{path}' is missing: the tests of ImageNet's tar files are made from its pictures")
    result = {}
    with tarfile.open(path) as tar:
        for member in tar:
            name = pathlib.PurePosixPath(member.name).name
            if member.isreg() and name.endswith('.JPEG'):
                synset, _, words = name.removesuffix('.JPEG').partition('_')
                result[synset] = words.replace('_', ' '), tar.extractfile(member).read()
    return result


def with_comment(jpeg, text):
    """Return the JPEG with a comment segment after its first marker."""
    data = text.encode()
    return jpeg[:2] + b'\xff\xfe' + (len(data) + 2).to_bytes(2, 'big') + data + jpeg[2:]


def tar_bytes(files, tar_format=tarfile.GNU_FORMAT, mode='w'):
    """Return a tar file of {name: bytes}."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, format=tar_format) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def write_tar(path, files, tar_format=tarfile.GNU_FORMAT):
    """Write a tar file of {name: bytes}."""
    pathlib.Path(path).write_bytes(tar_bytes(files, tar_format))


def xml(size=(500, 400), objects=(), filename='%s', synset=''):
    """Return an XML of ImageNet's: objects are (name, xmin, ymin, xmax, ymax), in pixels."""
    body = ''.join(
        f'<object><name>{name}</name><pose>Unspecified</pose><truncated>0</truncated><bndbox><xmin>{box[0]}</xmin>'
        f'<ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>'
        for name, *box in objects
    )
    return (
        f'<annotation><folder>{synset}</folder><filename>{filename}</filename><source><database>ImageNet database'
        f'</database></source><size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>'
        f'<segmented>0</segmented>{body}</annotation>'
    ).encode()


def box_files(synsets, names):
    """Return ({path: XML} with every oddity of the official files, the CSV that they give) for train picture names."""
    files, lines = {}, []
    for index, name in enumerate(names):
        synset, stem = name.partition('_')[0], name.removesuffix('.JPEG')
        other = synsets[(synsets.index(synset) + 1) % len(synsets)]
        objects, boxes = [
            ([(synset, 50, 40, 250, 200)], ['0.1000,0.1000,0.5000,0.5000']),
            ([('Scottish_deerhound', 250, 200, 50, 40)], ['0.1000,0.1000,0.5000,0.5000']),  # corners exchanged
            ([(synset, -5, 0, 600, 400), (other, 0, 0, 9, 9)], ['0.0000,0.0000,1.0000,1.0000']),  # outside; another's
            ([(synset, 10, 10, 10, 50), (synset, 125, 100, 250, 300)], ['0.2500,0.2500,0.5000,0.7500']),  # empty
            ([(OTHER_SYNSET, 100, 100, 200, 200)], ['0.2000,0.2500,0.4000,0.5000']),  # of no listed synset: kept
            (None, []),  # no XML at all
        ][index % 6]
        if objects is not None:
            files[f'{synset}/{stem}.xml'] = xml((500, 400), objects, '%s' if index % 2 else stem, synset)
            lines += [f'{name},{box}\n' for box in boxes]
    files[f'{OTHER_SYNSET}/{OTHER_SYNSET}_1.xml'] = xml((9, 9), [(OTHER_SYNSET, 1, 1, 5, 5)])
    files[f'{synsets[0]}/{synsets[0]}_900.xml'] = b'<annotation><size>'  # cut off
    return files, ''.join(sorted(lines)).encode()


def _write_labels(folder, kind, synsets, validation_synsets):
    if kind == 'list':
        (folder / LABELS).write_text(''.join(f'{synset}\n' for synset in validation_synsets))
    elif kind == 'devkit':
        (folder / DEVKIT).write_bytes(devkit(synsets, validation_synsets))
    elif kind == 'boxes':
        (folder / VALIDATION_BOXES).write_bytes(
            tar_bytes(
                {
                    f'val/ILSVRC2012_val_{number:08d}.xml': xml(objects=[(synset, 1, 1, 9, 9)])
                    for number, synset in enumerate(validation_synsets, 1)
                },
                mode='w:gz',
            )
        )


def devkit(synsets, validation_synsets):
    """Return a development kit; its numbers are not in the order of the synsets, as the official ones are not."""
    import numpy as np
    import scipy.io

    rows = [(number, synset) for number, synset in enumerate(reversed(synsets), 1)]
    table = np.zeros((len(rows) + 1, 1), [('ILSVRC2012_ID', 'O'), ('WNID', 'O'), ('words', 'O')])
    for index, (number, synset) in enumerate([*rows, (1001, OTHER_SYNSET)]):  # numbers above 1000 are inner nodes
        table[index, 0] = float(number), synset, f'words of {synset}'
    meta = io.BytesIO()
    scipy.io.savemat(meta, {'synsets': table}, do_compression=True)
    numbers = {synset: number for number, synset in rows}
    truth = ''.join(f'{numbers[synset]}\n' for synset in validation_synsets).encode()
    return tar_bytes(
        {
            'ILSVRC2012_devkit_t12/data/meta.mat': meta.getvalue(),
            'ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt': truth,
        },
        mode='w:gz',
    )


def _main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder')
    parser.add_argument('--pictures', help='tar of JPEGs; the sample of ImageNet without it')
    parser.add_argument('--num_synsets', type=int, default=None, help='all of the sample without it')
    parser.add_argument('--train_pictures', type=int, default=6, help='of each class')
    parser.add_argument('--validation_pictures', type=int, default=2, help='of each class')
    parser.add_argument('--labels', choices=['list', 'devkit', 'boxes'], default='list')
    options = vars(parser.parse_args())
    layout = make(options.pop('folder'), **options)
    print(
        f'{len(layout.synsets)} classes, {len(layout.train)} and {len(layout.validation)} pictures are in '
        f'{layout.folder}'
    )


if __name__ == '__main__':
    _main()
