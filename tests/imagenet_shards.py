"""Small TFRecord shards in ImageNet's format, of drawn pictures or of the sample."""

import io
import json

import numpy as np
from ilsvrc import SAMPLE, read_sample
from PIL import Image

from official_resnet.inputs import other_datasets, tfrecords

CLASSES = other_datasets.imagenet_classes()[:6]  # (id, name)
PREFIXES = {'train': 'train', 'test': 'validation'}
SIDES = ('ymin', 'xmin', 'ymax', 'xmax')


def encoded(pixels, kind='JPEG', **options):
    """Return the bytes of a picture file of pixels, or of a PIL image."""
    file = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.asarray(pixels, np.uint8))
    image.save(file, kind, **options)
    return file.getvalue()


def draw(num_images, seed=0, num_classes=None):
    """Return [(JPEG, label 0.., boxes [[ymin, xmin, ymax, xmax], ...])], no two alike.

    Picture i is of class i % num_classes, which its colour tells, of 40..63 pixels a side, and has i % 3 boxes.
    """
    random = np.random.default_rng(seed)
    result = []
    for i in range(num_images):
        label = i % (num_classes or len(CLASSES))
        pixels = random.integers(0, 90, (*random.integers(40, 64, 2), 3))
        pixels[..., label % 3] += 60 + 105 * (label < 3)
        result.append((encoded(pixels, quality=90), label, [[0.1, 0.2, 0.6 + 0.1 * k, 0.9] for k in range(i % 3)]))
    return result


def example(jpeg, label, boxes=(), first_label=1):
    """Return the bytes of a tf.train.Example of a picture, label 0..; what the input does not read is left out."""
    columns = np.float32(boxes).reshape(-1, 4).T
    return tfrecords.encode_example(
        {'image/encoded': jpeg, 'image/class/label': label + first_label}
        | {f'image/object/bbox/{side}': column for side, column in zip(SIDES, columns, strict=True)}
    )


def write_shards(folder, pictures, split='train', num_shards=4, classes=CLASSES):
    """Write pictures (see `draw`) as shards of a split, one after another, and the manifest; return the paths.

    Args:
        folder: made if need be.
        pictures: as `draw` returns them.
        split: 'train' or 'test'.
        num_shards: of nearly equal size.
        classes: ((id, name), ...); None writes no manifest, which stands for ImageNet's thousand.
    """
    folder.mkdir(parents=True, exist_ok=True)
    prefix = PREFIXES[split]
    paths = []
    for i, rows in enumerate(np.array_split(np.arange(len(pictures)), num_shards)):
        paths.append(folder / f'{prefix}-{i:05d}-of-{num_shards:05d}')
        paths[-1].write_bytes(b''.join(tfrecords.frame(example(*pictures[row])) for row in rows))
    if classes:
        synsets = ['', *(synset for synset, _ in classes)]  # label 0 is none's
        (folder / f'{prefix}.manifest.json').write_text(json.dumps({'synsets': synsets}))
    return paths


def write_folder(folder, pictures, names=tuple(name for _, name in CLASSES)):
    """Write pictures (see `draw`) as files 00000.jpg ... in a subfolder for each class."""
    for i, (jpeg, label, _) in enumerate(pictures):
        (folder / names[label]).mkdir(parents=True, exist_ok=True)
        (folder / names[label] / f'{i:05d}.jpg').write_bytes(jpeg)


def sample_pictures():
    """Return the pictures of the sample as `draw` does, with their labels of ImageNet's thousand."""
    labels = {synset: label for label, (synset, _) in enumerate(other_datasets.imagenet_classes())}
    return [(jpeg, labels[synset], []) for synset, (_, jpeg) in sorted(read_sample(SAMPLE).items())]


def write_sample(folder):
    """Write the sample as training and as validation shards without a manifest; return its pictures."""
    pictures = sample_pictures()
    for split, num_shards in (('train', 4), ('test', 2)):
        write_shards(folder, pictures, split, num_shards, classes=None)
    return pictures
